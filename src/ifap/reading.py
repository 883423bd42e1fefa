"""What layers read: a look at the inputs of every layer that mixes channels, while the network runs.

A *reader* of a unit is a convolution or linear layer that contracts the channel of the unit. What a unit means to the
network is what its readers make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ifap.axes.attention import adopted
from ifap.axes.units import Graph, Indices
from ifap.layers import modules_by_name, unit_axis
from ifap.weights import used_by_attention

Look = Callable[[str, Tensor], Tensor | None]
"""Takes the name of a layer and what it is about to read; what it returns, if anything, is read instead."""


def readers(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the unit of each input channel of every layer that reads channels; -1 where none can go."""
    slots = {name: graph.slot(name, "in") for name in modules_by_name(model)}
    return {name: graph.unit_of[slot] for name, slot in slots.items() if slot is not None}


@contextmanager
def looking(model: nn.Module, names: Iterable[str], look: Look) -> Iterator[None]:
    """Show `look` what the named layers read, each time that they do, inside the block."""
    names, modules = set(names), modules_by_name(model)
    silent = used_by_attention(model) & names
    with ExitStack() as stack:
        for name in names - silent:
            hook = modules[name].register_forward_pre_hook(_hook(name, look), with_kwargs=True)
            stack.callback(hook.remove)
        if silent:
            stack.enter_context(adopted(model))
            stack.enter_context(_LinearCalls({id(modules[name].weight): name for name in silent}, look))
        yield


def _hook(name: str, look: Look) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # what is done here is no call of the network's
            found = look(name, args[0] if args else kwargs["input"])
        if found is None:
            return None
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "input": found})

    return before


class _LinearCalls(TorchFunctionMode):
    """Look at what ``functional.linear`` is given together with certain weights.

    Parameters
    ----------
    names : dict of int to str
        ``id`` of a weight to the name of its layer.
    look : callable
        See `looking`.
    """

    def __init__(self, names: dict[int, str], look: Look) -> None:
        super().__init__()
        self._names, self._look = names, look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and len(args) > 1 and id(args[1]) in self._names:
            with torch._C.DisableTorchFunction():
                found = self._look(self._names[id(args[1])], args[0])
            if found is not None:
                args = (found, *args[1:])
        return func(*args, **(kwargs or {}))


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the input of a layer with one row a position and one column a channel, in float32 at least."""
    axis = unit_axis(module)
    rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
    return rows if rows.dtype == torch.float64 else rows.float()
