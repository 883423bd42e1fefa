"""Make the averages of a masked and of a cut network agree, so that the two can be compared.

Units that are masked still count where a norm or a mean runs over them. A norm with a weight shows by that weight which
positions are masked: it runs over the others, as in the cut network. For other averages the cut network is made to
count zeros in place of the removed units, as the masked one does where masked units are zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ifap.axes.dispatch import DispatchMode

_aten = torch.ops.aten
_LAYER_NORM, _GROUP_NORM = _aten.native_layer_norm.default, _aten.native_group_norm.default
_RMS_NORM = getattr(getattr(_aten, "_fused_rms_norm", None), "default", None)  # older versions of torch have none
_OVER_LAST = {_LAYER_NORM, _RMS_NORM}
_REDUCTIONS = {
    _aten.mean.default, _aten.mean.dim, _aten.var.correction, _aten.std.correction, _aten.var_mean.correction,
    _aten.std_mean.correction,
}  # fmt: skip
_MASKED = 1e-20
"""Smaller absolute values are those of masked positions: `ifap.axes.proof` scales these to almost zero."""


class Averaged(NamedTuple):
    """One average of the masked network: the shape of its input, and the number of zero positions in each dimension."""

    shape: torch.Size
    zeros: list[int]


class MaskedAverages(DispatchMode):
    """Let norms with a weight run over the positions that are not masked, and record the inputs of other averages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Averaged] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        if func in _OVER_LAST and args[2] is not None:
            return _over_last(func, *args)
        if func is _GROUP_NORM and args[1] is not None:
            return _over_groups(*args)
        if func in _OVER_LAST or func in _REDUCTIONS:
            self.seen.append(Averaged(args[0].shape, _zeros(args[0])))
        return func(*args, **(kwargs or {}))


class CutAverages(DispatchMode):
    """Let averages count zeros for removed units.

    `seen` holds the same averages of the masked network, in the order of the calls. `agree` says whether the masked
    network counted zeros for the removed units, as these averages do now.
    """

    def __init__(self, seen: Iterable[Averaged]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = iter(seen)
        self.agree = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        is_norm = func in _OVER_LAST and args[2] is None
        if not is_norm and func not in _REDUCTIONS:
            return func(*args, **kwargs)
        x = args[0]
        shape, zeros = next(self._seen, (x.shape, []))
        dims = range(-len(args[1]), 0) if is_norm else _dims(func, args, kwargs, x.dim())
        if len(shape) != x.dim() or all(shape[dim] == x.shape[dim] for dim in dims):
            return func(*args, **kwargs)
        self.agree = self.agree and all(zeros[dim] >= shape[dim] - x.shape[dim] for dim in dims)
        padded = _padded(x, shape, dims)
        if not is_norm:
            return func(padded, *args[1:], **kwargs)
        out, *rest = func(padded, list(shape[-len(args[1]) :]), *args[2:], **kwargs)
        return (out[tuple(map(slice, x.shape))], *rest)


def _zeros(x: Tensor) -> list[int]:
    """Return for each dimension the number of positions with nothing but (almost) zeros."""
    if not x.numel():
        return [0] * x.dim()
    is_zero = x.abs() < _MASKED
    return [int(is_zero.movedim(dim, 0).reshape(x.shape[dim], -1).all(dim=1).sum()) for dim in range(x.dim())]


def _dims(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rank: int) -> Iterable[int]:
    """Return the dimensions that a reduction runs over."""
    along = None if func is _aten.mean.default else args[1] if len(args) > 1 else kwargs.get("dim")
    return along or range(rank)


def _padded(x: Tensor, shape: torch.Size, dims: Iterable[int]) -> Tensor:
    """Return a tensor that is filled up with zeros to a larger shape in some dimensions."""
    widths = [0] * x.dim()
    for dim in dims:
        widths[dim] = max(0, shape[dim] - x.shape[dim])
    return functional.pad(x, [width for each in reversed(widths) for width in (0, each)])


def _over_last(func: Any, x: Tensor, shape: list[int], *others: Any) -> Any:
    """Normalise over the last dimensions, without masked positions."""
    kept = others[0].flatten().abs() > _MASKED
    if kept.all():
        return func(x, shape, *others)
    rows = x.flatten(x.dim() - len(shape))
    selected = [each.flatten()[kept] if isinstance(each, Tensor) else each for each in others]
    out, *statistics = func(rows[..., kept], [int(kept.sum())], *selected)
    whole = rows.new_zeros(rows.shape)  # contiguous, as the output of a norm is
    whole[..., kept] = out
    lead = x.shape[: x.dim() - len(shape)]
    return (whole.view_as(x), *(each.view(*lead, *[1] * len(shape)) for each in statistics))


def _over_groups(
    x: Tensor, weight: Tensor, bias: Tensor | None, samples: int, channels: int, positions: int, groups: int, eps: float
) -> Any:
    """Normalise within groups of channels, without masked ones."""
    kept = weight.abs() > _MASKED
    left = {count for count in kept.view(groups, -1).sum(dim=1).tolist() if count}
    if kept.all() or len(left) != 1:
        return _GROUP_NORM(x, weight, bias, samples, channels, positions, groups, eps)
    number = int(kept.sum())
    its_bias = None if bias is None else bias[kept]
    out, *statistics = _GROUP_NORM(
        x[:, kept], weight[kept], its_bias, samples, number, positions, number // left.pop(), eps
    )
    whole = torch.zeros_like(x)
    whole[:, kept] = out
    return (whole, *statistics)
