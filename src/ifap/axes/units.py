"""The units of a network: their positions, their groups, and the pinned layers with reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ifap.axes.corrections import Corrections, Sizes
from ifap.axes.expressions import Atom, Expression, Product, resolve
from ifap.axes.forms import Floats, Forms
from ifap.axes.slots import Group, Indices, Place, Slot, map_unique
from ifap.axes.trace import Attention, Forward

__all__ = ["UNITS", "Floats", "Graph", "Group", "Indices", "Place", "Slot", "Structure", "UnitsOfProducts", "stay"]

UnitsOfProducts = Literal["auto", "heads", "groups", "inner"]
UNITS: tuple[str, ...] = ("auto", "heads", "groups", "inner")


class Producer(NamedTuple):
    """A slot whose units a weight outside any layer makes.

    Parameters
    ----------
    slot : int
        Index of the slot.
    weight : str
        Name of the weight.
    dim : int
        Its dimension that counts the units.
    key : str
        Name of its scores: that of the weight, with the dimension if an earlier producer has the same weight.
    """

    slot: int
    weight: str
    dim: int
    key: str


@dataclass(frozen=True)
class Structure:
    """The part of a graph that does not change when units are removed.

    Parameters
    ----------
    slots : list of Slot
        Every width that units cut, in the order of registration of the layers.
    places : list of list of Place
        For each slot, the dimensions of tensors that it stands for; none for the inputs of a grouped convolution.
    groups : list of Group
        The axes that can be cut.
    tied : list of tuple of int
        Groups that must keep the same number of units.
    multiples : dict of int to int
        Group to the factor that must divide its number of units.
    producers : list of Producer
        Slots that weights outside any layer make.
    pinned : dict of str to str
        Layer to the reason why its outputs stay.
    forms : Forms
        Costs of the network as functions of the number of units in each group.
    atoms : dict of Atom to int
        The axis of each group.
    sizes : Sizes
        Sizes among the arguments of the traced calls.
    original_widths : list of int
        Width of each slot in the traced network.
    forward : Forward
        Observations of the traced forward.
    averaged : dict of int to str
        Groups that an operation averages over, with its name.
    attention : list of Attention
        Calls that make the probabilities of heads that are units.
    biases : list of str
        Layers that were given a bias after the trace.
    """

    slots: list[Slot]
    places: list[list[Place]]
    groups: list[Group]
    tied: list[tuple[int, ...]]
    multiples: dict[int, int]
    producers: list[Producer]
    pinned: dict[str, str]
    forms: Forms
    atoms: dict[Atom, int]
    sizes: Sizes
    original_widths: list[int]
    forward: Forward
    averaged: dict[int, str]
    attention: list[Attention]
    biases: list[str] = field(default_factory=list)

    def classes(self) -> list[tuple[int, ...]]:
        """Return for each group the groups that keep the same number of units, itself included."""
        tied = {member: members for members in self.tied for member in members}
        return [tied.get(group.index, (group.index,)) for group in self.groups]

    def apart(self) -> Structure:
        """Return a copy whose biases can be changed independently."""
        return replace(self, places=[list(found) for found in self.places], biases=list(self.biases))


@dataclass
class Graph:
    """The units of a network as it is.

    Parameters
    ----------
    structure : Structure
        The part that does not change when units are removed.
    unit_of : list of integer arrays
        For each slot, the unit of each position, or -1 where it is pinned.
    group_of : integer array, shape (units,)
        The group of each unit.
    heads : list of integer arrays
        For each call that makes attention probabilities, the unit of each head.
    kept : list of integer arrays
        For each slot, the positions of the traced network that are left.
    """

    structure: Structure
    unit_of: list[Indices]
    group_of: Indices
    heads: list[Indices]
    kept: list[Indices] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.kept:
            self.kept = [np.arange(width) for width in self.structure.original_widths]
        self._slot_index = {slot: index for index, slot in enumerate(self.slots)}

    @property
    def slots(self) -> list[Slot]:
        """Every width that units cut."""
        return self.structure.slots

    @property
    def groups(self) -> list[Group]:
        """The axes that can be cut."""
        return self.structure.groups

    @property
    def pinned(self) -> dict[str, str]:
        """Layers whose outputs stay, and why."""
        return self.structure.pinned

    @property
    def original_widths(self) -> list[int]:
        """Width of each slot in the traced network."""
        return self.structure.original_widths

    @property
    def num_units(self) -> int:
        """Number of units that can be removed."""
        return len(self.group_of)

    def slot(self, name: str, side: str) -> int | None:
        """Return the position of a slot, or None."""
        return self._slot_index.get(Slot(name, side))

    def weight_slots(self) -> list[tuple[int, str]]:
        """Return the slots that weights make, each with its name in scores: that of the layer or of the weight."""
        alone = [(each.slot, each.key) for each in self.structure.producers]
        return [*((index, slot.name) for index, slot in enumerate(self.slots) if slot.side == "out"), *alone]

    def widths(self) -> Indices:
        """Return the present width of each slot."""
        return np.array([len(units) for units in self.unit_of], dtype=np.int64)

    def units_per_group(self) -> Indices:
        """Return how many units each group has."""
        return np.bincount(self.group_of, minlength=len(self.groups))

    def positions_per_unit(self) -> Floats:
        """Return the positions per unit for each group and slot: shape (groups, slots)."""
        matrix = np.zeros((len(self.groups), len(self.slots)))
        sizes = self.units_per_group()
        for column, units in enumerate(self.unit_of):
            free = units[units >= 0]
            counts = np.bincount(self.group_of[free], minlength=len(self.groups))
            matrix[:, column] = counts / np.maximum(sizes, 1)
        return matrix

    def without(self, removed: Indices) -> Graph:
        """Return the graph of the network that lacks the units `removed`; no new trace is made."""
        alive = np.ones(self.num_units, dtype=bool)
        alive[removed] = False
        renumber = np.cumsum(alive) - 1

        def left(units: Indices) -> tuple[npt.NDArray[np.bool_], Indices]:
            stays = stay(units, alive)
            units = units[stays]
            return stays, np.where(units >= 0, renumber[units], -1) if len(alive) else units

        stays, unit_of = zip(*map_unique(self.unit_of, left), strict=True) if self.unit_of else ((), ())
        kept = [origin[positions] for origin, positions in zip(self.kept, stays, strict=True)]
        heads = [left(units)[1] for units in self.heads]
        return Graph(self.structure, [*unit_of], self.group_of[alive], heads, kept)

    def lost(self, kept: Iterable[Iterable[int]]) -> Indices:
        """Return the units that lose a position if each slot keeps the given positions."""
        gone = [
            np.delete(units, np.array(left, dtype=np.int64)) for units, left in zip(self.unit_of, kept, strict=True)
        ]
        lost = np.unique(np.concatenate(gone)) if gone else np.zeros(0, dtype=np.int64)
        return lost[lost >= 0]

    def know_bias(self, name: str) -> None:
        """Register a new bias of a layer, which is cut with its outputs."""
        slot = self.slot(name, "out")
        if slot is not None:
            self.structure.places[slot].append(Place(f"{name}.bias", 0))
        self.structure.biases.append(name)

    def forget_bias(self, name: str) -> None:
        """Undo `know_bias`."""
        slot = self.slot(name, "out")
        if slot is not None:
            self.structure.places[slot].remove(Place(f"{name}.bias", 0))
        self.structure.biases.remove(name)

    def corrections(self) -> Corrections:
        """Return the sizes of the forward that must change, for the network as it is."""
        return self.structure.sizes.follow(sizes_at(self.structure.atoms, self.units_per_group()))


def stay(units: Indices, alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which positions stay, given which units do."""
    return np.where(units >= 0, alive[units] if len(alive) else True, True)


def sizes_at(atoms: dict[Atom, int], counts: Indices) -> Callable[[Expression], int]:
    """Return a function from an axis to its size, given the number of units left in each group."""

    def size(axis: Expression) -> int:
        found = resolve(axis)
        if isinstance(found, int):
            return found
        if isinstance(found, Atom):
            group = atoms.get(found)
            return found.size if group is None else int(counts[group])
        if isinstance(found, Product):
            return math.prod(map(size, found.factors))
        return sum(map(size, found.parts))

    return size


def trial_counts(graph: Graph, share: float) -> Indices:
    """Return numbers of units left for a trial cut: the same in tied groups, different ones in others."""
    sizes = graph.units_per_group()
    left = sizes.copy()
    for group, (size, members) in enumerate(zip(sizes.tolist(), graph.structure.classes(), strict=True)):
        leader = members[0]
        wanted = round(share * sizes[leader]) + (leader % 3 if share else 0)
        multiple = graph.structure.multiples.get(group, 1)
        left[group] = min(size, -(-max(1, size - wanted) // multiple) * multiple)
    return left


def last_units(graph: Graph, left: Indices) -> Indices:
    """Return the units beyond the first `left` of each group."""
    sizes = graph.units_per_group()
    place = np.arange(graph.num_units) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.flatnonzero(place >= left[graph.group_of])
