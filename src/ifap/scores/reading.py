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
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ifap.axes.attention import adopted
from ifap.axes.tensors import as_real, functorch, named_tensors
from ifap.axes.units import Graph, Indices
from ifap.layers import contracted_axis, modules_by_name, shared_parameters, unit_axis
from ifap.scores.weights import used_by_attention

Look = Callable[[str, Tensor], Tensor | None]
"""Takes the name of a layer and what it is about to read; what it returns, if anything, is read instead."""


def readers(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the unit of each input channel of every layer that reads channels; -1 where none can go."""
    modules = modules_by_name(model)
    slots = {name: graph.slot(name, "in") for name in modules}
    found = {name: graph.unit_of[slot] for name, slot in slots.items() if slot is not None}
    made = _by_made_weights(model, graph)
    return found | {name: units for name, units in made.items() if name not in found or (found[name] < 0).all()}


def _by_made_weights(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the same of layers that make their weight from a tensor of its shape, as a weight norm does."""
    modules, tensors, found = modules_by_name(model), named_tensors(model), {}
    for index, slot in enumerate(graph.slots):
        name = next((outer for outer in _owners(slot.name) if contracted_axis(modules.get(outer)) == slot.side), None)
        if name is not None and slot.name in tensors and tensors[slot.name].shape == modules[name].weight.shape:
            found[name] = graph.unit_of[index]
    return found


def _owners(name: str) -> Iterator[str]:
    """Yield the names of the modules that a tensor is in, from the innermost one on."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def with_weights_of_their_own(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the layers that can be refitted: of real numbers, and with a weight that no other layer shares."""
    modules = modules_by_name(model)
    shared = {id(module) for pairs in shared_parameters(model) for module, _ in pairs}
    own = (name for name in names if name in modules and "weight" in modules[name]._parameters)
    real = (name for name in own if modules[name].weight.is_floating_point())
    return [name for name in real if id(modules[name]) not in shared]


def readers_alone(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the unit of each row or column that matrices outside of layers contract, by the name of the matrix."""
    tensors = named_tensors(model)
    makes = {each.slot for each in graph.structure.producers}
    return {
        slot.name: graph.unit_of[index]
        for index, slot in enumerate(graph.slots)
        if slot.side in ("dim0", "dim1")
        and index not in makes
        and slot.name in tensors
        and tensors[slot.name].dim() == 2
    }


@contextmanager
def looking(model: nn.Module, names: Iterable[str], look: Look) -> Iterator[None]:
    """Show `look` what the named layers read, each time that they do, inside the block."""
    names, modules = set(names), modules_by_name(model)
    silent = used_by_attention(model) & names
    alone = names - set(modules)
    own = {name for name in names - silent - alone if not _reads_as_given(modules[name])}
    with ExitStack() as stack:
        for name in names - silent - alone - own:
            hook = modules[name].register_forward_pre_hook(_hook(name, look), with_kwargs=True)
            stack.callback(hook.remove)
        if silent:
            stack.enter_context(adopted(model))
        if silent or alone or own:
            tensors = named_tensors(model)
            weights = {id(modules[name].weight): name for name in silent}
            weights |= {id(tensors[name]): name for name in alone}
            products = stack.enter_context(_Products(weights, look))
            for name in own:
                for hook in products.watch(name, modules[name]):
                    stack.callback(hook.remove)
        yield


def _hook(name: str, look: Look) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # what is done here is no call of the network's
            found = _looked_at(look, name, args[0] if args else kwargs["input"])
        if found is None:
            return None
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "input": found})

    return before


def _looked_at(look: Look, name: str, x: Tensor) -> Tensor | None:
    """Look at what a layer reads; inside `torch.vmap` at all samples at once, as if a batch."""
    if not functorch.is_batchedtensor(x):
        return look(name, x)
    place = functorch.maybe_get_bdim(x)
    allowed = functorch.get_inplace_requires_grad_allowed()
    functorch.set_inplace_requires_grad_allowed(True)
    try:
        found = _looked_at(look, name, functorch.get_unwrapped(x).movedim(place, 0))
    finally:
        functorch.set_inplace_requires_grad_allowed(allowed)
    return None if found is None else functorch._add_batch_dim(found, 0, functorch.maybe_get_level(x))


class _Products(TorchFunctionMode):
    """Look at what products are given together with certain weights.

    Parameters
    ----------
    names : dict of int to str
        ``id`` of a weight to the name of its layer, or its own.
    look : callable
        See `looking`.
    """

    def __init__(self, names: dict[int, str], look: Look) -> None:
        super().__init__()
        self._names, self._look = names, look
        self._running: list[tuple[str, torch.Size]] = []

    def watch(self, name: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Look at the product inside a layer whose forward makes a new weight, or turns its input, before that."""
        shape: Any = module.weight.shape
        begin = module.register_forward_pre_hook(lambda *_: self._running.append((name, shape)))
        end = module.register_forward_hook(lambda *_: self._forget(), always_call=True)
        return begin, end

    def _forget(self) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = _READ.get(getattr(func, "__name__", ""))
        if place is not None and len(args) > place + 1:
            name = self._reader(args[place + 1])
            if name is not None:
                with torch._C.DisableTorchFunction():
                    found = _looked_at(self._look, name, args[place])
                if found is not None:
                    args = (*args[:place], found, *args[place + 1 :])
        return func(*args, **(kwargs or {}))

    def _reader(self, weight: Any) -> str | None:
        """Return the layer, or the matrix, that a product with a weight belongs to; None if it was not asked for."""
        if id(weight) in self._names or not self._running:
            return self._names.get(id(weight))
        name, shape = self._running[-1]
        return name if getattr(weight, "shape", None) == shape else None


def _reads_as_given(module: nn.Module) -> bool:
    """Whether a layer hands its input on as it is; a forward of its own may turn or pad it first."""
    return type(module).forward.__module__.startswith("torch.")


_CONVOLUTIONS = [f"conv{also}{n}d" for n in (1, 2, 3) for also in ("", "_transpose")]
_READ = {"linear": 0, "matmul": 0, "__matmul__": 0, "mm": 0, "addmm": 1, **dict.fromkeys(_CONVOLUTIONS, 0)}
"""Products whose last operand is a weight, and convolutions: the place of what they read."""


def rows_of(module: nn.Module | None, x: Tensor) -> Tensor:
    """Return the input of a layer, or of a matrix (None), with one row a position and one column a channel.

    In float32 at least; of complex numbers the real and the imaginary part are a row each.
    """
    axis = -1 if module is None else unit_axis(module)
    rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
    if rows.is_complex():
        rows = as_real(rows).movedim(-1, 1).flatten(0, 1)
    return rows if rows.dtype == torch.float64 else rows.float()
