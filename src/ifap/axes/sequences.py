"""Recognise the calls of a forward by their order and by the literal numbers among their arguments.

A cut network corrects size arguments of some calls. Another input may lead to other calls than the traced one: a longer
sequence is shortened first, a loop has more steps, a mask is given. So a call is compared with the traced ones, and
one that was not traced is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]
Form = Any
"""Arguments as nested tuples: a literal number is itself, any other argument is one of the words below."""
Change = tuple[Path, "int | float | None", "tuple[int, int] | None", "int | float | None"]
"""The path of a number among the arguments, its new value or the fraction that scales it, and its value before."""

NUMBER, ANYTHING, TENSOR, REST, SLICE = "n", "*", "t", "...", "slice"


@dataclass(frozen=True)
class Sequence:
    """The calls of one function that the forward of a module makes, as they were traced.

    Parameters
    ----------
    forms : tuple of Form
        One for each call, in order.
    again : int or None
        Index of the call that follows the last one, as in a loop; None if no further call is known.
    """

    forms: tuple[Form, ...]
    again: int | None = 0


def form_of(value: Any) -> Form:
    """Return the form of an argument; numbers computed from sizes may have any value, as they depend on the input."""
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor):
        return TENSOR
    if value is Ellipsis:
        return REST
    items = _items(value)
    if items is not None:
        return tuple(SLICE if each is SLICE else form_of(each) for each in items)
    return NUMBER if isinstance(value, int) and not isinstance(value, bool) else ANYTHING


def form_of_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Form:
    """Return the form of all arguments, named ones behind the others."""
    return form_of(_arguments(args, kwargs))


def loosened(form: Form) -> Form:
    """Return a form that allows any value for every number."""
    if isinstance(form, tuple):
        return tuple(map(loosened, form))
    return NUMBER if type(form) is int else form


def merged(one: Form, other: Form) -> Form:
    """Return a form that fits every argument that one of two forms fits."""
    if one == other:
        return one
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(map(merged, one, other))
    numbers = all(type(each) is int or each == NUMBER for each in (one, other))
    return NUMBER if numbers else ANYTHING


def fits(form: Form, value: Any, *, exact: bool) -> bool:
    """Whether an argument has a form; unless `exact`, its numbers may have other values."""
    if form == ANYTHING:
        return True
    if form is None:
        return value is None
    if form == SLICE:
        return isinstance(value, str)
    if form == REST:
        return value is Ellipsis
    if form == TENSOR:
        return isinstance(value, Tensor)
    if isinstance(form, tuple):
        items = _items(value)
        return (
            items is not None
            and len(items) == len(form)
            and all(fits(own, item, exact=exact) for own, item in zip(form, items, strict=True))
        )
    # A one may be the number of samples of the traced input.
    return isinstance(value, (int, torch.SymInt)) and (form in (NUMBER, 1) or not exact or value == form)


def listed(form: Form) -> Any:
    """Return a form as JSON can hold it."""
    return [listed(each) for each in form] if isinstance(form, tuple) else form


def from_lists(value: Any) -> Form:
    """Return the form that `listed` wrote; raises a ValueError if the value is no form."""
    if isinstance(value, list):
        return tuple(map(from_lists, value))
    if value is None or type(value) is int or value in (NUMBER, ANYTHING, TENSOR, REST, SLICE):
        return value
    raise ValueError(f"{value!r} is no form of an argument")


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*args, *(kwargs[name] for name in sorted(kwargs)))


def _items(value: Any) -> tuple[Any, ...] | None:
    if isinstance(value, slice):
        return SLICE, value.start, value.stop, value.step
    return tuple(value) if isinstance(value, (tuple, list)) else None


def at(path: Path, args: Any, kwargs: Any) -> Any:
    """Return the argument at a path, or None."""
    found: Any = {"args": args, "kwargs": kwargs}
    for step in path:
        try:
            found = getattr(found, step) if isinstance(found, slice) else found[step]
        except (LookupError, TypeError):
            return None
    return None if isinstance(found, Tensor) else found


def repeating(forms: list[Form], changes: list[Any]) -> tuple[int, int] | None:
    """Return start and period of the longest repetition up to the last call, or None.

    `forms` and `changes` hold the form of each call and the changes of its arguments, in the order of the calls.
    """
    number = len(changes)
    keys = [(loosened(form), change) for form, change in zip(forms, changes, strict=True)]
    best: tuple[int, int] | None = None
    for every in range(1, number // 2 + 1):
        start = number - every
        while start > 0 and keys[start - 1] == keys[start - 1 + every]:
            start -= 1
        start += (number - start) % every  # only whole repetitions
        if number - start >= 2 * every and (best is None or start < best[0]):
            best = start, every
    return best


class Recognised:
    """Match the calls of one function in a running forward with the traced calls of `sequence`.

    `changes` maps the index of a traced call to the changes of its arguments.
    """

    def __init__(self, sequence: Sequence, changes: Mapping[int, list[Change]]) -> None:
        self._forms, self._again = sequence.forms, sequence.again
        self._changes, self._next = dict(sorted(changes.items())), 0

    def changes(self, args: Any, kwargs: Any) -> list[Change]:
        """Return the changes to the arguments of the next call."""
        if self._next >= len(self._forms):
            if self._again is None:
                return []
            self._next = self._again
        place = self._place(args, kwargs)
        if place is None:  # a call that was not traced
            return []
        self._next = place + 1
        return self._changes.get(place, [])

    def _place(self, args: Any, kwargs: Any) -> int | None:
        """Return the number of the matching traced call: the next one, or else the first after it with changes."""
        given = _arguments(args, kwargs)
        for exact in (True, False):
            for place in (self._next, *self._further()):
                if self._is(place, given, args, kwargs, exact=exact):
                    return place
        return None

    def _further(self) -> Iterator[int]:
        yield from (place for place in self._changes if place > self._next)
        if self._again is not None:
            yield from (place for place in self._changes if self._again <= place < self._next)
            yield from (place for place in self._changes if place < self._again)

    def _is(self, place: int, given: Any, args: Any, kwargs: Any, *, exact: bool) -> bool:
        if not fits(self._forms[place], given, exact=exact):
            return False
        changes = self._changes.get(place, [])
        return all(before is None or at(path, args, kwargs) == before for path, _, _, before in changes)
