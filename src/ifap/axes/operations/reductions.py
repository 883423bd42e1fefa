"""Operations that reduce dimensions or work along one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ifap.axes.expressions import mark_averaged, size_of
from ifap.axes.operations.base import argument, broadcast, rule
from ifap.axes.trace import Dims, tensors_in

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


_AVERAGES = ("mean", "var", "std", "var_mean", "std_mean", "max", "min", "amax", "amin", "aminmax")
_FINDS = ("max", "min")
_LOOKS = (
    "argmax", "argmin", "prod", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin", "quantile",
    "nanquantile", "count_nonzero", "logsumexp",
)  # fmt: skip


@rule("sum", "nansum", "norm", "linalg_vector_norm", "any", "all", *_AVERAGES, *_LOOKS)
def reduce(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Reduce dimensions. An average is recorded for the axis; an operation that compares positions pins it.

    A mean or maximum over fewer positions is correct, but an index of the maximum must keep its meaning.
    """
    name, dims = t.name_of(func), t.dims(args[0])
    along = _reduced(func, args, kwargs, len(dims))
    for place in along:
        if name in _AVERAGES:
            mark_averaged(dims[place], name)
        elif name in _LOOKS:
            t.pin(dims[place], f"{name} compares its positions")
    if name in _FINDS and isinstance(out, (tuple, list)):
        for place in along:
            t.pin_on_use(out[1], dims[place], f"{name} says which of its positions it is")
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
    "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod",
    "logcumsumexp", "sort", "topk", "argsort", "_weight_norm",
)  # fmt: skip
def along_one(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Normalise, accumulate or sort along one dimension, which is pinned."""
    name, dims = t.name_of(func), list(t.dims(args[0]))
    at = 2 if name == "topk" else 1
    place = argument(args, kwargs, at, "dim", -1)
    place = (place if isinstance(place, int) else -1) % max(1, len(dims))
    if dims:
        t.pin(dims[place], f"{name.strip('_')} runs over it")
        if name == "topk":
            dims[place] = (out[0] if isinstance(out, (tuple, list)) else out).shape[place]
    if "softmax" in name:
        t.mark_softmax()
    return [dims for _ in out] if isinstance(out, (tuple, list)) else dims


@rule("renorm")
def renorm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Bound the norm of each row along one dimension; the others are pinned."""
    dims = t.dims(args[0])
    for place, dim in enumerate(dims):
        if place != argument(args, kwargs, 2, "dim") % len(dims):
            t.pin(dim, "renorm runs over it")
    return dims


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss")
def loss(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Compare two tensors value by value, and add up or average all differences."""
    x, y = args[:2]
    joined = broadcast(t, func, [t.dims(each) for each in tensors_in(args)], torch.broadcast_shapes(x.shape, y.shape))
    if out.dim() == len(joined):
        return joined
    for dim in joined:
        mark_averaged(dim, t.name_of(func))
    return []


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Scale each row of a weight to the norm that another parameter holds."""
    dims, scale = t.dims(args[0]), t.dims(args[1])
    for mine, other in zip(dims, scale, strict=False):
        if size_of(other) != 1:
            t.unify(mine, other, func)
    return [dims, scale]
