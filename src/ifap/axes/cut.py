"""Cut units out of a network: select positions of each tensor, then correct sizes; all of it can be undone."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ifap.axes.attention import adopt, can_adopt
from ifap.axes.calls import OWN_FORWARD, corrected_forward, is_corrected
from ifap.axes.corrections import Correction, Corrections
from ifap.axes.passes import modes
from ifap.axes.sizes import Key
from ifap.axes.slots import map_unique
from ifap.axes.tensors import holders, in_place_of
from ifap.axes.units import Graph, Indices, stay
from ifap.layers import is_norm, is_within, modules_by_name
from ifap.made_weights import made_tensors

Undo = Callable[[], None]


def cut_units(model: nn.Module, graph: Graph, removed: Indices) -> tuple[Graph, Undo]:
    """Cut units out of a network, in place.

    Returns the graph of the smaller network, and a function that undoes the cut. Raises a CannotFollowError if a size
    of the forward cannot follow; the network is unchanged then.
    """
    smaller = graph.without(removed)
    corrections = smaller.corrections()
    keep = _kept_positions(graph, removed)
    back: list[Undo] = []
    touched = _select(model, keep, back)
    modules = modules_by_name(model)
    adopt(model, [name for name, module in modules.items() if can_adopt(module) and _inside(name, touched)])
    apply_corrections(model, corrections, back)
    modules = modules_by_name(model)
    for name in touched.intersection(modules):  # a tensor may be in a list, which is no module
        _compute_again(modules[name], back)
        _follow_shapes(modules[name], back)

    def undo() -> None:
        for step in reversed(back):
            step()

    return smaller, undo


def _compute_again(module: nn.Module, back: list[Undo]) -> None:
    """Recompute weights that hooks of torch keep as plain attributes: these have the old widths."""
    hooks = [each for each in module._forward_pre_hooks.values() if type(each).__module__.startswith("torch.nn.utils")]
    if hooks:
        back += [_restoring(module, key, old) for key, old in module.__dict__.items() if isinstance(old, Tensor)]
        # In training a spectral norm would go on with its power iteration.
        with torch.no_grad(), modes(module, training=False):
            for hook in hooks:
                hook(module, ())


def _inside(name: str, touched: set[str]) -> bool:
    return any(is_within(each, name) for each in touched)


def _kept_positions(graph: Graph, removed: Indices) -> dict[str, dict[int, Tensor]]:
    """Return the positions that stay for each dimension that loses any, by tensor."""
    alive = np.ones(graph.num_units, dtype=bool)
    alive[removed] = False
    keep: dict[str, dict[int, Tensor]] = defaultdict(dict)
    left = map_unique(graph.unit_of, lambda units: torch.from_numpy(np.flatnonzero(stay(units, alive))))
    for places, units, positions in zip(graph.structure.places, graph.unit_of, left, strict=True):
        if len(positions) < len(units):
            for place in places:
                keep[place.tensor][place.dim] = positions
    return keep


Lost = tuple[int, Tensor]
"""A dimension of a tensor, and the positions of it that are removed."""


def lost_positions(graph: Graph, removed: Indices) -> dict[str, list[Lost]]:
    """Return for each tensor the removed positions by dimension."""
    lost: dict[str, list[Lost]] = defaultdict(list)
    for places, units in zip(graph.structure.places, graph.unit_of, strict=True):
        gone = torch.from_numpy(np.flatnonzero(np.isin(units, removed)))
        for place in places if len(gone) else ():
            lost[place.tensor].append((place.dim, gone))
    return lost


def scale_positions(tensor: Tensor, dim: int, positions: Tensor, factor: float) -> None:
    """Multiply some positions of a dimension by a factor, in place."""
    at = positions.to(tensor.device)
    tensor.index_copy_(dim, at, tensor.index_select(dim, at) * factor)


def without_positions(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Return a tensor without some positions of a dimension."""
    stays = torch.ones(tensor.shape[dim], dtype=torch.bool)
    stays[positions] = False
    return tensor.index_select(dim, stays.nonzero().flatten().to(tensor.device))


def _select(model: nn.Module, keep: dict[str, dict[int, Tensor]], back: list[Undo]) -> set[str]:
    """Replace tensors by selections of their positions in every module; returns the modules that hold any."""
    touched: set[str] = set()
    names: dict[int, str] = {}
    made: dict[int, Tensor] = {}
    for name, tensor, put in list(holders(model)):
        first = names.setdefault(id(tensor), name)
        if first not in keep:
            continue
        if id(tensor) not in made:
            made[id(tensor)] = selected(tensor, keep[first])
        put(made[id(tensor)])
        back.append(partial(put, tensor))
        touched.add(layer_of(name))
    return touched


def layer_of(tensor: str) -> str:
    """Return the name of the layer that holds a tensor, also one that a parametrization makes a weight from."""
    owner = tensor.rpartition(".")[0]
    return owner.rpartition("parametrizations.")[0].removesuffix(".") if "parametrizations." in owner else owner


def selected(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    """Return selected positions of a tensor; the result keeps being a parameter and its memory format."""
    new = tensor.detach()
    for dim, positions in sorted(keep.items()):  # whole rows first: they are copied at once
        new = new.index_select(dim, positions.to(tensor.device))
    return in_place_of(tensor, new)


# --- sizes ----------------------------------------------------------------------------------------


def apply_corrections(model: nn.Module, corrections: Corrections, back: list[Undo] | None = None) -> None:
    """Set the attributes and correct the calls that follow a cut, in place.

    `corrections` are those of `Graph.corrections` or of a plan. Functions that undo each step are added to `back`.
    """
    back = [] if back is None else back
    for key, value in corrections.attributes.items():
        _set_attribute(model, key, value, back)
    by_module: dict[str, list[Correction]] = defaultdict(list)
    for each in corrections.arguments:
        by_module[each.module].append(each)
    for name, module in modules_by_name(model).items():
        old = module.__dict__.get("forward")
        if is_corrected(old) and name not in by_module:
            _restoring(module, "forward", module.__dict__.get(OWN_FORWARD))()
            back.append(_restoring(module, "forward", old))
    for name, its in by_module.items():
        module = model.get_submodule(name)
        old = module.__dict__.get("forward")
        back.append(_restoring(module, "forward", old))
        if old is not None and not is_corrected(old):
            back.append(_restoring(module, OWN_FORWARD, module.__dict__.get(OWN_FORWARD)))
            module.__dict__[OWN_FORWARD] = old
        module.__dict__["forward"] = corrected_forward(module, its, corrections.sequences)


def _restoring(module: Any, name: str, old: Any) -> Undo:
    def restore() -> None:
        if old is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = old

    return restore


def _set_attribute(model: nn.Module, key: Key, value: int, back: list[Undo]) -> None:
    name, attribute, *path = key
    module = model.get_submodule(name)
    old = module.__dict__[attribute]
    back.append(_restoring(module, attribute, old))
    module.__dict__[attribute] = _with(old, path, value)


def _with(old: Any, path: list[Any], value: int) -> Any:
    """Return a copy of a value with the part at a path replaced."""
    if not path:
        return value
    if isinstance(old, dict):
        return {**old, path[0]: _with(old[path[0]], path[1:], value)}
    if isinstance(old, (tuple, list)):
        return type(old)(_with(item, path[1:], value) if place == path[0] else item for place, item in enumerate(old))
    twin = copy.copy(old)
    vars(twin)[path[0]] = value
    return twin


def _follow_shapes(module: Any, back: list[Undo]) -> None:
    """Set width attributes such as `in_features` from the tensor shapes."""
    for name, value in shape_attributes(module).items():
        if getattr(module, name, None) != value:
            back.append(_restoring(module, name, module.__dict__.get(name)))
            setattr(module, name, value)


def shape_attributes(module: Any) -> dict[str, Any]:
    """Return the width attributes of a layer of torch, computed from its tensor shapes."""
    weight = _weight_of(module)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _recurrent_widths(module)
    if isinstance(module, _ConvNd):
        return {} if weight is None else _convolution_widths(module, weight)
    for kind, names in _WIDTHS.items():
        if isinstance(module, kind):
            return {} if weight is None else {name: weight.shape[dim] for name, dim in names.items()}
    if isinstance(module, nn.MultiheadAttention):
        rows = module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight.chunk(3)[0]
        return {"num_heads": rows.shape[0] // module.head_dim}
    if is_norm(module) and isinstance(weight, Tensor):
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return {"normalized_shape": tuple(weight.shape)}
        return {"num_channels" if isinstance(module, nn.GroupNorm) else "num_features": weight.shape[0]}
    mean = module._buffers.get("running_mean")
    return {"num_features": mean.shape[0]} if is_norm(module) and isinstance(mean, Tensor) else {}


def _weight_of(module: Any) -> Tensor | None:
    """Return the weight of a layer, or the value of a weight that it computes from other tensors."""
    made: Tensor | None = module._parameters.get("weight")
    return next((each.value() for each in made_tensors(module) if each.name == "weight"), made)


_WIDTHS: dict[type[nn.Module], dict[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.Bilinear: {"out_features": 0, "in1_features": 1, "in2_features": 2},
    nn.Embedding: {"embedding_dim": 1},
    nn.EmbeddingBag: {"embedding_dim": 1},
    nn.PReLU: {"num_parameters": 0},
}
"""Width attributes of layers, with the dimension of the weight that each follows from."""


def _convolution_widths(module: Any, weight: Tensor) -> dict[str, int]:
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * module.groups}
    return {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}


def _recurrent_widths(module: Any) -> dict[str, int]:
    """Return the width attributes of a recurrent layer or cell, computed from its kernels."""
    kernels = module._parameters
    last = "_l0" if isinstance(module, nn.RNNBase) else ""
    read, again, projected = (kernels.get(f"weight_{which}{last}") for which in ("ih", "hh", "hr"))
    if read is None or again is None:
        return {}
    found = {"input_size": read.shape[1], "hidden_size": again.shape[1]}
    if projected is not None:
        found = {**found, "hidden_size": projected.shape[1], "proj_size": projected.shape[0]}
    return found


def follow_shapes(model: nn.Module, names: Iterable[str]) -> None:
    """Set the width attributes of the named layers from their tensor shapes, in place."""
    for name in names:
        _follow_shapes(model.get_submodule(name), [])
