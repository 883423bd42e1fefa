"""The widths that units cut: the sides of layers and the dimensions of tensors, with the unit of each position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from ifap.axes.expressions import Atom, Expression, Product, parts_of, resolve, size_of
from ifap.axes.trace import Axes
from ifap.layers import is_depthwise, is_norm, is_producer

Indices = npt.NDArray[np.int64]
T = TypeVar("T")


class Slot(NamedTuple):
    """One width: a side (``out`` or ``in``) of a layer, or a dimension (``dimN``) of a tensor outside layers."""

    name: str
    side: str


class Place(NamedTuple):
    """One dimension of one tensor."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Group:
    """The units of one axis.

    Parameters
    ----------
    index : int
        Position among the groups of the graph.
    slots : tuple of Slot
        The widths that a unit of this group cuts.
    width : int
        Positions that one unit takes on its widest slot (1 for a channel, the head width for a head).
    """

    index: int
    slots: tuple[Slot, ...]
    width: int

    @property
    def name(self) -> str:
        """The first layer that produces these units."""
        return next((slot.name for slot in self.slots if slot.side == "out"), self.slots[0].name)


Found = dict[Slot, tuple[list[Place], Indices]]
"""Each width, with the dimensions that it stands for and the unit of each position."""


def find_slots(
    axes: Axes, modules: dict[str, nn.Module], numbers: dict[Atom, Indices]
) -> tuple[list[Slot], list[list[Place]], list[Indices]]:
    """Return every width, the dimensions that it stands for, and the unit of each of its positions."""
    found: Found = {}
    order = {name: index for index, name in enumerate(modules)}
    for name in sorted(axes.dims, key=lambda name: order.get(name.rpartition(".")[0], len(order))):
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        for dim, expression in enumerate(axes.dims[name]):
            if size_of(expression) > 1:
                units = positions(expression, numbers)
                _add(found, slot_of(name, owner, leaf, dim, module), Place(name, dim), units)
        if leaf == "weight" and name in axes.inputs and module is not None and _has_hidden_inputs(module):
            _add(found, Slot(owner, "in"), None, positions(axes.inputs[name], numbers))
    for name, axis in axes.made.items():
        if name in modules and is_producer(modules[name]) and Slot(name, "out") not in found:
            _add(found, Slot(name, "out"), None, positions(axis, numbers))
    keep = {slot: pair for slot, pair in found.items() if pair[0] or (pair[1] >= 0).any()}
    ordered = sorted(
        keep, key=lambda slot: (order.get(slot.name, order.get(slot.name.rpartition(".")[0], 0)), slot.name, slot.side)
    )
    return ordered, [keep[slot][0] for slot in ordered], [keep[slot][1] for slot in ordered]


def _add(found: Found, slot: Slot, place: Place | None, units: Indices) -> None:
    """Add a dimension to its width, or to a new width of its own if the width has other units."""
    if slot.side.startswith("dim") and not (units >= 0).any():
        return
    before = found.get(slot)
    if before is not None and before[1] is not units and not np.array_equal(before[1], units):
        assert place is not None
        slot = Slot(place.tensor, f"dim{place.dim}")
    places, _ = found.setdefault(slot, ([], units))
    if place is not None:
        places.append(place)


def _has_hidden_inputs(module: nn.Module) -> bool:
    """Whether no dimension of a layer's tensors counts its inputs, as in a grouped convolution."""
    return getattr(module, "groups", 1) > 1 and not is_depthwise(module)


def slot_of(name: str, owner: str, leaf: str, dim: int, module: nn.Module | None) -> Slot:
    """Return the width that a dimension of a tensor belongs to."""
    # A layer that computes its weight, as under a weight norm, has only the widths of the tensors that it uses for it.
    if module is not None and is_producer(module) and module._parameters.get("weight") is not None:
        if isinstance(module, nn.Embedding):
            return Slot(owner, "out") if leaf == "weight" and dim == 1 else Slot(name, f"dim{dim}")
        transposed = getattr(module, "transposed", False)
        if leaf == "bias":
            return Slot(owner, "out")
        if leaf == "weight" and dim < 2 and getattr(module, "groups", 1) == 1:
            return Slot(owner, ("in", "out")[(dim == 0) != transposed])
        if leaf == "weight" and dim == 0:
            return Slot(owner, "in" if transposed and not is_depthwise(module) else "out")
    if module is not None and is_norm(module) and leaf in ("weight", "bias", "running_mean", "running_var"):
        own = getattr(module, leaf)  # a layer norm over channels and places has a width for each of these
        return Slot(owner, "out") if own.numel() == own.shape[dim] else Slot(name, f"dim{dim}")
    return Slot(name, f"dim{dim}")


def positions(expression: Expression, numbers: dict[Atom, Indices]) -> Indices:
    """Return the unit of each position of an axis, or -1."""
    found = resolve(expression)
    if isinstance(found, int):
        return np.full(found, -1, dtype=np.int64)
    if isinstance(found, Atom):
        units = numbers.get(found)
        return np.full(found.size, -1, dtype=np.int64) if units is None else units
    if isinstance(found, Product):
        total = np.full(1, -1, dtype=np.int64)
        for factor in found.factors:
            total = np.maximum.outer(total, positions(factor, numbers)).reshape(-1)
        return total
    return np.concatenate([positions(part, numbers) for part in parts_of(found)])


def groups_of(slots: list[Slot], unit_of: list[Indices], group_of: Indices, number: int) -> list[Group]:
    """Return the groups, each with the widths that its units cut and the positions that a unit occupies."""
    cut: list[list[Slot]] = [[] for _ in range(number)]
    width = [1] * number
    taken = map_unique(unit_of, lambda units: _taken(units, group_of))
    for slot, found in zip(slots, taken, strict=True):
        for group, places in found.items():
            cut[group].append(slot)
            if slot.side != "in":
                width[group] = max(width[group], places)
    return [Group(index, tuple(cut[index]), width[index]) for index in range(number)]


def _taken(units: Indices, group_of: Indices) -> dict[int, int]:
    """Return, for each group in this width, the positions per unit."""
    free = units[units >= 0]
    if not len(free):
        return {}
    first = int(free.min())  # units of a group are numbered in a row, and those of one slot lie close together
    counts = np.bincount(free - first)
    groups = np.unique(group_of[first : first + len(counts)][counts > 0])
    starts = np.searchsorted(group_of, groups) - first
    return {int(group): int(counts[start]) if start >= 0 else 0 for group, start in zip(groups, starts, strict=True)}


def map_unique(arrays: Sequence[Indices], function: Callable[[Indices], T]) -> list[T]:
    """Apply a function to each array; compute it once for arrays that are the same object."""
    made: dict[int, T] = {}
    for array in arrays:
        if id(array) not in made:
            made[id(array)] = function(array)
    return [made[id(array)] for array in arrays]


def layer_of(name: str, modules: dict[str, nn.Module]) -> str:
    """Return the layer that a weight belongs to, or the weight's own name if it is outside layers."""
    owner, _, leaf = name.rpartition(".")
    module = modules.get(owner)
    if module is None or not owner:
        return name
    return owner if not module._modules or (leaf == "weight" and is_producer(module)) else name
