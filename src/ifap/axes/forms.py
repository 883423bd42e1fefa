"""Costs of a network as functions of the number of units that each axis keeps."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ifap.axes.expressions import Atom, Concatenation, Expression, Product, resolve

if TYPE_CHECKING:
    from ifap.axes.trace import Axes

Floats = npt.NDArray[np.float64]


class Forms:
    """Multiply-accumulates and parameters, each a sum of products of linear functions of the units left.

    `chosen` holds the group of each axis that can be cut; `parameters` names the tensors that are parameters.
    """

    def __init__(self, axes: Axes, chosen: dict[Atom, int], parameters: set[str]) -> None:
        self._chosen = chosen
        self._rows: list[dict[int, int]] = []
        self._numbers: dict[tuple[tuple[int, int], ...], int] = {}
        products = [(each.module, self._factors(each.sizes)) for each in axes.multiplications]
        tensors = [self._factors(dims) for name, dims in axes.dims.items() if name in parameters]
        matrix = np.zeros((len(self._rows), len(chosen)))
        constant = np.zeros(len(self._rows))
        for index, row in enumerate(self._rows):
            for group, number in row.items():
                if group < 0:
                    constant[index] = number
                else:
                    matrix[index, group] = number
        self._matrix, self._constant = matrix, constant
        self.modules = [module for module, _ in products]
        self._products = _padded([factors for _, factors in products], len(self._rows))
        self._tensors = _padded(tensors, len(self._rows))

    def macs(self, counts: npt.ArrayLike) -> Floats:
        """Return the multiply-accumulates of each product of the forward, for units left in each group."""
        return self._values(counts)[self._products].prod(axis=1)

    def total_macs(self, counts: npt.ArrayLike) -> int:
        """Return the multiply-accumulates of the whole forward, for units left in each group."""
        return round(float(self.macs(counts).sum()))

    def params(self, counts: npt.ArrayLike) -> int:
        """Return the number of elements of all parameters, for units left in each group."""
        return round(float(self._values(counts)[self._tensors].prod(axis=1).sum()))

    def macs_by_module(self, counts: npt.ArrayLike) -> dict[str, int]:
        """Return the multiply-accumulates that each module does itself."""
        found: dict[str, int] = defaultdict(int)
        for module, macs in zip(self.modules, self.macs(counts), strict=True):
            found[module] += round(float(macs))
        return {module: macs for module, macs in found.items() if macs}

    def _values(self, counts: npt.ArrayLike) -> Floats:
        return np.append(self._matrix @ np.asarray(counts, dtype=float) + self._constant, 1.0)

    def _factors(self, sizes: tuple[Expression, ...] | list[Expression]) -> list[int]:
        """Return the numbers of the linear functions whose product equals a product of sizes."""
        found: list[int] = []
        for size in sizes:
            found += self._number(size)
        return found

    def _number(self, size: Expression) -> list[int]:
        row = linear(size, self._chosen)
        if row is None:
            inner = resolve(size)
            if isinstance(inner, Product):
                return [number for factor in inner.factors for number in self._number(factor)]
            assert isinstance(inner, Concatenation)
            row = {STAYS: inner.size}  # a product of axes inside a sum is not linear: it counts as traced
        key = tuple(sorted(row.items()))
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append(row)
        return [self._numbers[key]]


def _padded(factors: list[list[int]], one: int) -> npt.NDArray[np.int64]:
    longest = max(map(len, factors), default=1) or 1
    return np.array([each + [one] * (longest - len(each)) for each in factors], dtype=np.int64).reshape(-1, longest)


STAYS = -1
"""Key of the constant part of a size, which belongs to no group; the other keys are numbers of groups."""


def linear(expression: Expression, chosen: dict[Atom, int]) -> dict[int, int] | None:
    """Return the size of an axis as a sum: group to coefficient, `STAYS` to the constant; None if it is not linear."""
    found = resolve(expression)
    if isinstance(found, int):
        return {STAYS: found}
    if isinstance(found, Atom):
        return {chosen[found]: 1} if found in chosen else {STAYS: found.size}
    if isinstance(found, Product):
        total: dict[int, int] = {STAYS: 1}
        for factor in found.factors:
            its = linear(factor, chosen)
            if its is None:
                return None
            plain, own = set(its) <= {STAYS}, set(total) <= {STAYS}
            if not plain and not own:
                return None
            scale, other = (its.get(STAYS, 0), total) if plain else (total.get(STAYS, 0), its)
            total = {key: number * scale for key, number in other.items()}
        return total
    total = {}
    for part in found.parts:
        its = linear(part, chosen)
        if its is None:
            return None
        for key, number in its.items():
            total[key] = total.get(key, 0) + number
    return total
