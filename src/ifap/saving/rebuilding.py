"""Give an unpruned network the structure that a plan describes: a plan can do no more than name a wrong size."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ifap.axes.attention import ShapedAttention, adopt
from ifap.axes.corrections import Callee, Correction, Corrections
from ifap.axes.cut import apply_corrections, follow_shapes, layer_of, selected
from ifap.axes.sequences import ANYTHING, Sequence, from_lists
from ifap.axes.slots import slot_of
from ifap.axes.tensors import USUAL, holders, in_place_of, named_tensors
from ifap.errors import PlanError, nearest
from ifap.layers import add_bias, has_plain_forward, modules_by_name, sides
from ifap.plan import AttributeSize, Plan, noted_plan

Kept = Mapping[str, Mapping[str, list[int]]]


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what is stored of a network: its parameters and the buffers that are saved, by all their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in module._buffers.items():
            if value is not None and key not in module._non_persistent_buffers_set:
                found[f"{name}.{key}" if name else key] = value
    return found


def match_type(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the floats of a network the type that they are stored in, where they share one."""
    types = {stored.dtype for stored in weights.values() if stored.is_floating_point()}
    own = {tensor.dtype for tensor in stored_tensors(model).values() if tensor.is_floating_point()}
    if len(types) == len(own) == 1 and types != own:
        model.to(types.pop())


def rebuild(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """Give a network the structure of a plan and the stored weights, in place.

    `model` is the unpruned network, `plan` is of version 2, and `weights` holds the stored tensors without masks.
    Raises a PlanError if the plan or the tensors belong to another network.
    """
    adopt(model, plan.attention)
    shaped = {name for name, module in model.named_modules() if isinstance(module, ShapedAttention)}
    missing = set(plan.attention) - shaped
    if missing:
        raise PlanError(f"the network has no attention module of torch '{min(missing)}'")
    _add_biases(model, plan)
    touched = put_weights(model, plan, weights)
    apply_corrections(model, _corrections(model, plan))
    follow_shapes(model, touched)


def put_weights(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> set[str]:
    """Put stored tensors in place of those of a network, and cut others; returns the modules whose widths change."""
    kept, targets = _kept_by_tensor(model, _left_of(model, plan.kept)), stored_tensors(model)
    _check_names(plan, weights, targets)
    _check_shapes(weights, targets, kept)
    wanted = {**weights, **{alias: weights[name] for alias, name in plan.shared.items()}}
    return _put(model, targets, wanted, kept)


def _left_of(model: nn.Module, kept: Kept) -> Kept:
    """Return positions of a network that was pruned before; a plan counts those of the unpruned one."""
    former = noted_plan(model)
    if former is None:
        return kept

    def left(name: str, side: str) -> list[int]:
        places = {position: place for place, position in enumerate(former.kept.get(name, {}).get(side, ()))}
        if places and not places.keys() >= set(kept[name][side]):
            raise PlanError(f"kept: the builder's network was pruned before and lost other units of '{name}'")
        return [places[position] for position in kept[name][side]] if places else kept[name][side]

    return {name: {side: left(name, side) for side in its} for name, its in kept.items()}


def _add_biases(model: nn.Module, plan: Plan) -> None:
    """Give the layers that a plan names the bias that they lack."""
    modules, former = modules_by_name(model), noted_plan(model)
    for name in set(plan.biases).difference(former.biases if former else ()):
        module = modules.get(name)
        if module is None or not has_plain_forward(module) or module.bias is not None:
            raise PlanError(f"biases: the network has no layer '{name}' without a bias that could be given one")
        add_bias(module)


def _check_names(plan: Plan, weights: Mapping[str, Tensor], targets: Mapping[str, Any]) -> None:
    """Refuse tensors that the network does not have, and a lack of those that it has."""
    names = {*weights, *plan.shared}
    for alias, name in plan.shared.items():
        if name not in weights:
            raise PlanError(f"shared tensor '{alias}' refers to '{name}', which is not stored")
    for name in sorted(names - set(targets)):
        raise PlanError(f"the network has no tensor '{name}': {nearest(name, targets)}")
    for name in sorted(set(targets) - names):
        raise PlanError(f"tensor '{name}' of the network is not stored")


def _kept_by_tensor(model: nn.Module, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Return the positions that each dimension of each tensor keeps, for those that lose any."""
    modules, states = modules_by_name(model), absent_states(model, kept)
    found: dict[str, dict[int, Tensor]] = {}
    used: set[tuple[str, str]] = set()
    for name, tensor in named_tensors(model).items():
        owner, _, leaf = name.rpartition(".")
        for dim, width in enumerate(tensor.shape):
            slot = slot_of(name, owner, leaf, dim, modules.get(owner))
            named = [(name, f"dim{dim}"), (slot.name, slot.side)]
            if tensor.dim() == 1 and (leaf == "bias" or isinstance(modules.get(owner), nn.PReLU)):
                # plans before version 0.3 name the layer
                named.append((owner, "out"))
            where = next((each for each in named if each[1] in kept.get(each[0], {})), named[0])
            left = kept.get(where[0], {}).get(where[1])
            if left is None and dim == 1 and _is_plain_convolution(modules.get(owner)):
                left = _left_in_groups(kept.get(owner, {}).get("in", ()), width)
            if left is None:
                continue
            used.add(where)
            check_positions(*where, left, width)
            found.setdefault(name, {})[dim] = torch.tensor(left)
    layers = {name for name, module in model.named_modules(remove_duplicate=False) if sides(module)}
    for name, its in kept.items():
        if name in states:
            continue
        for side in its:
            # The tensor of a layer may bear the name of another's, or hold no dimension of the side.
            if (name, side) not in used and (name not in layers or side not in ("in", "out")):
                raise PlanError(f"kept: the network has no '{side}' side of '{name}'")
    return found


def _is_plain_convolution(module: Any) -> bool:
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)


def _left_in_groups(left: Collection[int], width: int) -> list[int] | None:
    """Return the inputs that are left within each group, where a later cut took some from the only group left."""
    inside = sorted({position % width for position in left})
    return inside if 0 < len(inside) < width else None


def absent_states(model: nn.Module, kept: Kept) -> list[str]:
    """Return the plain attributes that held a tensor of the pruned network and hold none of this one.

    A forward sets such a tensor, for example the state of a recurrent cell, and a new network has not run yet.
    """
    held = {*modules_by_name(model), *named_tensors(model), *stored_tensors(model)}
    return [name for name, its in kept.items() if name not in held and all(side.startswith("dim") for side in its)]


def check_positions(name: str, side: str, left: list[int], width: int) -> None:
    """Refuse positions of a side that the unpruned network does not have."""
    if not left or any(a >= b for a, b in itertools.pairwise(left)) or left[-1] >= width:
        raise PlanError(f"kept: '{name}' {side}: positions must ascend within 0..{width - 1}")


def _check_shapes(
    weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], kept: Mapping[str, dict[int, Tensor]]
) -> None:
    for name, stored in weights.items():
        old, left = targets[name], kept.get(name, {})
        if stored.dtype != old.dtype:
            raise PlanError(f"tensor '{name}' is stored as {stored.dtype}, the network has {old.dtype}")
        wanted = [len(left[dim]) if dim in left else size for dim, size in enumerate(old.shape)]
        if list(stored.shape) != wanted:
            raise PlanError(
                f"tensor '{name}' is stored as {list(stored.shape)}, the plan keeps {wanted} of {list(old.shape)}"
            )


def _put(
    model: nn.Module, targets: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kept: Mapping[str, dict[int, Tensor]]
) -> set[str]:
    """Put stored tensors, and cut others, in place of the old; returns the modules whose widths change."""
    names = {id(tensor): name for name, tensor in reversed(list(targets.items()))}
    made: dict[int, Tensor] = {}
    touched: set[str] = set()
    for name, tensor, put in list(holders(model)):
        stored = wanted.get(names.get(id(tensor), ""))
        if id(tensor) not in made:
            if stored is not None:
                made[id(tensor)] = in_place_of(tensor, stored)
            elif name in kept:
                made[id(tensor)] = selected(tensor, kept[name])
            else:
                continue
        if made[id(tensor)].shape != tensor.shape:
            touched.add(layer_of(name))
        put(made[id(tensor)])
    modules = modules_by_name(model)
    return {name for name in touched if name in modules}


def _corrections(model: nn.Module, plan: Plan) -> Corrections:
    modules = modules_by_name(model)
    for name in [*(each.module for each in plan.attributes), *(each.module for each in plan.calls)]:
        if name not in modules:
            raise PlanError(f"sizes: the network has no module '{name}': {nearest(name, modules)}")
    for size in plan.attributes:
        _check_attribute(modules[size.module], size)
    for each in plan.calls:
        if (each.value is None) == (each.fraction is None) or (each.fraction is not None and not each.fraction[1]):
            raise PlanError(f"sizes: '{each.module}' {each.function}: give a value or a fraction")
    return Corrections(
        {(each.module, *each.path): each.value for each in plan.attributes},
        [
            Correction(
                each.module,
                each.function,
                each.ordinal,
                tuple(each.path),
                each.value,
                None if each.fraction is None else (each.fraction[0], each.fraction[1]),
                each.before,
            )
            for each in plan.calls
        ],
        _sequences(plan),
    )


def _sequences(plan: Plan) -> dict[Callee, Sequence]:
    """Return the calls of a plan; one without `sequences` only says how many there are, and whether they repeat."""
    found: dict[Callee, Sequence] = {}
    for listed in plan.sequences:
        try:
            forms = tuple(map(from_lists, listed.forms))
        except ValueError as error:
            raise PlanError(f"sequences: '{listed.module}' {listed.function}: {error}") from None
        if listed.again >= len(forms):
            raise PlanError(f"sequences: '{listed.module}' {listed.function}: again={listed.again} is no call of it")
        found[listed.module, listed.function] = Sequence(forms, listed.again)
    for each in plan.calls:
        callee = (each.module, each.function)
        known = found.get(callee)
        if plan.sequences and (known is None or each.ordinal >= len(known.forms)):
            raise PlanError(f"sequences: '{each.module}' {each.function} has no call {each.ordinal}")
        if not plan.sequences:
            number = each.every or max(each.ordinal + 1, len(known.forms) if known else 0)
            found[callee] = Sequence((ANYTHING,) * number, 0 if each.every else None)
    return found


def _check_attribute(module: Any, size: AttributeSize) -> None:
    """Refuse all but an integer that the module, a tuple of it, or an object of settings already has."""
    value: Any = module.__dict__
    for step in size.path:
        held: Any = value if isinstance(value, (dict, list, tuple)) else getattr(value, "__dict__", {})
        inside = step in held if isinstance(held, dict) else isinstance(step, int) and 0 <= step < len(held)
        if not inside or (value is module.__dict__ and step in USUAL):
            value = None
            break
        value = held[step]
    if type(value) is not int:
        raise PlanError(f"sizes: '{size.module}' has no number '{'.'.join(map(str, size.path))}'")
