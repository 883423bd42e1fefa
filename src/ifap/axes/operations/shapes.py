"""Operations that change a shape: views, joins, parts and repetitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifap.axes.expressions import Atom, CannotAgreeError, concatenation, factor, is_fixed, product, regroup, size_of
from ifap.axes.operations.base import argument, part_of, rule
from ifap.axes.trace import Dims

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "unflatten", "flatten")
def view(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Regroup the factors of all dimensions."""
    dims = t.dims(args[0])
    if not all(isinstance(size, int) for size in out.shape) or isinstance(args[1], torch.dtype):
        return t.pin_all(args, kwargs, "its values are read as another type")
    if not out.numel():  # an empty tensor: dimensions are matched by size
        return [next((dim for dim in dims if size_of(dim) == size), int(size)) for size in out.shape]
    found = _regrouped(dims, out.shape)
    if found is not None:
        return found
    found = []
    for block, sizes in _blocks(dims, out.shape):
        part = _regrouped(block, sizes)
        if part is None:
            for dim in block:
                t.pin(dim, f"a reshape from {list(args[0].shape)} to {list(out.shape)} mixes it with others")
        found += sizes if part is None else part
    return found


def _regrouped(dims: Dims, shape: Sequence[int]) -> Dims | None:
    """Return the dimensions of a view, or None where they cannot be made of whole factors."""
    with suppress(CannotAgreeError):
        return regroup(dims, shape)
    with suppress(CannotAgreeError):
        # A fixed axis may be regrouped freely, such as the samples of packed sequences.
        return regroup([size_of(dim) if is_fixed(dim) else dim for dim in dims], shape)
    return None


def _blocks(dims: Dims, shape: Sequence[int]) -> Iterator[tuple[Dims, list[int]]]:
    """Divide a view into the smallest blocks of neighbouring dimensions that have as many positions after it."""
    before, after = list(dims), [int(size) for size in shape]
    while before or after:
        block, sizes = before[:1], after[: 0 if before else 1]
        del before[: len(block)], after[: len(sizes)]
        while (ours := math.prod(map(size_of, block))) != (theirs := math.prod(sizes)):
            if ours < theirs:
                block.append(before.pop(0))
            else:
                sizes.append(after.pop(0))
        yield block, sizes


@rule("permute", "permute_copy")
def permute(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reorder dimensions."""
    dims = t.dims(args[0])
    return [dims[place] for place in args[1]]


@rule("transpose", "swapaxes", "transpose_copy")
def transpose(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Swap two dimensions."""
    dims = list(t.dims(args[0]))
    if dims:
        a, b = args[1] % len(dims), args[2] % len(dims)
        dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("t", "numpy_T", "t_copy")
def turn(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reverse the dimensions."""
    return list(reversed(t.dims(args[0])))


@rule("mT")
def transpose_matrices(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Swap the last two dimensions."""
    *batch, rows, columns = t.dims(args[0])
    return [*batch, columns, rows]


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


@rule("unsqueeze", "unsqueeze_copy")
def unsqueeze(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Insert a dimension of size one."""
    dims = list(t.dims(args[0]))
    dims.insert(args[1] % (len(dims) + 1), 1)
    return dims


@rule("squeeze", "squeeze_copy")
def squeeze(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Drop dimensions of size one."""
    dims = t.dims(args[0])
    if len(args) < 2:
        return [dim for dim in dims if size_of(dim) != 1]
    chosen = [args[1]] if isinstance(args[1], int) else list(args[1])
    gone = {place % max(1, len(dims)) for place in chosen}
    return [dim for place, dim in enumerate(dims) if place not in gone or size_of(dim) != 1]


@rule("cat", "concat")
def cat(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Join along one dimension and unify the others."""
    place = argument(args, kwargs, 1, "dim", 0) % max(1, out.dim())
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
    place = argument(args, kwargs, 1, "dim", 0) % out.dim()
    inputs = [t.dims(x) for x in args[0]]
    for dims in inputs[1:]:
        for mine, other in zip(inputs[0], dims, strict=True):
            t.unify(mine, other, func)
    found = list(inputs[0])
    found.insert(place, len(inputs))
    return found


@rule("slice", "slice_copy")
def slice_(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a part of a dimension, or every n-th position of it."""
    dims = list(t.dims(args[0]))
    place = argument(args, kwargs, 1, "dim", 0) % len(dims)
    whole, size = size_of(dims[place]), out.shape[place]
    step = argument(args, kwargs, 4, "step", 1) or 1
    start = argument(args, kwargs, 2, "start", 0) or 0
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
    """Take one position; the axis is pinned once the values are used."""
    dims = list(t.dims(args[0]))
    chosen = dims.pop(args[1] % len(dims))
    t.pin_on_use(out, chosen, f"position {args[2]} of it is taken alone")
    return dims


@rule("unbind", "unbind_copy")
def unbind(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take every position alone; the axis is pinned once the values are used."""
    dims = list(t.dims(args[0]))
    chosen = dims.pop(argument(args, kwargs, 1, "dim", 0) % len(dims))
    for each in out:
        t.pin_on_use(each, chosen, "its positions are taken apart")
    return [dims for _ in out]


@rule("split", "split_copy", "unsafe_split", "unsafe_chunk", "chunk")
def split_evenly(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Split a dimension into parts of one size, which must stay equal."""
    place = argument(args, kwargs, 2, "dim", 0)
    parts = _parts(t, args[0], place, out)
    place %= args[0].dim()
    for dims in parts[1:]:
        t.tie(parts[0][place], dims[place])
    return parts


@rule("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes", "tensor_split")
def split_unevenly(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Split a dimension into parts of given sizes."""
    return _parts(t, args[0], argument(args, kwargs, 2, "dim", 0), out)


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
        place = argument(args, kwargs, 2, "dim")
        if place is not None:
            dims[place] = product([dims[place], args[1]])
            return dims
    return t.pin_all(args, kwargs, "its positions are repeated by values")


@rule("flip", "roll")
def moved(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Flip or roll dimensions, which are pinned."""
    dims = t.dims(args[0])
    along = args[1] if t.name_of(func) == "flip" else argument(args, kwargs, 2, "dims", ())
    along = [along] if isinstance(along, int) else along
    for place in along or range(len(dims)):
        t.pin(dims[place], f"{t.name_of(func)} moves its positions")
    return dims


@rule(
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "pad",
)  # fmt: skip
def pad(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add positions at the ends; with a constant they are fixed parts of a concatenation with the axis."""
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
    """Take windows along a dimension, which is pinned."""
    dims = list(t.dims(args[0]))
    place = args[1] % max(1, len(dims))
    t.pin(dims[place], "windows are taken along it")
    dims[place] = out.shape[place]
    return [*dims, out.shape[-1]]


@rule("diagonal", "diagonal_copy", "diag_embed", "diag")
def diagonal(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Take a diagonal; all dimensions are pinned."""
    return t.pin_all(args, kwargs, "a diagonal is taken of it")


@rule("view_as_real", "view_as_real_copy")
def as_real(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add a dimension of real and imaginary part."""
    return [*t.dims(args[0]), 2]


@rule("view_as_complex")
def as_complex(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Drop the dimension of real and imaginary part."""
    *dims, pair = t.dims(args[0])
    t.pin(pair, "its two positions are one complex number")
    return dims


@rule("pixel_shuffle")
def pixel_shuffle(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Move factors of the channels into height and width."""
    *lead, channels, _, _ = t.dims(args[0])
    try:
        kept, phase = factor(channels, size_of(channels) // args[1] ** 2)
        t.pin(phase, "it becomes height and width")
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
    """Swap the groups of channels and the channels within a group."""
    lead, channels, *rest = t.dims(args[0])
    try:
        groups, inner = factor(channels, args[1])
        channels = product([inner, groups])
    except CannotAgreeError:
        t.pin(channels, "a channel shuffle fixes its width")
    return [lead, channels, *rest]
