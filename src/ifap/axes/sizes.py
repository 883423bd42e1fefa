"""Record the sizes that a forward uses, as numbers that remember how they were computed.

While a network is traced, its integer attributes and the sizes of its tensors are integers that remember their origin.
Each call that takes a size is recorded with that origin and with the axis that the size counts.
`ifap.axes.corrections` computes the sizes after a cut from these records.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ifap.axes.code import calls_a_cache
from ifap.axes.expressions import Expression
from ifap.axes.sequences import Form, loosened, merged

Key = tuple[Any, ...]
"""Where an attribute is: the module's name, then the path below it, such as ``("layer.0", "config", "num_heads")``."""
Place = tuple[str, str, int]
"""A call: the module whose forward makes it, the function, and how many of that name the forward makes before it."""
SizeOf = Callable[[Expression], int]


@dataclass(frozen=True, eq=False)
class Origin:
    """The computation of a number from axes and attributes.

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
        """Compute the number for other sizes and attributes."""
        if self.kind == "axis":
            return size(self.parts[0])
        if self.kind == "attribute":
            return attributes.get(*self.parts)  # one that a cache holds from an earlier trace keeps its value
        return _OPERATORS[self.kind](*(value_of(part, size, attributes) for part in self.parts))

    def leaves(self) -> Iterator[Origin]:
        """Yield the axes and attributes that the number is computed from."""
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

    @property
    def is_equality(self) -> bool:
        """Whether the forward found them equal."""
        return self.name in ("eq", "ne") and self.outcome is (self.name == "eq")

    def holds(self, size: SizeOf, attributes: dict[Key, int]) -> bool:
        """Whether the outcome is the same with other sizes."""
        values = (value_of(self.left, size, attributes), value_of(self.right, size, attributes))
        return _COMPARISONS[self.name](*values) is self.outcome


@dataclass(frozen=True, eq=False)
class Need:
    """The value that a size must have after a cut.

    Parameters
    ----------
    counts : Expression or None
        The axis whose positions it counts.
    over : Expression or None
        The axis that those positions are divided by (a repetition).
    value : number or None
        The value that it keeps if it counts no axis.
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
        Its place among the arguments: ``("args", 1, 2)`` or ``("kwargs", "size", 0)``.
    origin : Origin or number
        What the size is computed from.
    need : Need
        The value that it must have after a cut.
    """

    module: str
    function: str
    ordinal: int
    path: tuple[Any, ...]
    origin: Any
    need: Need

    @property
    def place(self) -> Place:
        """The call."""
        return self.module, self.function, self.ordinal


class Recorder:
    """The sizes, comparisons and calls that one pass recorded."""

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.comparisons: list[Comparison] = []
        self.untracked: list[tuple[Origin, str]] = []  # sizes converted to plain floats; their value must not change
        self.calls: dict[tuple[str, str], list[Form]] = {}  # module and function to the calls in a run of the module
        self.module = ""

    def note_call(self, modules: list[str], counters: list[dict[str, int]], function: str, form: Form) -> None:
        """Record a call in all running modules. For outer modules its form allows any number."""
        inner = loosened(form)
        for name, counter in zip(modules, counters, strict=True):
            own = form if name == modules[-1] else inner
            known, number = self.calls.setdefault((name, function), []), counter[function] - 1
            if number == len(known):
                known.append(own)
            elif known[number] != own:
                known[number] = merged(known[number], own)


_ACTIVE: list[Recorder | None] = [None]


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Record comparisons of numbers that have an origin, inside the block; with None nothing is recorded."""
    _ACTIVE.append(recorder)
    try:
        yield
    finally:
        _ACTIVE.pop()


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
        if (recorder := _ACTIVE[-1]) is not None:
            recorder.comparisons.append(Comparison(name, self.origin, origin_of(other), outcome, recorder.module))
        return outcome

    return apply


def _plain(value: Any) -> Any:
    if isinstance(value, Size):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Ratio) else value


class _Remembering:
    """Base of integers and floats that remember how they were computed."""

    origin: Origin

    def __new__(cls, value: Any, origin: Origin) -> Any:
        """Make a number with an origin."""
        made: Any = super().__new__(cls, value)  # type: ignore[call-arg]
        made.origin = origin
        return made

    def __neg__(self) -> Any:
        return _remembered(-_plain(self), Origin("neg", (self.origin,)))

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return _POW(self, other) if modulus is None else pow(_plain(self), other, modulus)

    def __reduce__(self) -> Any:
        return type(_plain(self)), (_plain(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return _plain(self)


_POW = _operation("pow")
for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod"):
    setattr(_Remembering, f"__{_name}__", _operation(_name))
    setattr(_Remembering, f"__r{_name}__", _operation(_name, swapped=True))
setattr(_Remembering, "__rpow__", _operation("pow", swapped=True))  # noqa: B010
for _name in _COMPARISONS:
    setattr(_Remembering, f"__{_name}__", _comparison(_name))


class Size(_Remembering, int):
    """An integer that remembers how it was computed."""

    def __hash__(self) -> int:
        """Return the hash of the number.

        A cache of results gets another hash, so that it does not return the result of another axis of the same size.
        """
        return id(self) if _ACTIVE[-1] is not None and calls_a_cache(sys._getframe(1)) else int.__hash__(self)

    def __float__(self) -> float:
        """Convert to float. The conversion loses the origin, so the value must not change."""
        if (recorder := _ACTIVE[-1]) is not None:
            recorder.untracked.append((self.origin, recorder.module))
        return float(int.__int__(self))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other


class Ratio(_Remembering, float):
    """A float made from sizes, which remembers how it was computed."""

    __hash__ = float.__hash__
