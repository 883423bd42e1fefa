"""Expressions of axes against brute force: what is refined, cut or joined still counts the same positions in order."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifap.axes.expressions import (
    Atom,
    CannotAgreeError,
    Concatenation,
    Product,
    Reason,
    atoms_of,
    concatenation,
    factor,
    factors_of,
    is_fixed,
    mark_averaged,
    parts_of,
    pin,
    product,
    regroup,
    resolve,
    size_of,
    split,
    unify,
)

WHY = Reason("they differ", "somewhere")
SIZES = st.sampled_from([1, 2, 4, 6, 8, 9, 12, 16, 24])
FAST = settings(max_examples=200, deadline=None)


def positions(expression):
    """Every position in order: the atoms that it is a position of, with the place along each."""
    found = resolve(expression)
    if isinstance(found, int):
        return [()] * found
    if isinstance(found, Atom):
        return [((found, place),) for place in range(found.size)]
    if isinstance(found, Product):
        every = itertools.product(*map(positions, found.factors))
        return [tuple(itertools.chain.from_iterable(each)) for each in every]
    return list(itertools.chain.from_iterable(map(positions, found.parts)))


def can_go(expression):
    """Every position in order, by the atoms that may be cut alone: with which units it goes."""
    return [tuple(pair for pair in place if pair[0].pin is None) for place in positions(expression)]


@st.composite
def expressions(draw, size, depth=3, pool=None):
    """An expression of a size; atoms of one size may stand in it, and in others of its pool, more than once."""
    kinds = ["atom", "old", "fixed"]
    divisors = [d for d in range(2, size) if size % d == 0]
    if depth and divisors:
        kinds += ["product"] * 3
    if depth and size > 1:
        kinds += ["parts"] * 2
    kind = draw(st.sampled_from(kinds))
    pool = [] if pool is None else pool
    if kind == "product":
        outer = draw(st.sampled_from(divisors))
        return product([draw(expressions(n, depth - 1, pool)) for n in (outer, size // outer)])
    if kind == "parts":
        at = draw(st.integers(1, size - 1))
        return concatenation([draw(expressions(n, depth - 1, pool)) for n in (at, size - at)])
    known = [atom for atom in pool if atom.size == size]
    if kind == "old" and known:
        return draw(st.sampled_from(known))
    if kind == "fixed" or size == 1:
        return size
    pool.append(Atom(size))
    return pool[-1]


@given(st.data(), SIZES)
@FAST
def test_an_expression_has_as_many_positions_as_its_size(data, size):
    expression = data.draw(expressions(size))
    assert size_of(expression) == len(positions(expression)) == size
    assert math.prod(map(size_of, factors_of(expression))) == size
    assert sum(map(size_of, parts_of(expression))) == size
    assert positions(product(factors_of(expression))) == positions(expression)
    assert positions(concatenation(parts_of(expression))) == positions(expression)
    assert {atom for place in positions(expression) for atom, _ in place} == set(atoms_of(expression))


@given(st.data(), SIZES)
@FAST
def test_a_factored_expression_counts_the_same_positions(data, size):
    expression = data.draw(expressions(size))
    outer = data.draw(st.integers(1, size))
    try:
        first, second = factor(expression, outer)
    except CannotAgreeError:
        assert size % outer or not isinstance(resolve(expression), (int, Atom))
        return
    assert (size_of(first), size_of(second)) == (outer, size // outer)
    assert can_go(product([first, second])) == can_go(expression)


@given(st.data(), SIZES)
@FAST
def test_a_split_expression_counts_the_same_positions(data, size):
    expression = data.draw(expressions(size))
    at = data.draw(st.integers(0, size))
    try:
        first, second = split(expression, at)
    except CannotAgreeError:
        assert not isinstance(resolve(expression), (int, Atom))
        return
    assert (size_of(first), size_of(second)) == (at, size - at)
    assert [*can_go(first), *can_go(second)] == can_go(expression)


@given(st.data(), st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=3))
@FAST
def test_a_reshape_keeps_every_position_in_its_place(data, sizes):
    whole = math.prod(sizes)
    pool = []
    dims = [data.draw(expressions(size, 2, pool)) for size in sizes]
    wanted, left = [], whole
    while left > 1:
        wanted.append(data.draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0])))
        left //= wanted[-1]
    try:
        found = regroup(dims, wanted)
    except CannotAgreeError:
        return
    assert [size_of(each) for each in found] == wanted
    assert can_go(product(found)) == can_go(product(dims))


@pytest.mark.parametrize("sizes", [[24], [4, 6], [2, 12], [2, 3, 4], [1, 24, 1], [6, 2, 2]])
def test_a_reshape_of_one_axis_is_always_possible(sizes):
    axis = Atom(24)
    found = regroup([axis], sizes)
    assert [size_of(each) for each in found] == sizes
    assert positions(product(found)) == positions(axis)
    assert not any(atom.pin for atom in atoms_of(axis))


@given(st.data(), SIZES)
@FAST
def test_what_is_unified_is_the_same_position_by_position_or_stays(data, size):
    pool = []
    a, b = data.draw(expressions(size, 3, pool)), data.draw(expressions(size, 3, pool))
    unify(a, b, WHY)
    assert can_go(a) == can_go(b)
    unify(a, b, WHY)
    unify(b, a, WHY)
    assert can_go(a) == can_go(b)


@given(st.data(), SIZES, SIZES, SIZES)
@FAST
def test_what_was_the_same_before_is_the_same_after(data, one, two, three):
    """Atoms that are refined are refined wherever they stand: a bystander made of them is as it was, only finer."""
    pool = []
    pairs = [(data.draw(expressions(n, 2, pool)), data.draw(expressions(n, 2, pool))) for n in (one, two, three)]
    seen = []
    for a, b in pairs:
        unify(a, b, WHY)
        seen.append((a, b))
        for x, y in seen:
            assert can_go(x) == can_go(y)


@given(st.data(), SIZES)
@FAST
def test_a_pin_reaches_whatever_an_axis_is_refined_to(data, size):
    pool = []
    a, b = data.draw(expressions(size, 3, pool)), data.draw(expressions(size, 3, pool))
    pin(a, WHY)
    assert is_fixed(a)
    unify(a, b, Reason("another"))
    assert is_fixed(a)
    assert is_fixed(b) or size == 1
    assert all(atom.pin is not None for atom in {*atoms_of(a), *atoms_of(b)})


@pytest.mark.parametrize("build", [lambda a: product([a, 2]), lambda a: concatenation([a, 4]), lambda a: a])
def test_a_note_on_averaging_reaches_whatever_an_axis_is_refined_to(build):
    axis = Atom(4)
    mark_averaged(axis, "layer norm")
    factor(axis, 2)
    assert [atom.averaged for atom in atoms_of(build(axis))] == ["layer norm"] * 2
    other = product([Atom(2), Atom(2)])
    unify(other, axis, WHY)
    assert all(atom.averaged for atom in atoms_of(other))


def test_heads_of_a_fused_weight_are_found_in_three_places():
    """Three parts of heads x width, from one weight: the outer factor of each part is one axis."""
    weight = Atom(48)
    _, heads, width = regroup([weight], [3, 4, 4])
    reader = Atom(16)
    unify(product([heads, width]), reader, WHY)
    assert positions(weight)[16:32] != positions(weight)[:16]  # which of the three is an axis of its own
    assert [place[1:] for place in positions(weight)[16:32]] == positions(reader)
    assert not any(atom.pin for atom in atoms_of(weight))


def test_halves_that_are_multiplied_are_one_axis_twice():
    weight = Atom(12)
    first, second = split(weight, 6)
    unify(first, second, WHY)
    assert isinstance(resolve(weight), Concatenation)
    assert positions(weight)[:6] == positions(weight)[6:]


def test_what_is_empty_is_nothing():
    assert product([Atom(3), 0]) == 0
    assert concatenation([product([0, Atom(3)]), 4]) == 4
    before, after = split(product([Atom(2), Atom(3)]), 1)  # inside the first of two
    assert (size_of(before), size_of(after)) == (1, 5)
    assert all(size_of(part) for part in parts_of(before) + parts_of(after))


def test_sizes_that_differ_are_pinned_with_the_reason():
    a, b = Atom(4), Atom(6)
    unify(a, b, WHY)
    assert a.pin == b.pin == WHY


def test_a_fixed_size_pins_what_meets_it_and_the_first_reason_counts():
    axis = Atom(4, Reason("first"))
    free = Atom(4)
    unify(axis, free, WHY)
    assert resolve(axis).pin == resolve(free).pin == Reason("first")
    other = Atom(4)
    unify(other, 4, WHY)
    assert other.pin == WHY


def test_an_axis_inside_itself_stays():
    axis = Atom(4)
    inside = concatenation([Atom(2), 2])
    unify(axis, concatenation([axis]), WHY)
    assert axis.pin is None
    unify(product([axis, 1]), inside, WHY)
    assert positions(axis) == positions(inside)
    loop = Atom(1)
    unify(loop, Product((loop,)), WHY)
    assert loop.pin == WHY
