"""Turn traced axes into units: choose the axes to cut, tie equal counts, and pin the rest with reasons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from torch import nn

from ifap.axes.blocks import same_roles
from ifap.axes.choosing import choose, produced_axes
from ifap.axes.code import makes_own_copies
from ifap.axes.corrections import CannotFollowError, Sizes
from ifap.axes.expressions import Atom, Expression, Reason, atoms_of, pin
from ifap.axes.forms import STAYS, Forms, linear
from ifap.axes.sizes import Key
from ifap.axes.slots import find_slots, groups_of, layer_of, positions
from ifap.axes.trace import Axes
from ifap.axes.units import Graph, Producer, Structure, sizes_at, trial_counts
from ifap.layers import is_producer, modules_by_name, parameters_by_name


def find_units(
    model: nn.Module,
    axes: Axes,
    attributes: dict[Key, int],
    *,
    ignored: Iterable[str] = (),
    spatial_only: bool = False,
    units: str = "auto",
    keep_embeddings: bool = False,
    uniform: bool = False,
) -> Graph:
    """Turn traced axes into the units of a network.

    `attributes` are the integer attributes of the network. `ignored` names layers and tensors whose axes are pinned.
    With `spatial_only` only units that a convolution larger than 1x1 produces can be removed. `units` is one of
    `ifap.axes.units.UNITS`: with ``inner`` the inner factor of a product of axes is cut, else the outer one, such as
    heads or groups. With `keep_embeddings` the width of every embedding that feeds the network is pinned. With
    `uniform` axes with the same role in repeated blocks keep the same number of units.
    """
    modules = modules_by_name(model)
    _pin_ignored(axes, modules, set(ignored), keep_embeddings=keep_embeddings)
    _pin_unfollowed(axes)
    forgetful = {name for name, module in modules.items() if makes_own_copies(module)}
    sizes = Sizes(axes.recorders, attributes, axes.unsteady, forgetful)
    axes.ties += [(one, other, Reason("its size is compared with another")) for one, other in sizes.equal_axes()]
    parameters = set(parameters_by_name(model))
    while True:
        chosen = choose(axes, modules, inner=units == "inner", spatial_only=spatial_only)
        failed = _settle(axes, chosen)
        if failed is None:
            graph = _build(axes, modules, chosen, sizes, parameters, uniform=uniform)
            failed = _try_sizes(graph)
        if failed is None:
            return graph
        for axis, reason in failed:
            pin(axis, reason)


Failed = list[tuple[Expression, Reason]]


def _pin_ignored(axes: Axes, modules: dict[str, nn.Module], ignored: set[str], *, keep_embeddings: bool) -> None:
    for name, dims in axes.dims.items():
        owner = name.rpartition(".")[0]
        module = modules.get(owner)
        if owner in ignored and name in axes.producers:
            for place in axes.producers[name]:
                pin(dims[place], Reason("ignored by the caller"))
        elif (owner in ignored and not (module is not None and is_producer(module))) or name in ignored:
            for dim in dims:
                pin(dim, Reason("ignored by the caller"))
        if keep_embeddings and isinstance(module, nn.Embedding) and not any(a.is_group for a in atoms_of(dims[-1])):
            pin(dims[-1], Reason("embeddings are kept"))


def _pin_unfollowed(axes: Axes) -> None:
    """Pin the axes of tensors that no forward used."""
    for name, dims in axes.dims.items():
        if name not in axes.reached:
            for dim in dims:
                pin(dim, Reason("no forward uses it"))


# --- equal counts ---------------------------------------------------------------------------------


def _settle(axes: Axes, chosen: dict[Atom, int]) -> Failed | None:
    """Check that ties concern whole axes; returns the axes to pin otherwise."""
    failed: Failed = []
    for a, b, reason in axes.ties:
        apart = _apart(a, b, chosen)
        left = {} if apart is None else {group: number for group, number in apart.items() if group != STAYS}
        if apart is None or (left and (len(left) != 2 or sum(apart.values()) or STAYS in apart)):
            failed += [(a, reason), (b, reason)]
    failed = [(axis, reason) for axis, reason in failed if any(atom in chosen for atom in atoms_of(axis))]
    return failed or None


def _apart(a: Expression, b: Expression, chosen: dict[Atom, int]) -> dict[int, int] | None:
    """Return by how much two sizes differ, in units of each group; None where one is no sum of groups."""
    mine, theirs = linear(a, chosen), linear(b, chosen)
    if mine is None or theirs is None:
        return None
    differences = {group: mine.get(group, 0) - theirs.get(group, 0) for group in [*mine, *theirs]}
    return {group: number for group, number in differences.items() if number}


def _ties(axes: Axes, chosen: dict[Atom, int], alike: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the groups that must keep the same number of units: by the forward, or as they are `alike`."""
    parent = list(range(len(chosen)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for a, b, _ in axes.ties:
        differ = [group for group in _apart(a, b, chosen) or () if group != STAYS]
        if len(differ) == 2:
            parent[max(map(root, differ))] = min(map(root, differ))
    for members in alike:
        for group in members[1:]:
            pair = root(members[0]), root(group)
            parent[max(pair)] = min(pair)
    classes: dict[int, list[int]] = defaultdict(list)
    for index in range(len(chosen)):
        classes[root(index)].append(index)
    return [tuple(members) for members in classes.values() if len(members) > 1]


def _multiples(axes: Axes, chosen: dict[Atom, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for axis, multiple in axes.aligned:
        for group, number in (linear(axis, chosen) or {}).items():
            if group >= 0:
                needed = multiple // math.gcd(multiple, number)
                found[group] = math.lcm(found.get(group, 1), needed)
    return {group: number for group, number in found.items() if number > 1}


# --- building -------------------------------------------------------------------------------------


def _build(
    axes: Axes,
    modules: dict[str, nn.Module],
    chosen: dict[Atom, int],
    sizes: Sizes,
    parameters: set[str],
    *,
    uniform: bool,
) -> Graph:
    first_unit = np.cumsum([0, *(atom.size for atom in chosen)])
    numbers = {atom: np.arange(first_unit[i], first_unit[i + 1]) for atom, i in chosen.items()}
    slots, places, unit_of = find_slots(axes, modules, numbers)
    heads = {call: positions(axis, numbers) for call, axis in axes.attention.items() if _is_heads(axis, chosen)}
    group_of = np.repeat(np.arange(len(chosen)), [atom.size for atom in chosen]).astype(np.int64)
    producers: list[Producer] = []
    for index, (name, side) in enumerate(slots):
        dim = int(side.removeprefix("dim")) if side.startswith("dim") else -1
        if dim in axes.producers.get(name, ()):
            is_first = all(each.weight != name for each in producers)
            producers.append(Producer(index, name, dim, name if is_first else f"{name}[{dim}]"))
    groups = groups_of(slots, unit_of, group_of, len(chosen))
    alike = same_roles(groups, [atom.size for atom in chosen], modules) if uniform else []
    structure = Structure(
        slots=slots,
        places=places,
        groups=groups,
        tied=_ties(axes, chosen, alike),
        multiples=_multiples(axes, chosen),
        producers=producers,
        pinned=_pinned(axes, modules),
        forms=Forms(axes, chosen, parameters),
        atoms=chosen,
        sizes=sizes,
        original_widths=[len(units) for units in unit_of],
        forward=axes.forward,
        averaged={index: atom.averaged for atom, index in chosen.items() if atom.averaged},
        attention=[*heads],
    )
    return Graph(structure, unit_of, group_of, [*heads.values()])


def _is_heads(axis: Expression, chosen: dict[Atom, int]) -> bool:
    """Whether an axis counts heads that are units: groups of products of activations."""
    return any(atom in chosen and atom.is_group for atom in atoms_of(axis))


def _pinned(axes: Axes, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Return, for each layer whose outputs all stay, the reason."""
    reasons: dict[str, list[Reason | None]] = defaultdict(list)
    for name, axis in produced_axes(axes):
        pins = [atom.pin for atom in atoms_of(axis)]
        if pins:
            reasons[layer_of(name, modules)].append(pins[0] if all(pins) else None)
    return {
        layer: first.text + (f" (in '{first.module}')" if first.module else "")
        for layer, found in reasons.items()
        if all(found) and (first := found[0]) is not None
    }


def _try_sizes(graph: Graph) -> Failed | None:
    """Test on trial cuts that the sizes of the forward can follow; returns the axes that must stay otherwise."""
    structure = graph.structure
    for share in (0.0, 0.5, 0.77):
        try:
            structure.sizes.follow(sizes_at(structure.atoms, trial_counts(graph, share)))
        except CannotFollowError as error:
            reason = Reason(error.text, error.module)
            failed: Failed = [
                (axis, reason) for axis in error.axes if any(a in structure.atoms for a in atoms_of(axis))
            ]
            if failed:
                return failed
    return None
