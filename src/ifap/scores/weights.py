"""The weights that make units, in layers and outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ifap.axes.tensors import named_tensors, unmapped
from ifap.axes.units import Graph
from ifap.layers import is_conv, modules_by_name, unit_rows, unit_weights

Measure = Callable[[str, Tensor, int], None]


def is_weighted(module: Any) -> bool:
    """Whether a module is a convolution or linear layer, which are scored; embeddings and norms are not."""
    return is_conv(module) or isinstance(module, nn.Linear)


def rows_along(tensor: Tensor, dim: int) -> Tensor:
    """Return a tensor as a matrix with one row for each index of a dimension."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def weights_alone(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Return the weights outside layers that make units, one row an output position.

    The result maps the key of each producer to a view of its weight, of shape (outputs, weights of an output).
    """
    if not graph.structure.producers:
        return {}
    tensors = named_tensors(model)
    found = {}
    for _, name, dim, key in graph.structure.producers:
        if name in tensors:
            found[key] = rows_along(tensors[name].detach(), dim)
    return found


def all_weights(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Return the weights of layers, and those outside of them, that make units; one row an output."""
    modules = modules_by_name(model)
    layers = {name for _, name in graph.weight_slots() if name in modules and is_weighted(modules[name])}
    return {**{name: unit_weights(modules[name]) for name in layers}, **weights_alone(model, graph)}


def made_by_heads(graph: Graph) -> set[str]:
    """Return the layers and weights all of whose units are heads: the paper scores them as such."""
    heads = {unit for units in graph.heads for unit in units.tolist() if unit >= 0}
    if not heads:
        return set()
    found = set()
    for slot, name in graph.weight_slots():
        units = graph.unit_of[slot]
        free = units[units >= 0].tolist()
        if len(free) == len(units) and heads.issuperset(free):
            found.add(name)
    return found


def used_by_attention(model: nn.Module) -> set[str]:
    """Return the layers whose weights torch's attention uses without calling them."""
    return {
        f"{name}.out_proj" if name else "out_proj"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }


class WeightUses(TorchFunctionMode):
    """Pass the results of functions on weights outside layers to a callable while it is open.

    `names` are the weights to measure, and linear layers whose weight is used without a call of the layer.
    ``measure(name, output, axis)`` takes the name, the output, and the axis of its units, counted from the end.
    """

    def __init__(self, model: nn.Module, graph: Graph, names: set[str], measure: Measure) -> None:
        super().__init__()
        self._measure = measure
        tensors = named_tensors(model)
        self._known: dict[int, list[tuple[str, int]]] = {}
        for _, name, dim, key in graph.structure.producers:
            if key in names:
                self._known.setdefault(id(tensors[name]), []).append((key, dim))
        for name in names.intersection(modules := modules_by_name(model)):
            self._known[id(modules[name].weight)] = [(name, 0)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            for place, x in enumerate(args):
                for key, dim in self._known.get(id(x), ()) if isinstance(out, Tensor) else ():
                    is_left = name in _MATRICES and place == 0 and out.dim() > 1
                    makes, axis = (x.dim() - 2, -2) if is_left else (x.dim() - 1, -1)
                    if name.startswith(("conv", "linear")):
                        makes, axis = 0, 1 - x.dim() if name.startswith("conv") else -1
                    if dim == makes and out.shape[axis] == x.shape[dim]:
                        with torch._C.DisableTorchFunction():
                            self._measure(key, unmapped(out), axis)
        return out


_MATRICES = ("matmul", "__matmul__", "mm", "bmm")
_PRODUCTS = (*_MATRICES, "__rmatmul__", "linear", "addmm", "conv1d", "conv2d", "conv3d")


def by_unit(graph: Graph, values: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    """Add signed values of positions up over everything that makes a unit: shape (units,)."""
    totals = np.zeros(graph.num_units)
    for slot, name in graph.weight_slots():
        if name in values:
            units = graph.unit_of[slot]
            free = units >= 0
            np.add.at(totals, units[free], values[name].double().cpu().numpy()[free])
    return totals


__all__ = ["WeightUses", "by_unit", "made_by_heads", "unit_rows", "weights_alone"]
