"""Choose the axes to cut: one factor of each product of axes, such as the heads or their width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

from ifap.axes.expressions import Atom, Concatenation, Expression, Product, Reason, atoms_of, pin, resolve
from ifap.axes.trace import Axes
from ifap.layers import is_spatial


def choose(axes: Axes, modules: dict[str, nn.Module], *, inner: bool, spatial_only: bool) -> dict[Atom, int]:
    """Choose the axes that are cut, number them in the order of registration, and pin the others.

    With `inner` the inner factor of a product is cut rather than the outer one. With `spatial_only` only axes that a
    convolution larger than 1x1 produces are cut.
    """
    rivals, depth = _rivals(axes)
    free = _free(axes)
    produced = _produced(axes)

    def rank(atom: Atom) -> tuple[Any, ...]:
        place = depth.get(atom, 0)
        if inner:
            return (atom.is_group, -place, free[atom])
        return (not atom.is_group, 0 if atom.is_group else -atom.size, place, free[atom])

    chosen: set[Atom] = set()
    for atom in sorted(free, key=rank):
        if atom in produced and not rivals[atom] & chosen:
            chosen.add(atom)
    for atom in free:
        if atom not in chosen:
            beside = rivals[atom] & chosen
            pin(atom, Reason("whole units of the axis that it is multiplied with go" if beside else "nothing makes it"))
    return _in_order(axes, _spatial(axes, modules, chosen) if spatial_only else chosen)


def _free(axes: Axes) -> dict[Atom, int]:
    """Number the atoms that are not pinned as they first appear."""
    free: dict[Atom, int] = {}
    for dims in axes.dims.values():
        for dim in dims:
            for atom in atoms_of(dim):
                if atom.pin is None and atom.size > 1:
                    free.setdefault(atom, len(free))
    return free


def _produced(axes: Axes) -> set[Atom]:
    """Return the atoms that some weight makes."""
    made = {atom for axis in axes.made.values() for atom in atoms_of(axis)}
    return made | {atom for _, axis in produced_axes(axes) for atom in atoms_of(axis)}


def produced_axes(axes: Axes) -> Iterator[tuple[str, Expression]]:
    """Yield each weight that makes units, with its axis of units."""
    for name, places in axes.producers.items():
        for place in places:
            yield name, axes.dims[name][place]


def _rivals(axes: Axes) -> tuple[defaultdict[Atom, set[Atom]], dict[Atom, int]]:
    """Return for each free atom the other factors of its products, and its depth in these."""
    rivals: defaultdict[Atom, set[Atom]] = defaultdict(set)
    depth: dict[Atom, int] = {}
    for dims in axes.dims.values():
        for dim in dims:
            _note_products(dim, rivals, depth)
    return rivals, depth


def _note_products(expression: Expression, rivals: dict[Atom, set[Atom]], depth: dict[Atom, int]) -> None:
    """Record the free atoms of each product and their depth. Pin atoms that occur in two factors of one product."""
    found = resolve(expression)
    if isinstance(found, Product):
        inside = [[atom for atom in atoms_of(factor) if atom.pin is None] for factor in found.factors]
        for place, atoms in enumerate(inside):
            others = {atom for other, each in enumerate(inside) if other != place for atom in each}
            for atom in others.intersection(atoms):
                reason = "both factors of a product hold it, as where channels are shuffled into their own order"
                pin(atom, Reason(reason))
            for atom in atoms:
                rivals[atom] |= others - {atom}
                depth[atom] = max(depth.get(atom, 0), place)
        for factor in found.factors:
            _note_products(factor, rivals, depth)
    elif isinstance(found, Concatenation):
        for part in found.parts:
            _note_products(part, rivals, depth)


def _spatial(axes: Axes, modules: dict[str, nn.Module], chosen: set[Atom]) -> set[Atom]:
    """Pin the chosen axes that no convolution larger than 1x1 produces; returns the others."""
    made = {
        atom
        for name, axis in produced_axes(axes)
        if (module := modules.get(name.rpartition(".")[0])) is not None and is_spatial(module)
        for atom in atoms_of(axis)
    }
    for atom in chosen - made:
        pin(atom, Reason("spatial_only: no convolution larger than 1x1 produces it"))
    return chosen & made


def _in_order(axes: Axes, chosen: set[Atom]) -> dict[Atom, int]:
    """Number the chosen axes as they first appear in the order of registration."""
    found: dict[Atom, int] = {}
    for dims in axes.dims.values():
        for dim in reversed(dims):
            for atom in atoms_of(dim):
                if atom in chosen:
                    found.setdefault(atom, len(found))
    return found
