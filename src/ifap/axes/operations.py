"""How each operation of torch carries axes from its inputs to its outputs: one rule an operation.

A rule takes the tracer, the arguments and the output, and gives the dimensions of the output. Operations that work on each
value alone need no entry (torch tags them). An operation without a rule pins what it touches and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifap.axes.expressions import (
    Atom,
    CannotAgreeError,
    Expression,
    atoms_of,
    concatenation,
    factor,
    factors_of,
    mark_averaged,
    product,
    regroup,
    size_of,
    split,
)

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer

Dims = list[Expression]
Rule = Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}
"""Operation, such as ``aten.view``, to its rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations of ``aten``, or of another library where the name has a dot."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name if "." in name else f"aten.{name}"] = function
        return function

    return add


def argument(func: Any, args: Sequence[Any], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    """Return an argument by its place or name."""
    del func
    return args[index] if index < len(args) else kwargs.get(name, default)


def tensors_in(items: Any) -> list[Tensor]:
    """Return the tensors among arguments, lists included."""
    found: list[Tensor] = []
    for item in items:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found.extend(tensors_in(item))
    return found


# --- values one by one ----------------------------------------------------------------------------


def pointwise(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Unify aligned dimensions; those of size one are spread over the others."""
    inputs = [t.dims(x) for x in tensors_in((*args, *kwargs.values()))]
    if not isinstance(out, (tuple, list)):
        return broadcast(t, func, inputs, tuple(out.shape))
    if isinstance(args[0], (tuple, list)):  # foreach
        return t.pin_all(args, kwargs, f"{t.name_of(func)} is not followed")
    return [broadcast(t, func, inputs, tuple(each.shape)) for each in out]


def broadcast(t: Tracer, func: Any, inputs: list[Dims], shape: tuple[int, ...]) -> Dims:
    """Return the dimensions of a result of this shape, to which the inputs are broadcast."""
    found: Dims = []
    rank = len(shape)
    for place, size in enumerate(shape):
        expression: Expression | None = None
        if size != 1:
            for dims in inputs:
                index = len(dims) - rank + place
                if index >= 0 and size_of(dims[index]) == size:
                    if expression is None:
                        expression = dims[index]
                    elif dims[index] is not expression:
                        t.unify(expression, dims[index], func)
        found.append(size if expression is None else expression)
    return found


@rule(
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "_to_copy", "tril", "triu", "native_dropout", "bernoulli",
    "dropout", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "_conj",
    "feature_dropout", "alpha_dropout", "_assert_tensor_metadata", "positive", "bernoulli_", "uniform_", "normal_", "random_",
    "exponential_", "zero_", "fill_", "fake_quantize_per_tensor_affine", "triu_", "tril_", "hardswish", "hardswish_",
    "hardsigmoid", "hardsigmoid_", "lift_fresh", "to", "lift", "conj", "resolve_conj", "resolve_neg", "view_of", "erf_", "mish",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "fake_quantize_per_tensor_affine_cachemask",
)  # fmt: skip
def same(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Hand the dimensions of the first argument on."""
    dims = t.dims(args[0])
    return [dims for _ in out] if isinstance(out, (tuple, list)) else dims


@rule("copy_", "copy")
def copied(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write one tensor into another, which may be a view: what is aligned is the same."""
    return broadcast(t, func, [t.dims(args[0]), t.dims(args[1])], tuple(args[0].shape))


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "rand",
    "randn",
    "scalar_tensor",
    "empty_permuted",
    "zeros_like_size",
    "normal",
    "randperm_none",
)
def made(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Make values that depend on no position: each dimension is whatever it meets first."""
    return [Atom(size) if size > 1 else size for size in out.shape]


@rule(
    "arange",
    "linspace",
    "eye",
    "randperm",
    "randint",
    "logspace",
    "nonzero",
    "item",
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "allclose",
    "tril_indices",
    "triu_indices",
    "hann_window",
    "hamming_window",
    "unique_consecutive",
    "unique",
    "_unique2",
    "unique_dim",
    "torchvision.nms",
    "bincount",
    "histc",
    "searchsorted",
    "bucketize",
    "isin",
    "nonzero_static",
)
def fixed(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Depend on positions or on values: nothing of the output is an axis of its own."""
    for x in tensors_in((*args, *kwargs.values())):
        for dim in t.dims(x):
            t.pin(dim, f"{t.name_of(func)} looks at its positions")
    return t.sizes(out)


# --- shapes ---------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "unflatten", "flatten")
def view(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Regroup the factors of all dimensions."""
    dims = t.dims(args[0])
    if not all(isinstance(size, int) for size in out.shape) or isinstance(args[1], torch.dtype):
        return t.pin_all(args, kwargs, "its values are read as another type")
    try:
        return regroup(dims, out.shape)
    except CannotAgreeError:
        for dim in dims:
            t.pin(dim, f"a reshape from {list(args[0].shape)} to {list(out.shape)} mixes it with others")
        return t.sizes(out)


@rule("permute", "permute_copy")
def permute(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reorder dimensions."""
    dims = t.dims(args[0])
    return [dims[place] for place in args[1]]


@rule("transpose", "transpose_", "swapaxes", "transpose_copy")
def transpose(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Swap two dimensions."""
    dims = list(t.dims(args[0]))
    if dims:
        a, b = args[1] % len(dims), args[2] % len(dims)
        dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("t", "numpy_T", "mT", "t_copy")
def turn(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reverse the dimensions of a matrix."""
    return list(reversed(t.dims(args[0])))


@rule("expand", "expand_copy", "broadcast_to")
def expand(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Repeat dimensions of size one: each becomes an axis of its own."""
    dims = t.dims(args[0])
    lead = len(out.shape) - len(dims)
    found: Dims = []
    for place, size in enumerate(out.shape):
        old = dims[place - lead] if place >= lead else 1
        found.append(old if size_of(old) == size else Atom(size))
    return found


@rule("unsqueeze", "unsqueeze_", "unsqueeze_copy")
def unsqueeze(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Insert a dimension of size one."""
    dims = list(t.dims(args[0]))
    dims.insert(args[1] % (len(dims) + 1), 1)
    return dims


@rule("squeeze", "squeeze_", "squeeze_copy")
def squeeze(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Drop dimensions of size one."""
    dims = t.dims(args[0])
    if len(args) < 2:
        return [dim for dim in dims if size_of(dim) != 1]
    chosen = [args[1]] if isinstance(args[1], int) else list(args[1])
    gone = {place % max(1, len(dims)) for place in chosen}
    return [dim for place, dim in enumerate(dims) if place not in gone or size_of(dim) != 1]


@rule("cat", "concat", "_cat")
def cat(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Join along one dimension and unify the others."""
    place = argument(func, args, kwargs, 1, "dim", 0) % max(1, out.dim())
    inputs = [t.dims(x) for x in args[0] if tuple(x.shape) != (0,)]
    found: Dims = []
    for index in range(out.dim()):
        if index == place:
            found.append(concatenation([dims[index] for dims in inputs]))
        else:
            for dims in inputs[1:]:
                t.unify(inputs[0][index], dims[index], func)
            found.append(inputs[0][index])
    return found


@rule("stack")
def stack(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Join along a new dimension, which is fixed."""
    place = argument(func, args, kwargs, 1, "dim", 0) % out.dim()
    inputs = [t.dims(x) for x in args[0]]
    for dims in inputs[1:]:
        for mine, other in zip(inputs[0], dims, strict=True):
            t.unify(mine, other, func)
    found = list(inputs[0])
    found.insert(place, len(inputs))
    return found


def part_of(t: Tracer, dim: Expression, start: int, length: int) -> Expression:
    """Return `length` positions from `start` on of an expression, which is refined if need be."""
    if length == size_of(dim):
        return dim
    try:
        _, rest = split(dim, start)
        part, _ = split(rest, length)
    except CannotAgreeError:
        t.pin(dim, "a slice cuts it in the middle")
        return length
    return part


@rule("slice", "slice_copy")
def slice_(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a part of a dimension, or every n-th position of it."""
    dims = list(t.dims(args[0]))
    place = argument(func, args, kwargs, 1, "dim", 0) % len(dims)
    whole, size = size_of(dims[place]), out.shape[place]
    step = argument(func, args, kwargs, 4, "step", 1) or 1
    start = argument(func, args, kwargs, 2, "start", 0) or 0
    start = min(max(start + whole if start < 0 else start, 0), whole)
    if step == 1:
        dims[place] = part_of(t, dims[place], start, size)
    elif whole % step == 0 and size == whole // step:
        try:
            dims[place], phase = factor(dims[place], size)
            t.pin(phase, f"every {step}th position is taken apart")
        except CannotAgreeError:
            t.pin(dims[place], "a slice with steps mixes it with others")
            dims[place] = size
    else:
        t.pin(dims[place], "a slice with steps takes some of its positions")
        dims[place] = size
    return dims


@rule("select", "select_copy")
def select(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take one position; the axis stays, but only once the values are used."""
    dims = list(t.dims(args[0]))
    chosen = dims.pop(args[1] % len(dims))
    t.owe(out, chosen, f"position {args[2]} of it is taken alone")
    return dims


@rule("unbind", "unbind_copy")
def unbind(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take every position alone."""
    dims = list(t.dims(args[0]))
    chosen = dims.pop(argument(func, args, kwargs, 1, "dim", 0) % len(dims))
    for each in out:
        t.owe(each, chosen, "its positions are taken apart")
    return [dims for _ in out]


@rule("split", "split_copy", "unsafe_split", "unsafe_chunk", "chunk")
def split_evenly(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a dimension apart into parts of one size, which they must keep in common."""
    place = argument(func, args, kwargs, 2, "dim", 0)
    parts = _parts(t, args[0], place, out)
    place %= args[0].dim()
    for dims in parts[1:]:
        t.tie(parts[0][place], dims[place])
    return parts


@rule("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes", "tensor_split")
def split_unevenly(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a dimension apart into parts of given sizes."""
    return _parts(t, args[0], argument(func, args, kwargs, 2, "dim", 0), out)


def _parts(t: Tracer, x: Tensor, place: int, out: Sequence[Tensor]) -> list[Dims]:
    dims, start, found = t.dims(x), 0, []
    place %= len(dims)
    for each in out:
        part = part_of(t, dims[place], start, each.shape[place])
        found.append([*dims[:place], part, *dims[place + 1 :]])
        start += each.shape[place]
    return found


@rule("repeat", "tile")
def repeat(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Repeat dimensions as a whole, a fixed number of times."""
    dims = t.dims(args[0])
    times = list(args[1])
    dims = [1] * (len(times) - len(dims)) + list(dims)
    pairs = zip(times, dims, strict=True)
    return [Atom(number) if dim == 1 and number > 1 else product([number, dim]) for number, dim in pairs]


@rule("repeat_interleave")
def repeat_interleave(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Repeat each position a fixed number of times."""
    if len(args) > 1 and isinstance(args[1], int):
        dims = list(t.dims(args[0]))
        place = argument(func, args, kwargs, 2, "dim")
        if place is not None:
            dims[place] = product([dims[place], args[1]])
            return dims
    return t.pin_all(args, kwargs, "its positions are repeated by values")


@rule("flip", "roll")
def moved(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move positions along dimensions, which stay."""
    dims = t.dims(args[0])
    along = args[1] if t.name_of(func) == "flip" else argument(func, args, kwargs, 2, "dims", ())
    along = [along] if isinstance(along, int) else along
    for place in along or range(len(dims)):
        t.pin(dims[place], f"{t.name_of(func)} moves its positions")
    return dims


@rule(
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "pad",
)
def pad(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Add positions at the ends; with a constant they are fixed parts beside the axis."""
    dims = list(t.dims(args[0]))
    amounts = list(args[1])
    for index in range(len(amounts) // 2):
        before, after = amounts[2 * index], amounts[2 * index + 1]
        place = len(dims) - 1 - index
        if not before and not after:
            continue
        if before < 0 or after < 0 or t.name_of(func) != "constant_pad_nd":
            t.pin(dims[place], "it is padded")
            dims[place] = out.shape[place]
        else:
            dims[place] = concatenation([before, dims[place], after])
    return dims


@rule("as_strided", "as_strided_copy")
def as_strided(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Read memory in another order; the same size and order is the identity."""
    if tuple(args[0].shape) == tuple(out.shape) and args[0].stride() == out.stride():
        return t.dims(args[0])
    return t.pin_all(args, kwargs, "its memory is read in another order")


@rule("unfold")
def unfold(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take windows along a dimension, which stays."""
    dims = list(t.dims(args[0]))
    place = args[1] % max(1, len(dims))
    t.pin(dims[place], "windows are taken along it")
    dims[place] = out.shape[place]
    return [*dims, out.shape[-1]]


@rule("diagonal", "diagonal_copy", "diag_embed", "diag")
def diagonal(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a diagonal: its two dimensions stay."""
    return t.pin_all(args, kwargs, "a diagonal is taken of it")


@rule("view_as_real", "view_as_real_copy")
def as_real(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add a dimension of real and imaginary part."""
    return [*t.dims(args[0]), 2]


@rule("view_as_complex", "complex_pairs")
def as_complex(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Drop the dimension of real and imaginary part."""
    *dims, pair = t.dims(args[0])
    t.pin(pair, "its two positions are one complex number")
    return dims


@rule("pixel_shuffle")
def pixel_shuffle(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move factors of the channels into height and width."""
    *lead, channels, height, width = t.dims(args[0])
    try:
        kept, moved_ = factor(channels, size_of(channels) // args[1] ** 2)
        t.pin(moved_, "it becomes height and width")
    except CannotAgreeError:
        t.pin(channels, "it becomes height and width")
        kept = out.shape[-3]
    return [*lead, kept, out.shape[-2], out.shape[-1]]


@rule("pixel_unshuffle")
def pixel_unshuffle(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move parts of height and width into the channels."""
    *lead, channels, height, width = t.dims(args[0])
    t.pin(height, "it becomes channels")
    t.pin(width, "it becomes channels")
    return [*lead, product([channels, args[1] ** 2]), out.shape[-2], out.shape[-1]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Read the channels of all groups in turn."""
    lead, channels, *rest = t.dims(args[0])
    try:
        groups, inner = factor(channels, args[1])
        channels = product([inner, groups])
    except CannotAgreeError:
        t.pin(channels, "a channel shuffle fixes its width")
    return [lead, channels, *rest]


# --- indices --------------------------------------------------------------------------------------


@rule("embedding", "embedding_bag", "_embedding_bag")
def embedding(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look rows up: the rows stay, the columns are what comes out."""
    if isinstance(out, (tuple, list)):
        return t.pin_all(args, kwargs, f"{t.name_of(func)} is not followed")
    rows, columns = t.dims(args[0])
    t.pin(rows, "its rows are looked up by number")
    t.produced(args[0], 1, columns)
    return [*t.dims(args[1]), columns]


@rule("index", "_unsafe_index")
def index(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look positions up in some dimensions, which stay; the others are handed on."""
    dims = t.dims(args[0])
    indices = list(args[1])
    taken = _taken(indices)
    for place in taken:
        t.pin(dims[place], "its positions are looked up by number")
    lead = t.sizes(out)
    left = [dim for place, dim in enumerate(dims) if place not in taken]
    number = len(lead) - len(left)  # dimensions of the indices
    apart = any(b - a > 1 for a, b in zip(taken, taken[1:], strict=False))
    start = 0 if apart or not taken else taken[0]
    shapes = [t.dims(each) for each in indices if each is not None and each.dtype not in (torch.bool, torch.uint8)]
    middle = lead[start : start + number]
    if len(shapes) == len([each for each in indices if each is not None]) and shapes:
        middle = broadcast(t, func, shapes, tuple(out.shape[start : start + number]))
    return [*left[:start], *middle, *left[start:]]


def _taken(indices: Sequence[Tensor | None]) -> list[int]:
    """Return the dimensions that indices stand for; a mask stands for as many as it has."""
    found, place = [], 0
    for each in indices:
        width = each.dim() if each is not None and each.dtype in (torch.bool, torch.uint8) else 1
        if each is not None:
            found += range(place, place + width)
        place += width
    return found


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write at looked-up positions: those dimensions stay, the trailing ones are the same."""
    dims, values = t.dims(args[0]), t.dims(args[2])
    taken = _taken(args[1])
    for place in taken:
        t.pin(dims[place], "its positions are written by number")
    trailing = [dim for place, dim in enumerate(dims) if place > max(taken, default=-1)]
    for mine, other in zip(reversed(trailing), reversed(values), strict=False):
        if size_of(other) != 1:
            t.unify(mine, other, func)
    for place, dim in enumerate(dims):
        if place not in taken and dim not in trailing:
            t.pin(dim, "it is written by number")
    return dims


@rule("index_select", "_index_select")
def index_select(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look positions of one dimension up, which stays."""
    dims = list(t.dims(args[0]))
    place = args[1] % max(1, len(dims))
    if not dims:
        return t.sizes(out)
    t.pin(dims[place], "its positions are looked up by number")
    dims[place] = out.shape[place]
    return dims


@rule("gather", "take_along_dim")
def gather(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look positions up along one dimension, which stays; the others are those of the index."""
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


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write along one dimension by number, which stays; the others are those of the index."""
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


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_")
def index_add(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write rows by number: their dimension stays, the others are the same."""
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


@rule("masked_scatter", "masked_scatter_", "masked_select", "put", "put_", "take", "where_numbers")
def by_values(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move values by a mask over all positions."""
    return t.pin_all(args, kwargs, "its values are moved by a mask")


# --- reductions -----------------------------------------------------------------------------------

_AVERAGES = ("mean", "var", "std", "var_mean", "std_mean")
_LOOKS = {"max", "min", "amax", "amin", "argmax", "argmin", "prod", "median", "nanmedian", "mode", "logsumexp", "kthvalue",
          "aminmax", "cummax", "cummin", "quantile", "nanquantile", "count_nonzero"}  # fmt: skip


@rule("sum", "nansum", "norm", "linalg_vector_norm", "any", "all", *_AVERAGES, *_LOOKS)
def reduce(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reduce dimensions; where more than a sum is taken the axis is averaged over, or looked at."""
    name, dims = t.name_of(func), t.dims(args[0])
    along = _reduced(func, args, kwargs, len(dims))
    for place in along:
        if name in _AVERAGES:
            mark_averaged(dims[place], name)
        elif name in _LOOKS:
            t.pin(dims[place], f"{name} compares its positions")
    first = out[0] if isinstance(out, (tuple, list)) else out
    keeps = first.dim() == len(dims)
    left: Dims = [1 if place in along else dim for place, dim in enumerate(dims) if keeps or place not in along]
    return [left for _ in out] if isinstance(out, (tuple, list)) else left


def _reduced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rank: int) -> set[int]:
    schema = [each.name for each in func._schema.arguments]
    place = next((schema.index(name) for name in ("dim", "axis") if name in schema), None)
    if place is None:
        return set(range(rank))
    along = args[place] if place < len(args) else kwargs.get(schema[place])
    if along is None or (isinstance(along, (list, tuple)) and not along):
        return set(range(rank))
    return {each % max(1, rank) for each in ([along] if isinstance(along, int) else along)}


@rule(
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cumsum_",
    "sort",
    "topk",
    "argsort",
    "msort",
    "_weight_norm",
    "softmax_",
)
def along_one(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Work along one dimension, which stays."""
    name, dims = t.name_of(func), list(t.dims(args[0]))
    at = 2 if name == "topk" else 1
    place = argument(func, args, kwargs, at, "dim", -1)
    place = (place if isinstance(place, int) else -1) % max(1, len(dims))
    if dims:
        t.pin(dims[place], f"{name.strip('_')} runs over it")
        if name == "topk":
            dims[place] = (out[0] if isinstance(out, (tuple, list)) else out).shape[place]
    if "softmax" in name:
        t.mark_softmax(out)
    return [dims for _ in out] if isinstance(out, (tuple, list)) else dims


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Scale each row of a weight to the norm that another parameter holds."""
    dims, scale = t.dims(args[0]), t.dims(args[1])
    for mine, other in zip(dims, scale, strict=False):
        if size_of(other) != 1:
            t.unify(mine, other, func)
    for place, dim in enumerate(dims):
        if place != argument(func, args, kwargs, 2, "dim", 0):
            mark_averaged(dim, "weight norm")
    return [dims, scale]


# --- products -------------------------------------------------------------------------------------


def contracted(t: Tracer, func: Any, x: Tensor, y: Tensor, mine: Expression, other: Expression) -> None:
    """Unify what a product sums over; between two activations it is the width of a head, which stays."""
    t.unify(mine, other, func)
    if not t.is_weight(x) and not t.is_weight(y):
        t.pin(mine, "a product of two activations sums over it")
    if t.is_softmax(x) and not t.is_weight(y):
        return


@rule("mm", "_int_mm")
def mm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(n, k) x (k, m)."""
    x, y = args[0], args[1]
    (n, k), (k2, m) = t.dims(x), t.dims(y)
    contracted(t, func, x, y, k, k2)
    t.multiply(n, k, m)
    t.produced_by(x, y, n, m)
    return [n, m]


@rule("addmm", "addmm_")
def addmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A bias and (n, k) x (k, m)."""
    dims = mm(t, func, args[1:], kwargs, out)
    return broadcast(t, func, [dims, t.dims(args[0])], tuple(out.shape))


@rule("bmm")
def bmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(b, n, k) x (b, k, m)."""
    x, y = args[0], args[1]
    (b, n, k), (b2, k2, m) = t.dims(x), t.dims(y)
    t.unify(b, b2, func)
    heads = list(atoms_of(b))
    for atom in heads:
        atom.group = True
    contracted(t, func, x, y, k, k2)
    if heads and t.is_softmax(x) and not t.is_weight(y):
        t.pin(m, "it is the width of a head")
    t.multiply(b, n, k, m)
    t.produced_by(x, y, n, m)
    return [b, n, m]


@rule("baddbmm", "baddbmm_")
def baddbmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A term and (b, n, k) x (b, k, m)."""
    dims = bmm(t, func, args[1:], kwargs, out)
    return broadcast(t, func, [dims, t.dims(args[0])], tuple(out.shape))


@rule("glu")
def glu(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Gate the first half of a dimension by the second: value and gate go together."""
    dims = list(t.dims(args[0]))
    place = argument(func, args, kwargs, 1, "dim", -1) % len(dims)
    values = part_of(t, dims[place], 0, out.shape[place])
    gates = part_of(t, dims[place], out.shape[place], out.shape[place])
    t.unify(values, gates, func)
    dims[place] = values
    return dims


@rule("linalg_solve_triangular", "triangular_solve", "linalg_solve")
def solve(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Solve A X = B: rows of A and B stay, columns of B and the batch are handed on."""
    a, b = t.dims(args[0]), t.dims(args[1])
    for dim in (*a[-2:], b[-2]):
        t.pin(dim, "a system of equations is solved along it")
    lead = broadcast(t, func, [a[:-2], b[:-2]], tuple(out.shape[:-2]))
    return [*lead, out.shape[-2], b[-1]]


@rule("mv", "dot", "vdot")
def mv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(n, k) x (k), or (k) x (k)."""
    x, y = args[0], args[1]
    *n, k = t.dims(x)
    contracted(t, func, x, y, k, t.dims(y)[0])
    if n:
        t.produced_by(x, y, n[0], 1)
    return n


@rule("addmv")
def addmv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A bias and (n, k) x (k)."""
    return broadcast(t, func, [mv(t, func, args[1:], kwargs, out), t.dims(args[0])], tuple(out.shape))


@rule("_grouped_mm", "grouped_mm")
def grouped_mm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Rows sorted by expert (n, k) x (experts, k, m); its kernel wants widths of 16 bytes."""
    x, y = args[0], args[1]
    if x.dim() != 2 or y.dim() != 3:
        return t.pin_all(args, kwargs, "grouped_mm is not followed")
    (n, k), (experts, k2, m) = t.dims(x), t.dims(y)
    t.unify(k, k2, func)
    t.pin(experts, "it is the number of experts")
    lanes = max(1, 16 // y.element_size())
    for dim in (k, m):
        t.align(dim, lanes)
    t.multiply(n, k, m)
    t.produced_by(x, y, n, m)
    return [n, m]


@rule("convolution", "_convolution", "mkldnn_convolution", "thnn_conv2d")
def convolution(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Convolve: groups of input channels make groups of output channels."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    dims, w = t.dims(x), t.dims(weight)
    channels = dims[1] if x.dim() == weight.dim() else dims[0]
    for dim in w[2:]:
        t.pin(dim, "it is the size of a kernel")
    for dim in dims[2:]:
        t.pin(dim, "a convolution runs over it")
    inputs, outputs = _grouped(t, func, channels, w, groups, transposed=transposed)
    if bias is not None:
        t.unify(outputs, t.dims(bias)[0], func)
    t.produced(weight, 1 if transposed and groups == 1 else 0, outputs)
    kernel = math.prod(weight.shape[2:])
    places = math.prod((x if transposed else out).shape[2:]) * out.shape[0]
    t.multiply(places * kernel, inputs, outputs)
    t.read(weight, channels)
    return [dims[0], outputs, *out.shape[2:]]


def _grouped(
    t: Tracer, func: Any, channels: Expression, w: Dims, groups: int, *, transposed: bool
) -> tuple[Expression, Expression]:
    """Unify channels with a weight; returns the inputs of one group, and all outputs."""
    if groups == 1:
        inputs, outputs = (w[0], w[1]) if transposed else (w[1], w[0])
        t.unify(channels, inputs, func)
        return inputs, outputs
    try:
        group, inner = factor(channels, groups)
        first, second = factor(w[0], groups)
        t.unify(group, first, func)
    except CannotAgreeError:
        for dim in (channels, w[0], w[1]):
            t.pin(dim, "groups of a convolution cut it in the middle")
        return w[1], (groups * size_of(w[1]) if transposed else w[0])
    for atom in atoms_of(group):
        atom.group = True
    if transposed:
        t.unify(inner, second, func)
        return inner, product([group, w[1]])
    t.unify(inner, w[1], func)
    return inner, w[0]


# --- norms ----------------------------------------------------------------------------------------


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "batch_norm_elemt",
)
def batch_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Normalise over all but the channels."""
    dims = t.dims(args[0])
    channels = dims[1] if len(dims) > 1 else dims[0]
    for each in tensors_in(args[1:5]):
        t.unify(channels, t.dims(each)[0], func)
    if t.is_weight(args[0]):  # a standardised weight: what is normalised over is an axis of others
        for dim in (dims[0], *dims[2:]):
            mark_averaged(dim, "batch norm of a weight")
    rest = [[channels] if each.dim() == 1 and each.shape[0] == size_of(channels) else t.sizes(each) for each in out[1:]]
    return [dims, *rest]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Normalise over the last dimensions."""
    dims, number = t.dims(args[0]), len(args[1])
    for dim in dims[len(dims) - number :]:
        mark_averaged(dim, "layer norm")
    for each in tensors_in(args[2:4]):
        for mine, other in zip(dims[len(dims) - number :], t.dims(each), strict=True):
            t.unify(mine, other, func)
    if not isinstance(out, (tuple, list)):
        return dims
    lead = [*dims[: len(dims) - number], *[1] * number]
    return [dims, *[lead if each.dim() == len(dims) else t.sizes(each) for each in out[1:]]]


@rule("native_group_norm", "group_norm")
def group_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Normalise within groups of channels, which go whole."""
    dims = t.dims(args[0])
    composed = t.name_of(func) == "group_norm"
    groups = args[1] if composed else args[6]
    for each in tensors_in(args[2:4] if composed else args[1:3]):
        t.unify(dims[1], t.dims(each)[0], func)
    try:
        group, inner = factor(dims[1], groups)
        for atom in atoms_of(group):
            atom.group = True
        mark_averaged(inner, "group norm")
        if groups == 1:
            mark_averaged(dims[1], "group norm")
        if isinstance(group, int) and groups > 1:
            t.pin(inner, "groups of a norm are fixed parts of it")
    except CannotAgreeError:
        t.pin(dims[1], "groups of a norm cut it in the middle")
    return [dims, *[t.sizes(each) for each in out[1:]]] if isinstance(out, (tuple, list)) else dims


@rule(
    "mkldnn_rnn_layer",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "lstm_cell",
    "gru_cell",
    "quantized_lstm",
    "_cudnn_rnn",
)
def recurrent(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Run a recurrent kernel, which reads its widths by itself."""
    return t.pin_all(args, kwargs, "recurrent kernels are not cut")


# --- positions ------------------------------------------------------------------------------------


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_linear1d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact1d",
    "adaptive_avg_pool2d",
    "max_pool2d",
    "max_pool1d",
    "max_pool3d",
    "adaptive_avg_pool3d",
    "max_unpool2d",
    "fractional_max_pool2d",
    "lp_pool2d",
    "_cslt_sparse_mm_none",
    "mkldnn_max_pool2d",
    "max_pool1d_with_indices",
)
def over_positions(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:  # fmt: skip
    """Pool or enlarge: batch and channels are handed on, positions are fixed."""
    dims = t.dims(args[0])
    first = out[0] if isinstance(out, (tuple, list)) else out
    name = t.name_of(func)
    rank = 1 if "1d" in name else 3 if "3d" in name else 2
    for each in tensors_in(args[1:]):
        t.dims(each)
    for dim in dims[len(dims) - rank :]:
        t.pin(dim, f"{name.strip('_')} runs over it")
    found = [*dims[: len(dims) - rank], *first.shape[len(dims) - rank :]]
    return [found for _ in out] if isinstance(out, (tuple, list)) else found


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def grid_sampler(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Look values up at the places of a grid, sample by sample; channels are handed on."""
    dims, grid = t.dims(args[0]), t.dims(args[1])
    t.unify(dims[0], grid[0], func)
    for dim in (*dims[2:], *grid[1:]):
        t.pin(dim, "places are looked up along it")
    return [dims[0], dims[1], *out.shape[2:]]


@rule("im2col")
def im2col(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Lay windows side by side: each channel becomes as many as a window has places."""
    dims = t.dims(args[0])
    kernel = args[1]
    for dim in dims[-2:]:
        t.pin(dim, "windows are taken along it")
    return [*dims[:-3], product([dims[-3], kernel[0] * kernel[1]]), out.shape[-1]]


@rule("col2im")
def col2im(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add windows up again."""
    dims = t.dims(args[0])
    try:
        channels, places = factor(dims[-2], out.shape[-3])
        t.pin(places, "it is the size of a window")
    except CannotAgreeError:
        t.pin(dims[-2], "windows mix it with others")
        channels = out.shape[-3]
    t.pin(dims[-1], "windows are added along it")
    return [*dims[:-2], channels, *out.shape[-2:]]


@rule("torchvision.roi_align", "torchvision.roi_pool")
def roi_align(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Pool inside boxes: channels are handed on."""
    dims = t.dims(args[0])
    first = out[0] if isinstance(out, (tuple, list)) else out
    found = [first.shape[0], dims[1], *first.shape[2:]]
    return [found for _ in out] if isinstance(out, (tuple, list)) else found


@rule("torchvision.deform_conv2d")
def deform_conv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Convolve at moved places; offsets and masks stay."""
    x, weight, offset, mask, bias = args[:5]
    for each in (offset, mask):
        for dim in t.dims(each):
            t.pin(dim, "it says where a convolution looks")
    dims, w = t.dims(x), t.dims(weight)
    groups = args[11] if len(args) > 11 else 1
    inputs, outputs = _grouped(t, func, dims[1], w, groups, transposed=False)
    for dim in w[2:]:
        t.pin(dim, "it is the size of a kernel")
    t.unify(outputs, t.dims(bias)[0], func)
    t.produced(weight, 0, outputs)
    t.multiply(math.prod((out.shape[0], *out.shape[2:], *weight.shape[2:])), inputs, outputs)
    return [dims[0], outputs, *out.shape[2:]]


def needs_whole(expression: Expression) -> bool:
    """Whether an expression is a product of several axes that could be cut."""
    return len([each for each in factors_of(expression) if not isinstance(each, int)]) > 1
