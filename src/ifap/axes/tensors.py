"""The tensors that a network holds, wherever it keeps them: parameters, buffers and plain attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Setter = Callable[[Tensor], None]


def holders(model: nn.Module) -> Iterator[tuple[str, Tensor, Setter]]:
    """Yield each tensor that a module holds: its name, the tensor, and what puts another in its place.

    Names are those of ``state_dict`` for parameters and buffers; a tensor in a plain attribute is named by the path to
    it, such as ``block.tables.0``. A tensor that several modules hold is yielded once for each.
    """
    for name, module in model.named_modules(remove_duplicate=True):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        prefix = f"{name}." if name else ""
        for home in (module._parameters, module._buffers, module.__dict__):
            for key, value in home.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{key}", value, _into(home, key)
                elif home is module.__dict__ and not key.startswith("_"):
                    yield from _inside(f"{prefix}{key}", value)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Tensor, Setter]]:
    """Yield the tensors of a plain list or dict."""
    if type(value) not in (list, dict):
        return
    for place, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(item, Tensor):
            yield f"{name}.{place}", item, _into(value, place)


def _into(home: Any, key: Any) -> Setter:
    def put(tensor: Tensor) -> None:
        home[key] = tensor

    return put


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor that a network holds once, by its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor, _ in holders(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@contextmanager
def replaced_tensors(model: nn.Module, other: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a network hold other tensors inside the block; ``None`` leaves one in place."""
    undo: list[tuple[Setter, Tensor]] = []
    try:
        for _, tensor, put in list(holders(model)):
            new = other(tensor)
            if new is not None:
                put(new)
                undo.append((put, tensor))
        yield
    finally:
        for put, tensor in reversed(undo):
            put(tensor)
