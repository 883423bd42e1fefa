"""From axes to units: what can be cut, what goes with each unit, and what stays and why."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from ifap.axes.blocks import same_roles
from ifap.axes.choosing import choose, produced_axes
from ifap.axes.corrections import CannotFollowError, Corrections, Sizes
from ifap.axes.expressions import Atom, Expression, Product, Reason, atoms_of, pin, resolve
from ifap.axes.forms import Forms, linear
from ifap.axes.sizes import Key
from ifap.axes.slots import Group, Indices, Place, Slot, find_slots, groups_of, layer_of, of_each, positions
from ifap.axes.trace import Attention, Axes
from ifap.layers import is_producer, modules_by_name, parameters_by_name

__all__ = ["UNITS", "Graph", "Group", "Indices", "Place", "Slot", "Structure", "UnitsOfProducts", "find_units", "stay"]

UnitsOfProducts = Literal["auto", "heads", "groups", "inner"]
UNITS: tuple[str, ...] = ("auto", "heads", "groups", "inner")


class Producer(NamedTuple):
    """A slot that a weight outside any layer makes.

    Parameters
    ----------
    slot : int
        The slot.
    weight : str
        Name of the weight.
    dim : int
        Its dimension that counts the units.
    key : str
        What the scores go by: the name, with the dimension where the weight makes units along others before.
    """

    slot: int
    weight: str
    dim: int
    key: str


@dataclass(frozen=True)
class Structure:
    """What does not change while units go.

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
        Groups whose number of units must stay a multiple of another.
    producers : list of Producer
        Slots that weights outside any layer make.
    pinned : dict of str to str
        Layer to the reason why its outputs stay.
    forms : Forms
        Costs of the network as functions of the number of units in each group.
    atoms : dict of Atom to int
        The axis of each group.
    sizes : Sizes
        Sizes that the forward writes down.
    original_widths : list of int
        Width of each slot in the traced network.
    output_shapes : list of tuple of int
        Shapes of the outputs.
    samples : list
        Further inputs that were traced; see `ifap.axes.trace.Axes`.
    training_shapes : list of tuple of int or None
        Their shapes in training; see `ifap.axes.trace.Axes`.
    values : bool
        Whether the forward looks at values, on which the shapes of outputs may depend.
    looks_up : bool
        Whether an operation takes integers, which may say where to look.
    unknown : dict of str to str
        Operations that are not followed, and where each was seen.
    averaged : dict of int to str
        Groups that something averages over, and what does.
    attention : list of Attention
        Calls that make the probabilities of heads that are units.
    biases : list of str
        Layers that were given a bias since.
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
    output_shapes: list[tuple[int, ...]]
    samples: list[object]
    training_shapes: list[tuple[int, ...]] | None
    values: bool
    looks_up: bool
    unknown: dict[str, str]
    averaged: dict[int, str]
    attention: list[Attention]
    biases: list[str] = field(default_factory=list)

    def apart(self) -> Structure:
        """Return a copy to which biases can be added by itself."""
        return replace(self, places=[list(found) for found in self.places], biases=list(self.biases))


@dataclass
class Graph:
    """The units of a network as it is.

    Parameters
    ----------
    structure : Structure
        What does not change while units go.
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

    def widths(self) -> Indices:
        """Return the present width of each slot."""
        return np.array([len(units) for units in self.unit_of], dtype=np.int64)

    def units_per_group(self) -> Indices:
        """Return how many units each group has."""
        return np.bincount(self.group_of, minlength=len(self.groups))

    def positions_per_unit(self) -> npt.NDArray[np.float64]:
        """Return how many positions of each slot one unit of each group cuts: shape (groups, slots)."""
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

        stays, unit_of = zip(*of_each(self.unit_of, left), strict=True) if self.unit_of else ((), ())
        kept = [origin[positions] for origin, positions in zip(self.kept, stays, strict=True)]
        heads = [left(units)[1] for units in self.heads]
        return Graph(self.structure, [*unit_of], self.group_of[alive], heads, kept)

    def know_bias(self, name: str) -> None:
        """Let the bias that a layer was given be cut with its outputs."""
        slot = self.slot(name, "out")
        if slot is not None:
            self.structure.places[slot].append(Place(f"{name}.bias", 0))
        self.structure.biases.append(name)

    def forget_bias(self, name: str) -> None:
        """Take back what `know_bias` did."""
        slot = self.slot(name, "out")
        if slot is not None:
            self.structure.places[slot].remove(Place(f"{name}.bias", 0))
        self.structure.biases.remove(name)

    def size_of(self, expression: Expression) -> int:
        """Return how many positions of an axis of the traced network are left."""
        return sizes_at(self.structure.atoms, self.units_per_group())(expression)

    def corrections(self) -> Corrections:
        """Return the sizes of the forward that must follow, for the network as it is."""
        return self.structure.sizes.follow(sizes_at(self.structure.atoms, self.units_per_group()))


def stay(units: Indices, alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which positions stay, given which units do."""
    return np.where(units >= 0, alive[units] if len(alive) else True, True)


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

    Parameters
    ----------
    model : nn.Module
        The network that was traced.
    axes : Axes
        Its axes.
    attributes : dict
        Its integer attributes.
    ignored : iterable of str
        Layers and tensors whose axes stay.
    spatial_only : bool
        Let only those units go that a convolution larger than 1x1 produces.
    units : {'auto', 'heads', 'groups', 'inner'}
        Which factor goes where an axis is a product: the outer one, such as heads or groups, or the inner one.
    keep_embeddings : bool
        Let the width of every embedding that feeds the network stay.
    uniform : bool
        Let axes with the same role in repeated blocks keep the same number of units.

    Returns
    -------
    Graph
        Units, groups, and what is pinned and why.
    """
    modules = modules_by_name(model)
    _pin_ignored(axes, modules, set(ignored), keep_embeddings=keep_embeddings)
    _pin_unfollowed(axes)
    sizes = Sizes(axes.recorders, attributes, axes.unsteady)
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
        if keep_embeddings and isinstance(module, nn.Embedding) and not any(a.group for a in atoms_of(dims[-1])):
            pin(dims[-1], Reason("embeddings are kept"))


def _pin_unfollowed(axes: Axes) -> None:
    """Pin what is no width of the network: axes of tensors that nothing produces or reads."""
    for name, dims in axes.dims.items():
        if name not in axes.reached:
            for dim in dims:
                pin(dim, Reason("no forward uses it"))


# --- equal counts ---------------------------------------------------------------------------------


def _settle(axes: Axes, chosen: dict[Atom, int]) -> Failed | None:
    """Check that ties and multiples concern whole axes; returns what must be pinned instead."""
    failed: Failed = []
    for a, b, reason in axes.ties:
        difference = linear(a, chosen, -1)
        theirs = linear(b, chosen, -1)
        if difference is None or theirs is None:
            failed += [(a, reason), (b, reason)]
            continue
        for group, number in theirs.items():
            difference[group] = difference.get(group, 0) - number
        left = {group: number for group, number in difference.items() if number and group >= 0}
        if left and (len(left) != 2 or sum(left.values()) or difference.get(-1, 0)):
            failed += [(a, reason), (b, reason)]
    failed = [(axis, reason) for axis, reason in failed if any(atom in chosen for atom in atoms_of(axis))]
    return failed or None


def _ties(axes: Axes, chosen: dict[Atom, int], alike: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the groups that must keep the same number of units: by the forward, or as they are `alike`."""
    parent = list(range(len(chosen)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for a, b, _ in axes.ties:
        mine, theirs = linear(a, chosen, -1), linear(b, chosen, -1)
        if mine is None or theirs is None:
            continue
        differ = [group for group in {*mine, *theirs} - {-1} if mine.get(group, 0) != theirs.get(group, 0)]
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
        for group, number in (linear(axis, chosen, -1) or {}).items():
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
        output_shapes=axes.output_shapes,
        samples=axes.samples,
        training_shapes=axes.training_shapes,
        values=axes.values,
        looks_up=axes.looks_up,
        unknown=axes.unknown,
        averaged={index: atom.averaged for atom, index in chosen.items() if atom.averaged},
        attention=[*heads],
    )
    return Graph(structure, unit_of, group_of, [*heads.values()])


def _is_heads(axis: Expression, chosen: dict[Atom, int]) -> bool:
    """Whether an axis counts heads that are units: groups of products of activations."""
    return any(atom in chosen and atom.group for atom in atoms_of(axis))


def _pinned(axes: Axes, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Return for each layer all of whose outputs stay the reason."""
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


def sizes_at(atoms: dict[Atom, int], counts: Indices) -> Callable[[Expression], int]:
    """Return what gives the size of an axis when each group has so many units left."""

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


def _try_sizes(graph: Graph) -> Failed | None:
    """Try whether the sizes that the forward writes down follow cuts; returns what must stay where they do not."""
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


def trial_counts(graph: Graph, share: float) -> Indices:
    """Return units left for a trial: as many of each tied group, different numbers of others."""
    sizes = graph.units_per_group()
    tied = {member: members[0] for members in graph.structure.tied for member in members}
    left = sizes.copy()
    for group, size in enumerate(sizes.tolist()):
        leader = tied.get(group, group)
        wanted = round(share * sizes[leader]) + (leader % 3 if share else 0)
        multiple = graph.structure.multiples.get(group, 1)
        left[group] = min(size, -(-max(1, size - wanted) // multiple) * multiple)
    return left


def last_units(graph: Graph, left: Indices) -> Indices:
    """Return the units beyond the first `left` of each group."""
    sizes = graph.units_per_group()
    place = np.arange(graph.num_units) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.flatnonzero(place >= left[graph.group_of])
