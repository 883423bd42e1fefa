"""Compute the sizes after a cut: the attributes to set, and the calls to correct.

An attribute that counts an axis is set; a call whose size has no attribute is corrected. If neither is possible, the
axes of the size are not cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ifap.axes.expressions import Concatenation, Expression, Product, atoms_of, is_fixed, resolve, size_of
from ifap.axes.sequences import ANYTHING, Change, Form, Path, Sequence, merged, repeating
from ifap.axes.sizes import Comparison, Key, Need, Origin, Place, Recorder, SizeOf, Use, value_of

Callee = tuple[str, str]
"""The module whose forward makes calls, and the called function."""


@dataclass(frozen=True)
class Correction:
    """A size argument of one call that is corrected where it is made.

    Parameters
    ----------
    module, function, ordinal, path
        See `Use`.
    value : number or None
        The value that the argument is set to.
    fraction : (int, int) or None
        The fraction that scales it instead, if it also counts samples or positions of the input.
    before : number or None
        The value of the argument without the correction; None if it depends on the input.
    """

    module: str
    function: str
    ordinal: int
    path: Path
    value: int | float | None = None
    fraction: tuple[int, int] | None = None
    before: int | float | None = None

    @property
    def change(self) -> Change:
        """The correction without its call."""
        return self.path, self.value, self.fraction, self.before


@dataclass
class Corrections:
    """All sizes that follow a cut: attributes to set, and arguments to correct."""

    attributes: dict[Key, int] = field(default_factory=dict)
    arguments: list[Correction] = field(default_factory=list)
    sequences: dict[Callee, Sequence] = field(default_factory=dict)


class CannotFollowError(Exception):
    """A size of the forward cannot follow a cut; holds the axes that must stay, and the reason."""

    def __init__(self, axes: list[Expression], text: str, module: str) -> None:
        super().__init__(text)
        self.axes, self.text, self.module = axes, text, module


class Sizes:
    """The sizes of a network as one trace recorded them.

    Each pass of the trace has a recorder. `attributes` holds the value of every integer attribute. Calls in `unsteady`
    cannot be corrected, because their sizes differ in training; calls of modules in `forgetful` cannot, because copies
    of these modules would lose a correction.
    """

    def __init__(
        self, recorders: list[Recorder], attributes: dict[Key, int], unsteady: set[Place], forgetful: set[str]
    ) -> None:
        self._original, self._unsteady, self._forgetful = attributes, unsteady, forgetful
        self._calls: dict[Callee, list[Form]] = {}
        for recorder in recorders:
            for callee, forms in recorder.calls.items():
                self._calls[callee] = _merged(self._calls.get(callee, []), forms)
        uses = [use for recorder in recorders for use in recorder.uses]
        self._uses = [use for use in uses if can_change(use.origin, use.need) or self._is_corrected(use)]
        self._comparisons = [
            each
            for recorder in recorders
            for each in recorder.comparisons
            if _depends(each.left) or _depends(each.right)
        ]
        self._untracked = [pair for recorder in recorders for pair in recorder.untracked if _depends(pair[0])]

    def _is_corrected(self, use: Use) -> bool:
        """Whether a call takes another size than the code of the forward gives, because the network was cut before."""
        return use.need.wanted(size_of) != value_of(use.origin, size_of, self._original)

    def follow(self, size: SizeOf) -> Corrections:
        """Return the corrections for axes that have the sizes that `size` gives.

        Raises a CannotFollowError if some size cannot follow.
        """
        attributes = self._attributes(size)
        found: dict[tuple[Any, ...], Correction | None] = {}
        for use in self._uses:
            wanted = use.need.wanted(size)
            present = value_of(use.origin, size, attributes)
            if wanted != present and use.place in self._unsteady:
                raise self._refusal(use, "other sizes in training")
            if wanted != present and use.module in self._forgetful:
                raise self._refusal(use, "a number that a copy of its module would bring back")
            correction = None if wanted == present else self._correction(use, wanted, present)
            key = (use.module, use.function, use.ordinal, use.path)
            if key in found and found[key] != correction:
                raise self._refusal(use, "one call with several sizes")
            found[key] = correction
        self._check(size, attributes)
        changed = {key: value for key, value in attributes.items() if value != self._original[key]}
        arguments, sequences = _in_sequence([each for each in found.values() if each], self._calls)
        return Corrections(changed, arguments, sequences)

    def may_change(self) -> tuple[dict[Key, int], list[str]]:
        """Return the attributes, and the calls with literal sizes, that count an axis that can be cut."""
        attributes: dict[Key, int] = {}
        calls: dict[str, None] = {}
        for use in self._uses:
            if use.need.counts is None or is_fixed(use.need.counts):
                continue
            keys = [leaf.parts[0] for leaf in _leaves(use.origin) if leaf.kind == "attribute"]
            attributes.update({key: self._original[key] for key in keys})
            if not isinstance(use.origin, Origin):
                calls[f"{use.function} in '{use.module}'"] = None
        return attributes, list(calls)

    def _attributes(self, size: SizeOf) -> dict[Key, int]:
        """Return the value of each attribute. An attribute that counts a single axis follows it."""
        attributes = dict(self._original)
        counted = [(use.origin, use.need.wanted(size)) for use in self._uses if use.need.counts is not None]
        compared = [(mine, value_of(other, size, self._original)) for mine, other in self._compared()]
        # A number that the forward computes with, as in ``sqrt(self.channels)``, stays: its calls are corrected.
        settled: set[Key] = {
            leaf.parts[0] for origin, _ in self._untracked for leaf in origin.leaves() if leaf.kind == "attribute"
        }
        for direct in (True, False):
            candidates = _candidate_values(counted + compared, size, attributes, direct=direct)
            # A call that takes an attribute can be corrected by itself, a comparison with it cannot.
            candidates |= _candidate_values(compared, size, attributes, direct=direct)
            for key in candidates.keys() - settled:
                value = next(iter(candidates[key]))
                if len(candidates[key]) == 1 and value is not None and value == int(value):
                    attributes[key] = int(value)
                    settled.add(key)
        return attributes

    def _compared(self) -> Iterator[tuple[Origin, Any]]:
        """Yield numbers that the forward finds equal to a size, and that size."""
        for each in self._equalities():
            for mine, other in ((each.left, each.right), (each.right, each.left)):
                if isinstance(mine, Origin) and not any(leaf.kind == "attribute" for leaf in _leaves(other)):
                    yield mine, other

    def _equalities(self) -> Iterator[Comparison]:
        return (each for each in self._comparisons if each.is_equality)

    def equal_axes(self) -> Iterator[tuple[Expression, Expression]]:
        """Yield axes that the forward finds equal, or equal to one attribute: both must lose as many positions."""
        like_attribute: dict[Key, Expression] = {}
        for each in self._equalities():
            sides = [side for side in (each.left, each.right) if isinstance(side, Origin)]
            axes = [side.parts[0] for side in sides if side.kind == "axis" and not is_fixed(side.parts[0])]
            keys = [side.parts[0] for side in sides if side.kind == "attribute"]
            if len(axes) == 2:
                yield axes[0], axes[1]
            elif axes and keys:
                yield like_attribute.setdefault(keys[0], axes[0]), axes[0]

    def _correction(self, use: Use, wanted: Any, present: Any) -> Correction:
        if not isinstance(present, (int, float)) or (isinstance(wanted, Fraction) and wanted.denominator != 1):
            raise self._refusal(use, "a size that is no whole number")
        wanted = int(wanted) if isinstance(wanted, Fraction) else wanted
        place = (use.module, use.function, use.ordinal, use.path)
        if _is_pure(use):
            return Correction(*place, value=wanted, before=present)
        if isinstance(wanted, float) or isinstance(present, float) or not present or (wanted < 0) != (present < 0):
            raise self._refusal(use, "a number that counts samples or places as well")
        share = Fraction(wanted, present)
        return Correction(*place, fraction=(share.numerator, share.denominator))

    def _check(self, size: SizeOf, attributes: dict[Key, int]) -> None:
        for each in self._comparisons:
            if not each.holds(size, attributes):
                axes = [
                    leaf.parts[0] for side in (each.left, each.right) for leaf in _leaves(side) if leaf.kind == "axis"
                ]
                raise CannotFollowError(axes, "its size is compared with another number", each.module)
        for origin, module in self._untracked:
            before = origin.value(lambda axis: axis if isinstance(axis, int) else axis.size, self._original)
            if origin.value(size, attributes) != before:
                axes = [leaf.parts[0] for leaf in origin.leaves() if leaf.kind == "axis"]
                raise CannotFollowError(axes, "its size is computed with as a number", module)

    @staticmethod
    def _refusal(use: Use, text: str) -> CannotFollowError:
        axes = [leaf.parts[0] for leaf in _leaves(use.origin) if leaf.kind == "axis"]
        axes += [axis for axis in (use.need.counts, use.need.over) if axis is not None]
        return CannotFollowError(axes, f"{use.function} takes {text}", use.module)


def _merged(one: list[Form], other: list[Form]) -> list[Form]:
    """Return the calls of two runs of a module as one list."""
    both = [merged(*forms) for forms in zip(one, other, strict=False)]
    return both + (one if len(one) > len(other) else other)[len(both) :]


def _in_sequence(
    corrections: list[Correction], calls: dict[Callee, list[Form]]
) -> tuple[list[Correction], dict[Callee, Sequence]]:
    """Return corrections and the call sequences of the corrected functions. Repeated calls are listed once.

    A forward that loops over steps, samples or blocks of its input makes more such calls for a longer one.
    """
    by_callee: dict[Callee, dict[int, list[Correction]]] = {}
    for each in corrections:
        by_callee.setdefault((each.module, each.function), {}).setdefault(each.ordinal, []).append(each)
    kept: list[Correction] = []
    sequences: dict[Callee, Sequence] = {}
    for callee, found in by_callee.items():
        forms = list(calls.get(callee, ()))
        forms += [ANYTHING] * (1 + max(found) - len(forms))
        changes = [{each.change for each in found.get(place, ())} for place in range(len(forms))]
        start, every = repeating(forms, changes) or (0, len(forms))
        for place in range(start + every, len(forms)):
            forms[start + (place - start) % every] = merged(forms[start + (place - start) % every], forms[place])
        kept += [each for place, of_call in found.items() if place < start + every for each in of_call]
        sequences[callee] = Sequence(tuple(forms[: start + every]), start)
    return kept, sequences


def _leaves(origin: Any) -> Iterator[Origin]:
    if isinstance(origin, Origin):
        yield from origin.leaves()


def _depends(origin: Any) -> bool:
    return any(leaf.kind == "attribute" or not is_fixed(leaf.parts[0]) for leaf in _leaves(origin))


def can_change(origin: Any, need: Need) -> bool:
    """Whether a size or its required value depends on an axis that can be cut."""
    counts = [axis for axis in (need.counts, need.over) if axis is not None]
    return any(not is_fixed(axis) for axis in counts) or _depends(origin)


def _is_pure(use: Use) -> bool:
    """Whether a size counts only axes of the network: neither samples nor positions of the input."""
    axes = [leaf.parts[0] for leaf in _leaves(use.origin) if leaf.kind == "axis"]
    if not axes:
        return True
    return all(not _has_fixed(axis) for axis in axes)


def _has_fixed(expression: Expression) -> bool:
    found = resolve(expression)
    if isinstance(found, int):
        return found > 1
    if isinstance(found, Product):
        return any(_has_fixed(each) for each in found.factors)
    if isinstance(found, Concatenation):
        return any(_has_fixed(each) for each in found.parts)
    return not atoms_of(found)


def _candidate_values(
    pairs: list[tuple[Any, Any]], size: SizeOf, attributes: dict[Key, int], *, direct: bool
) -> dict[Key, set[Any]]:
    """Return candidate values for each attribute. `direct` selects sizes that are the attribute itself."""
    candidates: dict[Key, set[Any]] = {}
    for origin, wanted in pairs:
        keys = {leaf.parts[0] for leaf in _leaves(origin) if leaf.kind == "attribute"}
        if len(keys) != 1 or (isinstance(origin, Origin) and origin.kind == "attribute") is not direct:
            continue
        (key,) = keys
        if direct:
            candidates.setdefault(key, set()).add(wanted)
        elif value_of(origin, size, attributes) != wanted:
            candidates.setdefault(key, set()).add(_solved(origin, key, wanted, size, attributes))
    return candidates


def _solved(origin: Any, key: Key, wanted: Any, size: SizeOf, attributes: dict[Key, int]) -> int | None:
    """Return the value of an attribute with which a number has the value `wanted`; None if none is found."""
    while isinstance(origin, Origin):
        if origin.kind == "attribute":
            return int(wanted) if wanted == int(wanted) else None
        holders = [
            part
            for part in origin.parts
            if any(leaf.parts[0] == key for leaf in _leaves(part) if leaf.kind == "attribute")
        ]
        if len(holders) != 1 or len(origin.parts) != 2:
            return None
        (holder,) = holders
        is_left = origin.parts[0] is holder
        other = value_of(origin.parts[1 if is_left else 0], size, attributes)
        wanted = _inverse(origin.kind, wanted, other, is_left)
        if wanted is None:
            return None
        origin = holder
    return None


def _inverse(kind: str, wanted: Any, other: Any, is_left: bool) -> Any:
    if kind == "mul" and other:
        return Fraction(wanted) / Fraction(other)
    if kind == "add":
        return wanted - other
    if kind == "sub":
        return wanted + other if is_left else other - wanted
    if kind in ("floordiv", "truediv"):
        if is_left:
            return wanted * other
        return Fraction(other) / Fraction(wanted) if wanted else None
    return None
