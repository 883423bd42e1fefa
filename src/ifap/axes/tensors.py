"""The tensors that a network holds, wherever it keeps them: parameters, buffers and plain attributes."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ifap.layers import modules_by_name

Setter = Callable[[Tensor], None]
Holder = tuple[str, Tensor, Setter]
USUAL = list(vars(nn.Module()))
"""Attributes that every module has."""
_OWN_NOTES = ("_carried",)  # attributes that a trace sets on tensors
_NO_TENSORS = {bool, int, float, str, type(None), tuple, set, OrderedDict}


def holders(model: nn.Module) -> Iterator[Holder]:
    """Yield each tensor that a module holds: its name, the tensor, and a setter that replaces it.

    Names are those of ``state_dict`` for parameters and buffers; a tensor in a plain attribute is named by the path to
    it, such as ``block.tables.0``. A tensor that several modules hold is yielded once for each.
    """
    for name, module in modules_by_name(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        prefix = f"{name}." if name else ""
        for home in (module._parameters, module._buffers):
            for key, value in home.items():
                if value is not None:
                    yield f"{prefix}{key}", value, partial(home.__setitem__, key)
        yield from _attributes(prefix, module.__dict__)
        if isinstance(module, nn.RNNBase):
            yield from _read_by_kernels(prefix, module)


def _attributes(prefix: str, home: dict[str, Any]) -> Iterator[Holder]:
    """Yield the tensors of plain attributes, and of plain lists and dicts in them."""
    are_usual = list(islice(home, len(USUAL))) == USUAL  # to look at these would take a third of the time
    for key, value in islice(home.items(), len(USUAL) if are_usual else 0, None):
        if type(value) in _NO_TENSORS:
            continue
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value, partial(home.__setitem__, key)
        elif type(value) in (list, dict) and value and not key.startswith("_"):
            yield from _inside(f"{prefix}{key}", value)


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in plain attributes of modules that are not torch's, with their names."""
    for name, module in own_modules(model):
        for inner, tensor, _ in _attributes(f"{name}." if name else "", module.__dict__):
            yield inner, tensor


def own_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules that are not torch's, with their names."""
    for name, module in modules_by_name(model).items():
        if not is_of_torch(module):
            yield name, module


def is_of_torch(module: nn.Module) -> bool:
    """Whether torch defines a kind of module, quantised ones too."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao."))


def _read_by_kernels(prefix: str, module: Any) -> Iterator[Holder]:
    """Yield the tensors of a recurrent layer once more: its forward reads a list of them."""
    own = {id(value) for value in (*module._parameters.values(), *module.__dict__.values())}
    for place, value in enumerate(module._flat_weights):
        if id(value) in own:
            yield f"{prefix}_flat_weights.{place}", value, partial(module._flat_weights.__setitem__, place)


def _inside(name: str, value: Any) -> Iterator[Holder]:
    """Yield the tensors of a plain list or dict."""
    for place, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(item, Tensor):
            yield f"{name}.{place}", item, partial(value.__setitem__, place)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor that a network holds once, by its first name."""
    return once(holders(model))


def once(held: Iterable[Holder]) -> dict[str, Tensor]:
    """Return every tensor once, by the first name of those that hold it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor, _ in held:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def as_real(x: Tensor) -> Tensor:
    """Return a real tensor; a complex one gets a last dimension for its real and imaginary parts."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


functorch: Any = torch._C._functorch


def unmapped(x: Tensor) -> Tensor:
    """Return the plain tensor inside `torch.func` wrappers, with the mapped dimension first."""
    while functorch.is_functorch_wrapped_tensor(x):
        place = functorch.maybe_get_bdim(x) if functorch.is_batchedtensor(x) else 0
        x = functorch.get_unwrapped(x).movedim(place, 0) if place else functorch.get_unwrapped(x)
    return x


@contextmanager
def replaced_tensors(held: Sequence[Holder], others: Mapping[int, Tensor]) -> Iterator[None]:
    """Replace the tensors of a network inside the block; `others` is keyed by the ``id`` of the original."""
    try:
        for _, tensor, put in held:
            put(others[id(tensor)])
        yield
    finally:
        for _, tensor, put in reversed(held):
            put(tensor)


def laid_out_as(new: Tensor, tensor: Tensor) -> Tensor:
    """Return `new` in the memory format of `tensor`: channels last or contiguous."""
    is_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    last = is_last and not tensor.is_contiguous()
    return new.contiguous(memory_format=torch.channels_last) if last else new.contiguous()


def in_place_of(tensor: Tensor, new: Tensor) -> Tensor:
    """Return `new` as a parameter or buffer with the properties of the one that it replaces."""
    new = laid_out_as(new.to(tensor.device), tensor)
    if not isinstance(tensor, nn.Parameter):
        return new
    made = torch.Tensor._make_subclass(type(tensor), new.detach(), tensor.requires_grad)
    keep_notes(made, tensor)
    return made


def keep_notes(tensor: Tensor, other: Tensor) -> None:
    """Copy the attributes that a user set on `other` to `tensor`, such as the group for an optimiser."""
    for name, value in vars(other).items():
        if name not in _OWN_NOTES and name not in vars(tensor) and not isinstance(value, Tensor):
            setattr(tensor, name, value)


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor in tuples, lists, dicts, namespaces and dataclasses; other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in tree.items()}
        if type(tree) is dict or not isinstance(tree, MutableMapping):
            return mapped
        made = copy.copy(tree)  # a class of its own may have attributes
        made.update(mapped)
        return made
    if fields := fields_of(tree):
        made = copy.copy(tree)  # no field is checked or computed again
        for name, value in fields.items():
            object.__setattr__(made, name, map_tensors(value, function))  # frozen ones too
        return made
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(value, function) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree


def fields_of(tree: Any) -> dict[str, Any]:
    """Return the fields of a namespace or of an instance of a dataclass; empty for anything else."""
    if isinstance(tree, SimpleNamespace):
        return dict(vars(tree))
    is_instance = dataclasses.is_dataclass(tree) and not isinstance(tree, type)
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)} if is_instance else {}
