"""Sizes that a forward writes down: numbers that must follow a cut, and what each is computed from.

While a network is traced, its integer attributes and the sizes of its tensors are integers that remember where they
come from. Each call that takes a size is recorded with that origin and with the axis that the size counts. After a cut
the attributes that stand for an axis are set; a call whose size has no attribute is corrected where it is made.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ifap.axes.expressions import Concatenation, Expression, Product, atoms_of, is_fixed, resolve

Key = tuple[Any, ...]
"""Where an attribute is: the module's name, then the path below it, such as ``("layer.0", "config", "num_heads")``."""
SizeOf = Callable[[Expression], int]


@dataclass(frozen=True, eq=False)
class Origin:
    """How a number came about.

    Parameters
    ----------
    kind : str
        ``axis``, ``attribute``, or the name of an operator.
    parts : tuple
        The axis; the key of the attribute and its value; or the operands (numbers or origins).
    """

    kind: str
    parts: tuple[Any, ...]

    def value(self, size: SizeOf, attributes: dict[Key, int]) -> Any:
        """Compute the number again with other sizes and attributes."""
        if self.kind == "axis":
            return size(self.parts[0])
        if self.kind == "attribute":
            return attributes.get(*self.parts)  # one that an earlier trace has left in a cache has its value
        return _OPERATORS[self.kind](*(value_of(part, size, attributes) for part in self.parts))

    def leaves(self) -> Iterator[Origin]:
        """Yield the axes and attributes that the number is made of."""
        if self.kind in ("axis", "attribute"):
            yield self
            return
        for part in self.parts:
            if isinstance(part, Origin):
                yield from part.leaves()


def value_of(part: Any, size: SizeOf, attributes: dict[Key, int]) -> Any:
    """Return the value of an operand, which may be a plain number."""
    return part.value(size, attributes) if isinstance(part, Origin) else part


_OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg")
}
_OPERATORS["sqrt"] = lambda x: x**0.5
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two numbers that a forward compares: the outcome must stay."""

    name: str
    left: Any
    right: Any
    outcome: bool
    module: str

    def holds(self, size: SizeOf, attributes: dict[Key, int]) -> bool:
        """Whether the outcome is the same with other sizes."""
        values = (value_of(self.left, size, attributes), value_of(self.right, size, attributes))
        return _COMPARISONS[self.name](*values) is self.outcome


@dataclass(frozen=True, eq=False)
class Need:
    """What a size must be after a cut.

    Parameters
    ----------
    counts : Expression or None
        The axis whose positions it counts.
    over : Expression or None
        The axis that those positions are divided by (a repetition).
    value : number or None
        What it stays, where it counts nothing.
    from_end : bool
        Whether it counts from the end, as a negative number.
    """

    counts: Expression | None = None
    over: Expression | None = None
    value: Any = None
    from_end: bool = False

    def wanted(self, size: SizeOf) -> Any:
        """Return the value that is needed."""
        if self.counts is None:
            return self.value
        if self.over is not None:
            return Fraction(size(self.counts), size(self.over))
        return -size(self.counts) if self.from_end else size(self.counts)


@dataclass(frozen=True, eq=False)
class Use:
    """A size among the arguments of one call.

    Parameters
    ----------
    module : str
        The innermost module whose forward makes the call.
    function : str
        Name of the called function.
    ordinal : int
        How many calls of that name the forward of the module makes before it.
    path : tuple
        Where among the arguments: ``("args", 1, 2)`` or ``("kwargs", "size", 0)``.
    origin : Origin or number
        What the size is computed from.
    need : Need
        What it must be.
    """

    module: str
    function: str
    ordinal: int
    path: tuple[Any, ...]
    origin: Any
    need: Need


class Recorder:
    """What one trace saw of sizes."""

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.comparisons: list[Comparison] = []
        self.kept: list[tuple[Origin, str]] = []  # numbers taken out of sight: their value must stay
        self.module = ""


_ACTIVE: list[Recorder] = []


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Note comparisons of remembered numbers inside the block."""
    _ACTIVE.append(recorder)
    try:
        yield
    finally:
        _ACTIVE.pop()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Compare remembered numbers inside the block without noting it."""
    before = _ACTIVE[:]
    _ACTIVE.clear()
    try:
        yield
    finally:
        _ACTIVE[:] = before


def origin_of(value: Any) -> Any:
    """Return the origin of a number, or the number itself where it is a plain one."""
    return value.origin if isinstance(value, (Size, Ratio)) else value


def _remembered(value: Any, origin: Origin) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return Size(value, origin)
    return Ratio(value, origin) if isinstance(value, float) else value


def _operation(name: str, swapped: bool = False) -> Any:
    def apply(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        mine, its = _plain(self), _plain(other)
        pair = (its, mine) if swapped else (mine, its)
        origins = (origin_of(other), self.origin) if swapped else (self.origin, origin_of(other))
        return _remembered(_OPERATORS[name](*pair), Origin(name, origins))

    return apply


def _comparison(name: str) -> Any:
    def apply(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        outcome = _COMPARISONS[name](_plain(self), _plain(other))
        if _ACTIVE:
            recorder = _ACTIVE[-1]
            recorder.comparisons.append(Comparison(name, self.origin, origin_of(other), outcome, recorder.module))
        return outcome

    return apply


def _plain(value: Any) -> Any:
    if isinstance(value, Size):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Ratio) else value


class Size(int):
    """An integer that remembers how it was computed."""

    origin: Origin

    def __new__(cls, value: int, origin: Origin) -> Size:
        """Make the integer `value` with an origin."""
        made = int.__new__(cls, value)
        made.origin = origin
        return made

    __hash__ = int.__hash__

    def __float__(self) -> float:
        """Hand out a plain number: its value must stay, as nobody sees what becomes of it."""
        if _ACTIVE:
            _ACTIVE[-1].kept.append((self.origin, _ACTIVE[-1].module))
        return float(int.__int__(self))

    def __neg__(self) -> Any:
        return _remembered(-int.__int__(self), Origin("neg", (self.origin,)))

    def __reduce__(self) -> Any:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return _POW(self, other) if modulus is None else pow(int.__int__(self), other, modulus)


class Ratio(float):
    """A float made from sizes, which remembers how it was computed."""

    origin: Origin

    def __new__(cls, value: float, origin: Origin) -> Ratio:
        """Make the float `value` with an origin."""
        made = float.__new__(cls, value)
        made.origin = origin
        return made

    __hash__ = float.__hash__

    def __neg__(self) -> Any:
        return _remembered(-float.__float__(self), Origin("neg", (self.origin,)))

    def __reduce__(self) -> Any:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: Any) -> float:
        return float.__float__(self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return _POW(self, other)


_POW = _operation("pow")
for _kind in (Size, Ratio):
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod"):
        setattr(_kind, f"__{_name}__", _operation(_name))
        setattr(_kind, f"__r{_name}__", _operation(_name, swapped=True))
    setattr(_kind, "__rpow__", _operation("pow", swapped=True))  # noqa: B010
    for _name in _COMPARISONS:
        setattr(_kind, f"__{_name}__", _comparison(_name))


# --- what follows from a cut ----------------------------------------------------------------------


@dataclass(frozen=True)
class Correction:
    """A size argument of one call that is corrected where it is made.

    Parameters
    ----------
    module, function, ordinal, path
        See `Use`.
    value : number or None
        What the argument is set to.
    fraction : (int, int) or None
        What it is scaled by instead, where it also counts samples or places.
    """

    module: str
    function: str
    ordinal: int
    path: tuple[Any, ...]
    value: int | float | None = None
    fraction: tuple[int, int] | None = None


@dataclass
class Corrections:
    """All sizes that follow a cut: attributes to set, and arguments to correct."""

    attributes: dict[Key, int] = field(default_factory=dict)
    arguments: list[Correction] = field(default_factory=list)


class CannotFollowError(Exception):
    """A size that the forward writes down cannot follow a cut; holds the axes that must stay, and why."""

    def __init__(self, axes: list[Expression], text: str, module: str) -> None:
        super().__init__(text)
        self.axes, self.text, self.module = axes, text, module


class Sizes:
    """The sizes of a network as one trace recorded them.

    Parameters
    ----------
    recorders : list of Recorder
        One for each pass of the trace.
    attributes : dict
        Key to value of every integer attribute.
    """

    def __init__(self, recorders: list[Recorder], attributes: dict[Key, int]) -> None:
        self._original = attributes
        uses = [use for recorder in recorders for use in recorder.uses]
        self._uses = [use for use in uses if _can_change(use.origin, use.need)]
        self._comparisons = [
            each
            for recorder in recorders
            for each in recorder.comparisons
            if _depends(each.left) or _depends(each.right)
        ]
        self._kept = [pair for recorder in recorders for pair in recorder.kept if _depends(pair[0])]

    def follow(self, size: SizeOf) -> Corrections:
        """Return what must be set and corrected when axes have the sizes that `size` gives.

        Raises
        ------
        CannotFollowError
            If some size cannot follow.
        """
        attributes = self._attributes(size)
        found: dict[tuple[Any, ...], Correction | None] = {}
        for use in self._uses:
            wanted = use.need.wanted(size)
            present = value_of(use.origin, size, attributes)
            correction = None if wanted == present else self._correction(use, wanted, present)
            key = (use.module, use.function, use.ordinal, use.path)
            if key in found and found[key] != correction:
                raise self._refusal(use, "one call with several sizes")
            if correction is not None or key in found:
                found[key] = correction
        self._check(size, attributes)
        changed = {key: value for key, value in attributes.items() if value != self._original[key]}
        return Corrections(changed, [each for each in found.values() if each is not None])

    def may_change(self) -> tuple[dict[Key, int], list[str]]:
        """Return the attributes, and the calls without one, whose sizes count an axis that can be cut."""
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
        """Return the value of each attribute: those that stand for one axis follow it."""
        attributes = dict(self._original)
        pairs = self._pairs(size)
        for direct in (True, False):
            for key, values in _offers(pairs, size, attributes, direct=direct).items():
                value = next(iter(values))
                if len(values) == 1 and value is not None and value == int(value):
                    attributes[key] = int(value)
        return attributes

    def _pairs(self, size: SizeOf) -> list[tuple[Any, Any]]:
        """Return numbers that count an axis, or that the forward compares with a size, and what each must become."""
        pairs = [(use.origin, use.need.wanted(size)) for use in self._uses if use.need.counts is not None]
        for each in self._comparisons:
            if each.name in ("eq", "ne") and each.outcome is (each.name == "eq"):
                for mine, other in ((each.left, each.right), (each.right, each.left)):
                    if isinstance(mine, Origin) and not any(leaf.kind == "attribute" for leaf in _leaves(other)):
                        pairs.append((mine, value_of(other, size, self._original)))
        return pairs

    def _correction(self, use: Use, wanted: Any, present: Any) -> Correction:
        if not isinstance(present, (int, float)) or (isinstance(wanted, Fraction) and wanted.denominator != 1):
            raise self._refusal(use, "a size that is no whole number")
        wanted = int(wanted) if isinstance(wanted, Fraction) else wanted
        place = (use.module, use.function, use.ordinal, use.path)
        if _is_pure(use):
            return Correction(*place, value=wanted)
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
        for origin, module in self._kept:
            before = origin.value(lambda axis: axis if isinstance(axis, int) else axis.size, self._original)
            if origin.value(size, attributes) != before:
                axes = [leaf.parts[0] for leaf in origin.leaves() if leaf.kind == "axis"]
                raise CannotFollowError(axes, "its size is computed with as a number", module)

    @staticmethod
    def _refusal(use: Use, text: str) -> CannotFollowError:
        axes = [leaf.parts[0] for leaf in _leaves(use.origin) if leaf.kind == "axis"]
        axes += [axis for axis in (use.need.counts, use.need.over) if axis is not None]
        return CannotFollowError(axes, f"{use.function} takes {text}", use.module)


def _leaves(origin: Any) -> Iterator[Origin]:
    if isinstance(origin, Origin):
        yield from origin.leaves()


def _depends(origin: Any) -> bool:
    return any(leaf.kind == "attribute" or not is_fixed(leaf.parts[0]) for leaf in _leaves(origin))


def _can_change(origin: Any, need: Need) -> bool:
    counts = [axis for axis in (need.counts, need.over) if axis is not None]
    return any(not is_fixed(axis) for axis in counts) or _depends(origin)


def _is_pure(use: Use) -> bool:
    """Whether a size counts nothing but axes of the network: neither samples nor places of the input."""
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
    return not any(True for _ in atoms_of(found))


def _offers(
    pairs: list[tuple[Any, Any]], size: SizeOf, attributes: dict[Key, int], *, direct: bool
) -> dict[Key, set[Any]]:
    """Return the values that pairs ask of attributes: of those that stand in them alone, or of those computed with."""
    offers: dict[Key, set[Any]] = {}
    for origin, wanted in pairs:
        keys = {leaf.parts[0] for leaf in _leaves(origin) if leaf.kind == "attribute"}
        if len(keys) != 1 or (isinstance(origin, Origin) and origin.kind == "attribute") is not direct:
            continue
        (key,) = keys
        if direct:
            offers.setdefault(key, set()).add(wanted)
        elif value_of(origin, size, attributes) != wanted:
            offers.setdefault(key, set()).add(_solved(origin, key, wanted, size, attributes))
    return offers


def _solved(origin: Any, key: Key, wanted: Any, size: SizeOf, attributes: dict[Key, int]) -> int | None:
    """Return the value of an attribute that makes a number come out as wanted; None if it is not found."""
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
