"""Operations that look positions up or write them by number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifap.axes.expressions import size_of
from ifap.axes.operations.base import broadcast, rule

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


_MASKS = (torch.bool, torch.uint8)


@rule("embedding", "embedding_bag", "_embedding_bag")
def embedding(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look up rows: rows are pinned, columns are the last dimension of the output."""
    rows, columns = t.dims(args[0])
    t.pin(rows, "its rows are looked up by number")
    t.produced(args[0], 1, columns)
    if isinstance(out, (tuple, list)):  # bags: one row for each, and tensors for the backward
        return [[out[0].shape[0], columns], *t.sizes(out[1:])]
    return [*t.dims(args[1]), columns]


@rule("index", "_unsafe_index")
def index(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look up positions in some dimensions, which are pinned; the others are kept."""
    dims = t.dims(args[0])
    indices = list(args[1])
    taken = _taken(indices)
    for place in taken:
        t.pin(dims[place], "its positions are looked up by number")
    lead = t.sizes(out)
    left = [dim for place, dim in enumerate(dims) if place not in taken]
    number = len(lead) - len(left)  # dimensions of the indices
    start = 0 if _are_apart(taken) or not taken else taken[0]
    shapes = [t.dims(each) for each in indices if each is not None and each.dtype not in _MASKS]
    middle = lead[start : start + number]
    if len(shapes) == len([each for each in indices if each is not None]) and shapes:
        middle = broadcast(t, func, shapes, tuple(out.shape[start : start + number]))
    return [*left[:start], *middle, *left[start:]]


def _taken(indices: Sequence[Tensor | None]) -> list[int]:
    """Return the dimensions that are indexed; a mask indexes as many as it has."""
    found: list[int] = []
    place = 0
    for each in indices:
        width = each.dim() if each is not None and each.dtype in _MASKS else 1
        if each is not None:
            found += range(place, place + width)
        place += width
    return found


@rule("index_put", "_index_put_impl_", "_unsafe_index_put")
def index_put(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write at looked-up positions: those dimensions are pinned, the others are unified with those of the values."""
    dims, values = t.dims(args[0]), t.dims(args[2])
    indices = list(args[1])
    taken = _taken(indices)
    for place in taken:
        t.pin(dims[place], "its positions are written by number")
    before, after = dims[: min(taken, default=0)], dims[max(taken, default=-1) + 1 :]
    if _are_apart(taken):  # the looked-up dimensions of the values come first
        for dim in dims[: max(taken)]:
            t.pin(dim, "it is written by number")
        before = []
    looked_up: list[Any] = [None] * _rank_of(indices)
    for mine, other in zip(reversed([*before, *looked_up, *after]), reversed(values), strict=False):
        if mine is not None and size_of(other) != 1:
            t.unify(mine, other, func)
    return dims


def _rank_of(indices: Sequence[Tensor | None]) -> int:
    """Return the rank of the broadcast indices; a mask counts as one dimension."""
    return max((1 if each.dtype in _MASKS else each.dim() for each in indices if each is not None), default=0)


def _are_apart(taken: Sequence[int]) -> bool:
    return any(b - a > 1 for a, b in itertools.pairwise(taken))


@rule("index_select")
def index_select(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look up positions of one dimension, which is pinned."""
    dims = list(t.dims(args[0]))
    place = args[1] % max(1, len(dims))
    if not dims:
        return t.sizes(out)
    t.pin(dims[place], "its positions are looked up by number")
    dims[place] = out.shape[place]
    return dims


@rule("gather")
def gather(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look up positions along one dimension, which is pinned; the others are unified with those of the index."""
    dims, where = list(t.dims(args[0])), t.dims(args[2])
    place = args[1] % max(1, len(dims))
    for index_, dim in enumerate(dims):
        if index_ == place:
            t.pin(dim, "its positions are looked up by number")
        elif size_of(dim) == size_of(where[index_]):
            t.unify(dim, where[index_], func)
            where[index_] = dim
        else:
            t.pin(dim, "some of its positions are looked up")
    t.pin(where[place], "its positions are looked up by number")
    return where


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write by number along one dimension, which is pinned; the others are unified with those of the values."""
    dims = t.dims(args[0])
    place = args[1] % max(1, len(dims))
    others = [t.dims(x) for x in args[2:] if isinstance(x, Tensor)]
    for index_, dim in enumerate(dims):
        for other in others:
            if len(other) != len(dims):
                continue
            if index_ == place or size_of(dim) != size_of(other[index_]):
                t.pin(dim, "it is written by number")
                t.pin(other[index_], "it is written by number")
            else:
                t.unify(dim, other[index_], func)
    return dims


@rule("index_add", "index_copy", "index_fill")
def index_add(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write rows by number: their dimension is pinned, the others are unified."""
    dims = t.dims(args[0])
    place = args[1] % max(1, len(dims))
    source = t.dims(args[3]) if isinstance(args[3], Tensor) else []
    for index_, dim in enumerate(dims):
        if index_ == place:
            t.pin(dim, "it is written by number")
        elif len(source) == len(dims):
            t.unify(dim, source[index_], func)
    if len(source) == len(dims):
        t.pin(source[place], "it is written by number")
    return dims


@rule("select_scatter", "slice_scatter")
def slice_scatter(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write into a part of a tensor."""
    return t.pin_all(args, kwargs, "it is written in parts")


@rule("masked_scatter", "masked_select", "put", "take")
def by_values(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move values by a mask over all positions."""
    return t.pin_all(args, kwargs, "its values are moved by a mask")


@rule("_pack_padded_sequence")
def pack(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Join the steps of sequences of unequal length: samples and steps become one dimension, the others are kept."""
    steps, samples, *left = t.dims(args[0])
    for dim in (steps, samples):
        t.pin(dim, "sequences of unequal length are packed along it")
    return [[out[0].shape[0], *left], *t.sizes(out[1:])]
