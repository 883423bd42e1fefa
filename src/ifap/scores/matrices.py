"""Find matrices outside of layers that read units: in torch's attention, or in products of a forward.

No module says which product reads with them, and with which bias. One forward of the network does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ifap.axes.attention import adopted
from ifap.axes.tensors import named_tensors
from ifap.axes.units import Graph, Indices
from ifap.data import refuse_test
from ifap.forward import Inputs, evaluation_mode, tensors
from ifap.layers import contracted_axis, modules_by_name, shared_parameters
from ifap.scores.flow import forwards

_CONVOLUTIONS = [f"conv{also}{n}d" for n in (1, 2, 3) for also in ("", "_transpose")]
READ = {"linear": 0, "matmul": 0, "__matmul__": 0, "mm": 0, "addmm": 1, **dict.fromkeys(_CONVOLUTIONS, 0)}
"""Products whose last operand is a weight, and convolutions: the place of what they read."""

_OTHER_PRODUCTS = {
    "__rmatmul__", "bmm", "baddbmm", "addbmm", "einsum", "tensordot", "bilinear", "grouped_mm", "_grouped_mm",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
}  # fmt: skip

Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def place_of(tensor: Tensor) -> Place:
    """Return a key of a view: equal for two views of the same part of one tensor with equal strides."""
    base = tensor if tensor._base is None else tensor._base
    return id(base), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())


@dataclass
class Matrix:
    """A matrix, or the part of one, that one product reads its input with; to be used like a linear layer.

    Attributes
    ----------
    weight : Tensor
        Of shape (outputs, inputs), a view of the tensor of the network.
    bias : Tensor or None
        Of shape (outputs,), a view of a parameter.
    place : tuple
        Which part of which tensor the product is given; see `place_of`.
    units : integer array, shape (inputs,)
        The unit of each input; -1 where none can go.
    can_change : bool
        Whether it may be refitted: a parameter that nothing but such products uses.
    """

    weight: Tensor
    bias: Tensor | None
    place: Place
    units: Indices
    can_change: bool = True


class Found(NamedTuple):
    """The matrices, and the names of parameters that read units in products of other kinds."""

    by_name: dict[str, Matrix]
    others: set[str]


class Contraction(NamedTuple):
    """A parameter, its dimension that contracts units, and the unit of each position there; -1 where none can go."""

    name: str
    tensor: nn.Parameter
    dim: int
    units: Indices


def contractions(model: nn.Module, graph: Graph) -> Iterator[Contraction]:
    """Yield the parameters that may contract units; the weight of a layer has the name of the layer."""
    held, modules = named_tensors(model), modules_by_name(model)
    makes = {each.slot for each in graph.structure.producers}
    for index, slot in enumerate(graph.slots):
        side, tensor = slot.side, held.get(slot.name)
        if side == "in" and slot.name in modules:
            side, tensor = contracted_axis(modules[slot.name]) or "", held.get(f"{slot.name}.weight")
        if index in makes or not side.startswith("dim") or not isinstance(tensor, nn.Parameter):
            continue
        if tensor.is_floating_point():
            yield Contraction(slot.name, tensor, int(side.removeprefix("dim")), graph.unit_of[index])


def matrices(model: nn.Module, graph: Graph, batches: Iterable[Inputs]) -> Found:
    """Find the matrices outside of layers that read units.

    Runs the network on the first batch if it has a parameter that may be such a matrix.
    """
    wanted = _candidates(model, graph)
    if not wanted:
        return Found({}, set())
    refuse_test(batches, "scoring")
    finding = _Finding(model, wanted)
    with evaluation_mode(model), torch.no_grad(), adopted(model), finding:
        for _ in forwards(model, itertools.islice(batches, 1)):
            pass
    return finding.found()


def _candidates(model: nn.Module, graph: Graph) -> list[Contraction]:
    """Return the parameters that may contract units and are no layer's weight."""
    modules = modules_by_name(model)

    def is_alone(each: Contraction) -> bool:
        owner = modules.get(each.name.rpartition(".")[0])
        return each.name not in modules and contracted_axis(owner) != f"dim{each.dim}"

    found = contractions(model, graph)
    return [each for each in found if each.tensor.dim() > 1 and (each.units >= 0).any() and is_alone(each)]


class _Finding(TorchFunctionMode):
    """Record which functions use which parts of the wanted parameters while it is open."""

    def __init__(self, model: nn.Module, wanted: list[Contraction]) -> None:
        super().__init__()
        self._wanted = {id(each.tensor): each for each in wanted}
        self._parameters = {id(parameter) for parameter in model.parameters()}
        shared = shared_parameters(model)
        self._used_elsewhere = {id(getattr(*pair)) for pairs in shared for pair in pairs}
        self._matrices: dict[str, Matrix] = {}
        self._others: set[str] = set()

    def found(self) -> Found:
        """Return the matrices and the other parameters."""
        by_id = {id(each.tensor): each.name for each in self._wanted.values()}
        shared = {by_id[number] for number in self._used_elsewhere if number in by_id}
        for matrix in self._matrices.values():
            matrix.can_change = by_id[matrix.place[0]] not in shared
        return Found(self._matrices, self._others)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        place = READ.get(name)
        weight = args[place + 1] if place is not None and len(args) > place + 1 else None
        for tensor in tensors((args, kwargs)):
            candidate = self._wanted.get(place_of(tensor)[0])
            if candidate is None or (tensor is weight and self._is_matrix(candidate, name, args)):
                continue
            if name in READ or name in _OTHER_PRODUCTS:
                self._others.add(candidate.name)
            if any(place_of(each)[0] != id(candidate.tensor) for each in tensors(out)):  # more than another view
                self._used_elsewhere.add(id(candidate.tensor))
        return out

    def _is_matrix(self, candidate: Contraction, product: str, args: Any) -> bool:
        """Note the part of a parameter that a product is given, if it is a matrix with all the units."""
        given: Tensor = args[READ[product] + 1]
        base, dim, own = candidate.tensor, candidate.dim, 1 if product == "linear" else 0
        if product.startswith("conv") or base.dim() != 2 or given.dim() != 2:
            return False
        sizes = given.shape[own], given.stride(own), given.stride(1 - own)
        if sizes != (base.shape[dim], base.stride(dim), base.stride(1 - dim)):
            return False
        outputs = given.shape[1 - own]
        name = candidate.name
        if outputs < base.shape[1 - dim]:
            first = (given.storage_offset() - base.storage_offset()) // base.stride(1 - dim)
            name += f"[{'' if dim else ':, '}{first}:{first + outputs}]"
        weight = given.detach() if own else given.detach().t()
        bias = {"linear": args[2] if len(args) > 2 else None, "addmm": args[0]}.get(product)
        self._matrices.setdefault(name, Matrix(weight, self._bias(bias, outputs), place_of(given), candidate.units))
        return True

    def _bias(self, added: Any, outputs: int) -> Tensor | None:
        """Return the bias of a product if it is a parameter, or a part of one, with a value for each output."""
        if not isinstance(added, Tensor) or added.shape != (outputs,) or place_of(added)[0] not in self._parameters:
            return None
        return added.detach()
