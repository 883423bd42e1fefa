"""Calls that take sizes: what each argument counts, and the correction of arguments in a cut network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ifap.axes.corrections import Callee, Correction
from ifap.axes.expressions import CannotAgreeError, Expression, factor, is_fixed, size_of, split
from ifap.axes.sequences import Change, Path, Recognised, Sequence, at, form_of_call
from ifap.axes.sizes import Need, Origin, Ratio, Recorder, Size, Use, origin_of, recording
from ifap.axes.trace import Attention, Tracer, carried

Entry = tuple[Path, Any, Need]
"""The path of a size among the arguments, the size, and the value that it must have."""


def _sizes(path: Path, given: Any, dims: list[Expression]) -> Iterator[Entry]:
    """Yield an entry for each size of a shape."""
    for place, (value, dim) in enumerate(zip(given, dims, strict=False)):
        yield (*path, place), value, Need(dim)


def _shape(first: int) -> Callable[..., Iterator[Entry]]:
    """Return a reader of calls such as ``x.view(2, 3)``, ``x.view((2, 3))`` and ``torch.zeros(size=(2, 3))``."""

    def entries(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
        if not isinstance(out, Tensor):
            return
        dims = carried(out).dims
        for key in ("size", "shape", "sizes"):
            if isinstance(kwargs.get(key), (tuple, list)):
                yield from _sizes(("kwargs", key), kwargs[key], dims)
                return
        if len(args) > first and isinstance(args[first], (tuple, list)):
            yield from _sizes(("args", first), args[first], dims)
        else:
            for place, value in enumerate(args[first:]):
                if isinstance(value, int) and place < len(dims):
                    yield ("args", first + place), value, Need(dims[place])

    return entries


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, *names: str) -> tuple[Path, Any]:
    for name in names:
        if name in kwargs:
            return ("kwargs", name), kwargs[name]
    return ("args", index), args[index] if index < len(args) else None


def _split(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    path, given = _given(args, kwargs, 1, "split_size_or_sections", "split_size", "split_sizes", "indices_or_sections")
    _, dim = _given(args, kwargs, 2, "dim")
    parts = [carried(each).dims[dim or 0] for each in out]
    if isinstance(given, int) and parts:
        yield path, given, Need(parts[0])
    elif isinstance(given, (tuple, list)):
        yield from _sizes(path, given, parts)


def _narrow(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    _, dim = _given(args, kwargs, 1, "dim")
    path, length = _given(args, kwargs, 3, "length")
    yield path, length, Need(carried(out).dims[dim])
    path, first = _given(args, kwargs, 2, "start")
    if isinstance(first, int) and first > 0:
        yield path, first, Need(_before(carried(args[0]).dims[dim], first))


def _before(axis: Expression, position: int) -> Expression:
    try:
        return split(axis, position)[0]
    except CannotAgreeError:
        return position


def _after(axis: Expression, position: int) -> Expression:
    try:
        return split(axis, position)[1]
    except CannotAgreeError:
        return size_of(axis) - position


def _getitem(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    x, index = args[:2]
    items = index if isinstance(index, tuple) else (index,)
    dims = carried(x).dims
    taken = sum(1 for item in items if item is not None and item is not Ellipsis)
    place = 0
    for number, item in enumerate(items):
        if item is Ellipsis:
            place = len(dims) - (taken - place)
            continue
        if item is None:
            continue
        if isinstance(item, slice) and place < len(dims) and (item.step is None or item.step == 1):
            path = ("args", 1, number) if isinstance(index, tuple) else ("args", 1)
            for end in ("start", "stop"):
                bound = getattr(item, end)
                whole = size_of(dims[place])
                if isinstance(bound, int) and 0 < bound < whole:
                    yield (*path, end), bound, Need(_before(dims[place], bound))
                elif isinstance(bound, int) and -whole < bound < 0:
                    yield (*path, end), bound, Need(_after(dims[place], whole + bound), from_end=True)
        place += item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _normalized(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    path, shape = _given(args, kwargs, 1, "normalized_shape")
    if isinstance(shape, (tuple, list)):
        yield from _sizes(path, shape, carried(out).dims[-len(shape) :])


def _groups(index: int, name: str) -> Callable[..., Iterator[Entry]]:
    """Return a reader of the number of groups that channels are divided into."""

    def entries(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
        path, groups = _given(args, kwargs, index, name)
        x = args[0] if args else kwargs["input"]
        if not isinstance(groups, int) or groups == 1:
            return
        weight = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else kwargs.get("weight")
        lead = x.dim() == weight.dim() if index == 6 and isinstance(weight, Tensor) else True
        dims = carried(x).dims
        try:
            yield path, groups, Need(factor(dims[1] if lead else dims[0], int(groups))[0])
        except CannotAgreeError:
            return

    return entries


def _repeats(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    path, number = _given(args, kwargs, 1, "repeats")
    _, dim = _given(args, kwargs, 2, "dim")
    if isinstance(number, int) and isinstance(dim, int):
        yield path, number, Need(carried(out).dims[dim], over=carried(args[0]).dims[dim])
    if isinstance(kwargs.get("output_size"), int) and isinstance(dim, int):
        yield ("kwargs", "output_size"), kwargs["output_size"], Need(carried(out).dims[dim])


def _times(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    """Yield the repetitions of dimensions of size one: only these are sizes of an axis."""
    x, dims = args[0], carried(out).dims
    spread = isinstance(args[1], (tuple, list)) if len(args) > 1 else False
    given = list(args[1]) if spread else list(args[1:])
    lead = len(given) - x.dim()
    for place, number in enumerate(given):
        path = ("args", 1, place) if spread else ("args", 1 + place)
        if place < lead or carried(x).dims[place - lead] == 1:
            yield path, number, Need(dims[place])


_READERS: dict[str, Callable[..., Iterator[Entry]]] = {
    **dict.fromkeys(("view", "reshape", "expand", "new_zeros", "new_ones", "new_empty", "broadcast_to"), _shape(1)),
    "resize_": _shape(1),
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn", "full"), _shape(0)),
    **dict.fromkeys(("split", "split_with_sizes", "tensor_split_sizes"), _split),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _groups(6, "groups")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _groups(6, "groups")),
    "new_full": _shape(1),
    "narrow": _narrow,
    "__getitem__": _getitem,
    "__setitem__": _getitem,
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "group_norm": _groups(1, "num_groups"),
    "channel_shuffle": _groups(1, "groups"),
    "repeat_interleave": _repeats,
    "repeat": _times,
}  # fmt: skip


def _unflatten(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Entry]:
    path, sizes = _given(args, kwargs, 2, "sizes")
    _, dim = _given(args, kwargs, 1, "dim")
    if isinstance(sizes, (tuple, list)) and isinstance(dim, int):
        yield from _sizes(path, sizes, carried(out).dims[dim % args[0].dim() :])


_READERS["unflatten"] = _unflatten

_SHAPE, _SIZE, _NUMEL = Tensor.shape.__get__, Tensor.size, Tensor.numel  # type: ignore[attr-defined]
FUSED_ATTENTION = "scaled_dot_product_attention"
ATTENTION = ("softmax", FUSED_ATTENTION)
"""Functions that make attention probabilities, or use them at once."""
_OPAQUE = {"multi_head_attention_forward"}


_SHAPED_LIKE = ("view_as", "reshape_as", "expand_as")
"""Functions whose result has the shape of their second argument, which torch reads below this mode."""
_SHAPED = ("view", "reshape", "expand")


def call_key(name: str, args: tuple[Any, ...]) -> str:
    """Return the key to count calls by: the function and, if it takes a shape, the numbers of given and open sizes.

    A forward with a cache leaves some calls out; those of another form are counted as before.
    """
    if name not in _SHAPED:
        return name
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    return f"{name}({','.join('-1' if type(size) is int and size == -1 else 'n' for size in sizes)})"


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_LISTENING: list[object] = []
_WRITTEN: list[Arguments] = []
"""The arguments that the forward gave to the present call, if a correction has changed them."""


@contextmanager
def listening() -> Iterator[None]:
    """Let corrections keep the arguments that they change for `as_written`, inside the block.

    So the trace of a network that was cut before records the arguments that its forward gives, and the corrections of a
    second cut apply to these instead of the corrected ones.
    """
    _LISTENING.append(None)
    try:
        yield
    finally:
        _LISTENING.pop()
        _WRITTEN.clear()


def as_written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return the arguments of a call before its correction; the mode that listens calls this once a call."""
    return _WRITTEN.pop() if _WRITTEN else (args, kwargs)


class SizeMode(TorchFunctionMode):
    """Return sizes as numbers that remember their axis, and record each size that a call takes."""

    def __init__(self, tracer: Tracer, recorder: Recorder) -> None:
        super().__init__()
        self._tracer, self._recorder = tracer, recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _SHAPE:
            return _remembered_shape(args[0])
        if func is _SIZE:
            sizes = _remembered_shape(args[0])
            place = args[1] if len(args) > 1 else kwargs.get("dim")
            return sizes if place is None else sizes[place]
        if func is _NUMEL:
            return math.prod(_remembered_shape(args[0]))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "dim", "__set__"):
            return func(*args, **kwargs)
        written = as_written(args, kwargs)
        tracer, running, key = self._tracer, self._tracer.running, call_key(name, args)
        self._recorder.module = module = running.module
        ordinal = running.count(key)
        if name in _READERS:
            self._recorder.note_call(running.stack, running.counters, key, form_of_call(*written))
        if name in _OPAQUE:
            tracer.pin_all(args, kwargs, f"{name} reads its widths by itself")
        # A forward may choose a fused kernel for its attention by itself.
        with sdpa_kernel(SDPBackend.MATH) if name == FUSED_ATTENTION else nullcontext():
            out = func(*args, **kwargs)
        if name in _SHAPED_LIKE:
            tracer.shape_like(out, args[0], args[1] if len(args) > 1 else kwargs["other"], name)
        with recording(None):
            self._note((module, key, ordinal), name, (args, kwargs), written, out)
        if name in ATTENTION and isinstance(out, Tensor) and out.dim() > 2:
            tracer.axes.attention[Attention(module, name, ordinal)] = carried(out).dims[-3]
        return out

    def _note(self, call: tuple[str, str, int], name: str, given: Arguments, written: Arguments, out: Any) -> None:
        """Record the sizes of a call: `given` are the arguments that torch gets, `written` those before correction."""
        reader = _READERS.get(name)
        found: set[Path] = set()
        uses, corrected = self._recorder.uses, written[0] is not given[0] or written[1] is not given[1]
        if reader is not None:
            for path, value, need in reader(*given, out):
                if isinstance(value, int) and not isinstance(value, bool) and value != -1:
                    found.add(path)
                    own = at(path, *written)
                    if corrected or isinstance(own, Size) or (need.counts is not None and not is_fixed(need.counts)):
                        uses.append(Use(*call, path, origin_of(own), need))
        for path, value in _remembered_among(*written):
            if path not in found:
                now = at(path, *given)
                plain = int(now) if isinstance(value, Size) else float(now)
                uses.append(Use(*call, path, value.origin, Need(value=plain)))


def _remembered_shape(x: Tensor) -> torch.Size:
    """Return the shape of a tensor with numbers that remember their axis."""
    with torch._C.DisableTorchFunction():
        shape = x.shape
    known = x.__dict__.get("_carried")
    if known is None or not all(type(size) is int for size in shape):
        return shape
    return torch.Size(
        [size if size == 1 else Size(size, Origin("axis", (dim,))) for size, dim in zip(shape, known.dims, strict=True)]
    )


def _remembered_among(args: Any, kwargs: Any) -> Iterator[tuple[Path, Size | Ratio]]:
    for place, value in enumerate(args):
        if isinstance(value, _HOLDING):
            yield from _inside(("args", place), value)
    for key, value in kwargs.items():
        if isinstance(value, _HOLDING):
            yield from _inside(("kwargs", key), value)


_HOLDING = (Size, Ratio, tuple, list, slice)


def _inside(path: Path, value: Any) -> Iterator[tuple[Path, Size | Ratio]]:
    if isinstance(value, (Size, Ratio)):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            yield from _inside((*path, place), item)
    elif isinstance(value, slice):
        for end in ("start", "stop", "step"):
            yield from _inside((*path, end), getattr(value, end))


# --- in the cut network ---------------------------------------------------------------------------


class CorrectedSizes(TorchFunctionMode):
    """Correct size arguments of calls while the forward of a module runs.

    `calls` maps a function to its traced calls, and to the changes of arguments by the index of the call.
    """

    def __init__(self, calls: Mapping[str, tuple[Sequence, Mapping[int, list[Change]]]]) -> None:
        super().__init__()
        self._calls = {name: Recognised(*known) for name, known in calls.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        calls = self._calls.get(call_key(func.__name__, args))
        if calls is not None:
            changes = calls.changes(args, kwargs)
            if changes and _LISTENING and not _WRITTEN:
                _WRITTEN.append((args, kwargs))
            for path, value, fraction, _ in changes:
                if path[0] == "args":
                    args = _corrected(args, path[1:], value, fraction)
                else:
                    kwargs = _corrected(kwargs, path[1:], value, fraction)
        return func(*args, **kwargs)


def _corrected(tree: Any, path: Path, value: Any, fraction: Any) -> Any:
    """Return arguments in which the number at a path is set or scaled."""
    if not path:
        return value if fraction is None else tree * fraction[0] // fraction[1]
    step, rest = path[0], path[1:]
    if isinstance(tree, slice):
        ends = {
            end: _corrected(getattr(tree, end), rest, value, fraction) if end == step else getattr(tree, end)
            for end in ("start", "stop", "step")
        }
        return slice(ends["start"], ends["stop"], ends["step"])
    if isinstance(tree, dict):
        return {key: _corrected(item, rest, value, fraction) if key == step else item for key, item in tree.items()}
    items = [_corrected(item, rest, value, fraction) if place == step else item for place, item in enumerate(tree)]
    return items if isinstance(tree, list) else tuple(items)


OWN_FORWARD = "_forward_without_corrections"
"""Attribute that holds a forward that was set on the instance, as some libraries do after they fuse layers."""


def corrected_forward(
    module: Any, corrections: list[Correction], sequences: Mapping[Callee, Sequence]
) -> Callable[..., Any]:
    """Return the forward of a module with corrected size arguments, to be put into its attribute ``forward``.

    `corrections` are those of this module; `sequences` holds the traced calls of all modules.
    """
    changes: dict[str, dict[int, list[Change]]] = {}
    for each in corrections:
        changes.setdefault(each.function, {}).setdefault(each.ordinal, []).append(each.change)
    calls = {name: (sequences[corrections[0].module, name], its) for name, its in changes.items()}

    return partial(_with_corrected_sizes, module, calls)


def is_corrected(forward: Any) -> bool:
    """Whether a forward is one that `corrected_forward` made."""
    return isinstance(forward, partial) and forward.func is _with_corrected_sizes


def _with_corrected_sizes(module: Any, calls: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a module; defined at the top level of this file, so that a network with it can be pickled."""
    own = module.__dict__.get(OWN_FORWARD)
    with CorrectedSizes(calls):
        return type(module).forward(module, *args, **kwargs) if own is None else own(*args, **kwargs)
