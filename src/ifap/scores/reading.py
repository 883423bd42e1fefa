"""Observe the inputs of every layer that mixes channels while the network runs.

A *reader* of a unit is a convolution or linear layer that contracts the channel of the unit. What a unit means to the
network is what its readers make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ifap.axes.attention import adopted
from ifap.axes.running import Running
from ifap.axes.tensors import as_real, functorch, named_tensors
from ifap.axes.units import Graph, Indices
from ifap.layers import contracted_axis, modules_by_name, shared_parameters, unit_axis
from ifap.made_weights import takes_weight
from ifap.scores.matrices import READ, Matrix, Place, place_of
from ifap.scores.weights import used_by_attention

Look = Callable[[str, Tensor], Tensor | None]
"""Takes the name of a layer and what it is about to read; what it returns, if anything, is read instead."""


class Reader(NamedTuple):
    """A layer or matrix that reads units.

    Parameters
    ----------
    layer : nn.Module or Matrix
        A convolution or linear layer, or what stands for one.
    units : integer array, shape (inputs,)
        The unit of each input channel; -1 where none can go.
    can_change : bool
        Whether it can be refitted: of real numbers, and with a weight that nothing else uses.
    """

    layer: Any
    units: Indices
    can_change: bool

    @property
    def reads_any(self) -> bool:
        """Whether any unit that can go is among its inputs."""
        return bool((self.units >= 0).any())


def readers(model: nn.Module, graph: Graph, found: Mapping[str, Matrix] | None = None) -> dict[str, Reader]:
    """Return every layer that reads units, by its name, and the matrices that were `found` outside of layers."""
    modules = modules_by_name(model)
    slots = {name: graph.slot(name, "in") for name in modules}
    units = {name: graph.unit_of[slot] for name, slot in slots.items() if slot is not None}
    made = _by_made_weights(model, graph)
    units |= {name: those for name, those in made.items() if name not in units or (units[name] < 0).all()}
    shared = {id(module) for pairs in shared_parameters(model) for module, _ in pairs}
    layers = {name: Reader(modules[name], those, _can_change(modules[name], shared)) for name, those in units.items()}
    return layers | {name: Reader(matrix, matrix.units, matrix.can_change) for name, matrix in (found or {}).items()}


def _can_change(module: nn.Module, shared: set[int]) -> bool:
    return shared.isdisjoint(map(id, module.modules())) and takes_weight(module)


def _by_made_weights(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the readers of layers that make their weight from a tensor of its shape, as a weight norm does."""
    modules, tensors, found = modules_by_name(model), named_tensors(model), {}
    for index, slot in enumerate(graph.slots):
        name = next((outer for outer in owners(slot.name) if contracted_axis(modules.get(outer)) == slot.side), None)
        if name is not None and slot.name in tensors and tensors[slot.name].shape == modules[name].weight.shape:
            found[name] = graph.unit_of[index]
    return found


def owners(name: str) -> Iterator[str]:
    """Yield the names of the modules that a tensor is in, from the innermost one on."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@contextmanager
def looking(model: nn.Module, layers: Mapping[str, Any], look: Look) -> Iterator[None]:
    """Show `look` what layers, and matrices outside of them, read each time that they do inside the block."""
    silent = used_by_attention(model)
    alone = {name: layer for name, layer in layers.items() if isinstance(layer, Matrix) or name in silent}
    own = {name for name, layer in layers.items() if name not in alone and not _reads_as_given(layer)}
    with ExitStack() as stack:
        for name in layers.keys() - alone.keys() - own:
            hook = layers[name].register_forward_pre_hook(_hook(name, look), with_kwargs=True)
            stack.callback(hook.remove)
        if alone:
            stack.enter_context(adopted(model))
        if alone or own:
            places = {_place(layer): name for name, layer in alone.items()}
            running = stack.enter_context(Running({name: layers[name] for name in own}))
            stack.enter_context(_Products(places, {name: layers[name].weight.shape for name in own}, running, look))
        yield


def _place(layer: Any) -> Place:
    return layer.place if isinstance(layer, Matrix) else place_of(layer.weight)


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
    """Observe the inputs of products with certain weights.

    `names` maps the place of a weight, see `matrices.place_of`, to the name of its reader. `shapes` maps a layer to the
    shape of its weight, if its forward makes a new weight or turns its input before the product. `look` is that of
    `looking`.
    """

    def __init__(self, names: dict[Place, str], shapes: dict[str, torch.Size], running: Running, look: Look) -> None:
        super().__init__()
        self._names, self._shapes, self._running, self._look = names, shapes, running, look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = READ.get(getattr(func, "__name__", ""))
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
        found = self._names.get(place_of(weight)) if self._names and isinstance(weight, Tensor) else None
        if found is not None:
            return found
        name = self._running.module
        return name if name in self._shapes and getattr(weight, "shape", None) == self._shapes[name] else None


def _reads_as_given(module: nn.Module) -> bool:
    """Whether a layer computes on its input unchanged; a custom forward may permute or pad it first."""
    return type(module).forward.__module__.startswith("torch.")


def rows_of(layer: Any, x: Tensor) -> Tensor:
    """Return the input of a layer, or of a matrix, with one row a position and one column a channel.

    In float32 at least; of complex numbers the real and the imaginary part are a row each.
    """
    axis = unit_axis(layer)
    rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
    if rows.is_complex():
        rows = as_real(rows).movedim(-1, 1).flatten(0, 1)
    return rows if rows.dtype == torch.float64 else rows.float()
