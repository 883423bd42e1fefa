"""Operations over the positions of images and windows: channels are handed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ifap.axes.expressions import CannotAgreeError, factor, product
from ifap.axes.operations.base import rule
from ifap.axes.operations.products import grouped
from ifap.axes.trace import tensors_in

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "_upsample_nearest_exact1d", "adaptive_avg_pool2d",
    "max_pool2d", "max_pool1d", "max_pool3d", "adaptive_avg_pool3d", "max_unpool2d", "max_unpool3d",
    "fractional_max_pool2d", "mkldnn_max_pool2d", "max_pool1d_with_indices",
)  # fmt: skip
def over_positions(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Pool or enlarge: batch and channels are handed on, positions are fixed."""
    dims = t.dims(args[0])
    first = out[0] if isinstance(out, (tuple, list)) else out
    name = t.name_of(func)
    rank = 1 if "1d" in name else 3 if "3d" in name else 2
    for each in tensors_in(args[1:]):  # positions of the largest values, for unpooling
        for mine, other in zip(dims[:-rank], t.dims(each)[:-rank], strict=False):
            t.unify(mine, other, func)
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


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Transform dimensions to frequencies or back: these are pinned, the others are handed on."""
    dims = list(t.dims(args[0]))
    for place in args[1]:
        t.pin(dims[place], "a Fourier transform runs along it")
        dims[place] = out.shape[place]
    return dims


@rule("im2col")
def im2col(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Unfold windows: each channel becomes as many channels as a window has positions."""
    dims = t.dims(args[0])
    kernel = args[1]
    for dim in dims[-2:]:
        t.pin(dim, "windows are taken along it")
    return [*dims[:-3], product([dims[-3], kernel[0] * kernel[1]]), out.shape[-1]]


@rule("col2im")
def col2im(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Fold windows into an image, where overlapping values are added."""
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


@rule("torchvision.deform_conv2d", is_product=True)
def deform_conv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Convolve at shifted positions; the axes of offsets and masks are pinned."""
    x, weight, offset, mask, bias = args[:5]
    for each in (offset, mask):
        for dim in t.dims(each):
            t.pin(dim, "it says where a convolution looks")
    dims, w = t.dims(x), t.dims(weight)
    groups = args[11] if len(args) > 11 else 1
    inputs, outputs = grouped(t, func, dims[1], w, groups, transposed=False)
    for dim in w[2:]:
        t.pin(dim, "it is the size of a kernel")
    t.unify(outputs, t.dims(bias)[0], func)
    t.produced(weight, 0, outputs)
    t.multiply(math.prod((out.shape[0], *out.shape[2:], *weight.shape[2:])), inputs, outputs)
    return [dims[0], outputs, *out.shape[2:]]
