"""Expressions of dimensions: fixed sizes, atoms, products and concatenations.

An *atom* is an axis that means one thing. A *product* lists factors in row-major order, as a reshape joins them; a
*concatenation* lists parts, as ``torch.cat`` joins them. A *fixed size* is a plain int: a batch, a position, a
vocabulary. Two expressions that must be the same axis are unified; where they differ in structure, both are refined as
far as they agree, and parts that cannot agree are pinned with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why an axis stays.

    Parameters
    ----------
    text : str
        What happens to the axis, to be read after "stays: ".
    module : str
        Qualified name of the module whose forward does it; empty for the network itself.
    """

    text: str
    module: str = ""


class Atom:
    """A factor of a dimension, with `size` positions. `bound` refers to its refinement, if it has one."""

    __slots__ = ("averaged", "bound", "is_group", "pin", "size")

    def __init__(self, size: int, pin: Reason | None = None) -> None:
        self.size = size
        self.bound: Expression | None = None
        self.pin = pin
        self.is_group = False  # a group of a convolution or a head: is removed as a whole
        self.averaged: str | None = None  # the operation that averages over the axis


class Product:
    """Factors in row-major order."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Expression, ...]) -> None:
        self.factors = factors
        self.size = math.prod(size_of(factor) for factor in factors)


class Concatenation:
    """Parts side by side."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Expression, ...]) -> None:
        self.parts = parts
        self.size = sum(size_of(part) for part in parts)


Expression = int | Atom | Product | Concatenation


class CannotAgreeError(Exception):
    """Two expressions have no common refinement, or one cannot be cut at the wanted position."""


def size_of(expression: Expression) -> int:
    """Return how many positions an expression has."""
    return expression if isinstance(expression, int) else expression.size


def resolve(expression: Expression) -> Expression:
    """Return the refinement of the outermost atom; parts and factors are not resolved."""
    while isinstance(expression, Atom) and expression.bound is not None:
        bound = expression.bound
        if isinstance(bound, Atom) and bound.bound is not None:
            expression.bound = bound.bound  # shorten the path for the next time
        expression = bound
    return expression


def product(factors: Iterable[Expression]) -> Expression:
    """Return a product in its simplest form: no ones, no nested products, fixed neighbours multiplied."""
    flat: list[Expression] = []
    for factor in _flattened(factors, Product):
        if isinstance(factor, int):
            if factor == 0:
                return 0
            if factor == 1:
                continue
            if flat and isinstance(flat[-1], int):
                flat[-1] *= factor
                continue
        flat.append(factor)
    if not flat:
        return 1
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concatenation(parts: Iterable[Expression]) -> Expression:
    """Return a concatenation in its simplest form: nothing empty or nested, fixed neighbours added."""
    flat: list[Expression] = []
    for part in _flattened(parts, Concatenation):
        if isinstance(part, int):
            if part == 0:
                continue
            if flat and isinstance(flat[-1], int):
                flat[-1] += part
                continue
        flat.append(part)
    if not flat:
        return 0
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def _flattened(items: Iterable[Expression], kind: type) -> Iterator[Expression]:
    for item in items:
        found = resolve(item)
        if isinstance(found, kind):
            yield from _flattened(found.factors if isinstance(found, Product) else found.parts, kind)  # type: ignore[union-attr]
        else:
            yield found


def factors_of(expression: Expression) -> list[Expression]:
    """Return the factors of an expression; one that is no product is its own factor."""
    found = resolve(expression)
    simple = product(found.factors) if isinstance(found, Product) else found
    return list(simple.factors) if isinstance(simple, Product) else [] if simple == 1 else [simple]


def parts_of(expression: Expression) -> list[Expression]:
    """Return the parts of an expression; one that is no concatenation is its own part."""
    found = resolve(expression)
    simple = concatenation(found.parts) if isinstance(found, Concatenation) else found
    return list(simple.parts) if isinstance(simple, Concatenation) else [simple]


def atoms_of(expression: Expression) -> tuple[Atom, ...]:
    """Return the atoms that an expression is made of, in order, some more than once."""
    if isinstance(expression, int):  # most are
        return ()
    found = resolve(expression)
    if isinstance(found, Atom):
        return (found,)
    if isinstance(found, int):
        return ()
    inner = found.factors if isinstance(found, Product) else found.parts
    return tuple(atom for each in inner for atom in atoms_of(each))


def is_fixed(expression: Expression) -> bool:
    """Whether no part of an expression can be cut."""
    return all(atom.pin is not None for atom in atoms_of(expression))


def pin(expression: Expression, reason: Reason) -> None:
    """Let every atom of an expression stay; the first reason counts."""
    if isinstance(expression, int):
        return
    for atom in atoms_of(expression):
        if atom.pin is None:
            atom.pin = reason


def unify(a: Expression, b: Expression, reason: Reason) -> None:
    """Make two expressions the same axis; parts that cannot agree are pinned with `reason`."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if size_of(a) != size_of(b):
        pin(a, reason)
        pin(b, reason)
    elif isinstance(a, int) or isinstance(b, int):
        pin(b if isinstance(a, int) else a, _first_pin(a if isinstance(b, int) else b) or reason)
    elif isinstance(a, Atom):
        _bind(a, b, reason)
    elif isinstance(b, Atom):
        _bind(b, a, reason)
    else:
        try:
            _unify_structures(a, b, reason)
        except CannotAgreeError:
            pin(a, reason)
            pin(b, reason)


PADDED = frozenset({"mean", "var", "std", "var_mean", "std_mean", "layer norm"})
"""Averages that zeros change in a known way; see `ifap.axes.averages`."""


def _first_pin(expression: Expression) -> Reason | None:
    return next((atom.pin for atom in atoms_of(expression) if atom.pin is not None), None)


def _bind(atom: Atom, target: Expression, reason: Reason) -> None:
    """Refine an atom to another expression."""
    if isinstance(target, Atom):
        if atom.pin is not None and target.pin is None:
            target.pin = atom.pin
        target.is_group |= atom.is_group
        target.averaged = _deciding_average(target.averaged, atom.averaged)
    else:
        if any(inner is atom for inner in atoms_of(target)):
            pin(target, reason)  # an axis cannot contain itself
            return
        if atom.pin is not None:
            pin(target, atom.pin)
        if atom.averaged:
            mark_averaged(target, atom.averaged)
    atom.bound = target


def mark_averaged(expression: Expression, operation: str) -> None:
    """Note that an operation averages over an axis, so that masking it is not the same as cutting it."""
    for atom in atoms_of(expression):
        atom.averaged = _deciding_average(atom.averaged, operation)


def _deciding_average(one: str | None, other: str | None) -> str | None:
    """Return the average to record: one whose change by zeros is unknown, else the first."""
    return other if one is None or (one in PADDED and other is not None) else one


def _unify_structures(a: Expression, b: Expression, reason: Reason) -> None:
    if isinstance(a, Product) and isinstance(b, Product):
        _unify_products(a, b, reason)
        return
    if isinstance(a, Concatenation) and isinstance(b, Concatenation):
        _unify_parts(parts_of(a), parts_of(b), reason)
        return
    joined, multiplied = (a, b) if isinstance(a, Concatenation) else (b, a)
    inner = factors_of(multiplied)[-1]
    if all(size_of(part) % size_of(inner) == 0 for part in parts_of(joined)):
        outer, shared = factor(joined, size_of(joined) // size_of(inner))
        unify(shared, inner, reason)
        unify(outer, product(factors_of(multiplied)[:-1]), reason)
    else:
        _unify_parts(parts_of(joined), [multiplied], reason)


def _unify_products(a: Expression, b: Expression, reason: Reason) -> None:
    left, right = factors_of(a), factors_of(b)
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if size_of(x) == size_of(y):
            unify(x, y, reason)
        elif size_of(x) % size_of(y) == 0:
            first, rest = factor(x, size_of(y))
            unify(first, y, reason)
            left.insert(0, rest)
        elif size_of(y) % size_of(x) == 0:
            first, rest = factor(y, size_of(x))
            unify(first, x, reason)
            right.insert(0, rest)
        else:
            raise CannotAgreeError


def _unify_parts(left: list[Expression], right: list[Expression], reason: Reason) -> None:
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if size_of(x) > size_of(y):
            x, rest = split(x, size_of(y))
            left.insert(0, rest)
        elif size_of(y) > size_of(x):
            y, rest = split(y, size_of(x))
            right.insert(0, rest)
        unify(x, y, reason)


def factor(expression: Expression, outer: int) -> tuple[Expression, Expression]:
    """Write an expression as a product of two, the first of size `outer`; atoms are refined everywhere.

    Raises a CannotAgreeError if its structure does not allow it.
    """
    expression = resolve(expression)
    inner = size_of(expression) // outer
    if outer * inner != size_of(expression):
        raise CannotAgreeError
    if outer == 1 or inner == 1:
        return (1, expression) if outer == 1 else (expression, 1)
    if isinstance(expression, int):
        return outer, inner
    if isinstance(expression, Atom):
        first, second = Atom(outer, expression.pin), Atom(inner, expression.pin)
        first.averaged = second.averaged = expression.averaged
        first.is_group = second.is_group = expression.is_group
        expression.bound = Product((first, second))
        return first, second
    if isinstance(expression, Product):
        return _factor_product(expression, outer)
    heads, shared = [], None
    if any(size_of(part) % inner for part in parts_of(expression)):
        raise CannotAgreeError
    for part in parts_of(expression):
        head, rest = factor(part, size_of(part) // inner)
        heads.append(head)
        if shared is None:
            shared = rest
        else:
            unify(shared, rest, Reason("parts of different structure are joined"))
    assert shared is not None
    return concatenation(heads), shared


def _factor_product(expression: Expression, outer: int) -> tuple[Expression, Expression]:
    taken: list[Expression] = []
    rest = factors_of(expression)
    left = outer
    while left > 1:
        first = rest.pop(0)
        if left % size_of(first) == 0:
            taken.append(first)
            left //= size_of(first)
        else:
            first, second = factor(first, math.gcd(left, size_of(first)))
            if size_of(first) != left:
                raise CannotAgreeError
            taken.append(first)
            rest.insert(0, second)
            left = 1
    return product(taken), product(rest)


def split(expression: Expression, at: int) -> tuple[Expression, Expression]:
    """Cut an expression in two at a position; atoms are refined everywhere.

    Raises a CannotAgreeError if its structure does not allow it.
    """
    expression = resolve(expression)
    if at == 0 or at == size_of(expression):
        return (0, expression) if at == 0 else (expression, 0)
    if isinstance(expression, int):
        return at, expression - at
    if isinstance(expression, Atom):
        first, second = Atom(at, expression.pin), Atom(expression.size - at, expression.pin)
        first.averaged = second.averaged = expression.averaged
        first.is_group = second.is_group = expression.is_group
        expression.bound = Concatenation((first, second))
        return first, second
    if isinstance(expression, Concatenation):
        before: list[Expression] = []
        rest = parts_of(expression)
        while at >= size_of(rest[0]):
            at -= size_of(rest[0])
            before.append(rest.pop(0))
        left, right = split(rest[0], at)
        return concatenation([*before, left]), concatenation([right, *rest[1:]])
    return _split_product(expression, at)


def _split_product(expression: Expression, at: int) -> tuple[Expression, Expression]:
    outer, *others = factors_of(expression)
    inner = product(others)
    whole, part = divmod(at, size_of(inner))
    before, after = split(outer, whole)
    if not part:
        return product([before, inner]), product([after, inner])
    middle, after = split(after, 1)
    pin(middle, Reason("it is cut in the middle"))
    left, right = split(inner, part)
    return (concatenation([product([before, inner]), left]), concatenation([right, product([after, inner])]))


def regroup(dims: Iterable[Expression], sizes: Iterable[int]) -> list[Expression]:
    """Return the dimensions of a reshape: the same values in the same order, with other sizes.

    Raises a CannotAgreeError if an expression would have to be cut where its structure does not allow it.
    """
    stream: list[Expression] = factors_of(product(dims))
    found: list[Expression] = []
    for size in sizes:
        taken: list[Expression] = []
        left = size
        while left > 1:
            if not stream:
                raise CannotAgreeError
            first = stream.pop(0)
            if left % size_of(first) == 0:
                left //= size_of(first)
            elif size_of(first) % left == 0:
                first, rest = factor(first, left)
                stream.insert(0, rest)
                left = 1
            else:
                raise CannotAgreeError
            taken.append(first)
        found.append(product(taken))
    return found
