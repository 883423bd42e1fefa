"""Operations on each value alone, and operations that make values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ifap.axes.expressions import Atom, Expression, size_of
from ifap.axes.operations.base import argument, broadcast, rule
from ifap.axes.trace import Dims, carried, tensors_in

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


@rule(  # those that torch does not tag
    "hardswish_backward", "floor_divide", "where", "masked_fill", "lerp", "addcmul", "addcdiv", "clamp", "softplus",
    "gelu", "silu", "elu", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "threshold", "hardtanh",
    "log_sigmoid_forward", "nan_to_num", "bitwise_and", "logical_and", "polar", "complex", "real", "imag",
    "softshrink", "hardshrink", "celu", "special_expit", "remainder", "fmod", "pow", "atan2",
)  # fmt: skip
def pointwise(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Unify aligned dimensions; those of size one are broadcast."""
    inputs = [t.dims(x) for x in tensors_in((*args, *kwargs.values()))]
    if not isinstance(out, (tuple, list)):
        return broadcast(t, func, inputs, tuple(out.shape))
    if isinstance(args[0], (tuple, list)):  # foreach
        return t.pin_all(args, kwargs, f"{t.name_of(func)} is not followed")
    return [broadcast(t, func, inputs, tuple(each.shape)) for each in out]


@rule(
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "_to_copy", "tril", "triu", "native_dropout",
    "bernoulli", "dropout", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "randint_like", "_conj", "feature_dropout", "alpha_dropout", "_assert_tensor_metadata", "positive",
    "uniform_", "normal_", "random_", "exponential_", "zero_", "fill_", "fake_quantize_per_tensor_affine",
    "hardswish", "hardsigmoid", "hardsigmoid_", "lift_fresh", "to", "lift", "conj",
    "resolve_conj", "resolve_neg", "erf_", "mish", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_tensor_affine_cachemask",
)  # fmt: skip
def same(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Hand the dimensions of the first argument on."""
    dims = t.dims(args[0])
    return [dims for _ in out] if isinstance(out, (tuple, list)) else dims


@rule("resize_", "resize_as_")
def resized(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Resize in place; a tensor that already has the size keeps its dimensions."""
    dims = t.dims(args[0])
    return dims if [size_of(dim) for dim in dims] == list(out.shape) else made(t, func, args, kwargs, out)


@rule("fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask")
def quantised_by_channel(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Round values with a scale and a zero for each channel."""
    for each in args[1:3]:
        _of_channels(t, func, each, t.dims(args[0])[args[3]])
    return same(t, func, args, kwargs, out)


@rule("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant")
def observed_and_quantised(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Round values with scales and zeros that follow their range, of a tensor or of each channel."""
    if argument(args, kwargs, 11, "per_row_fake_quant", False):
        for each in args[3:7]:
            _of_channels(t, func, each, t.dims(args[0])[args[10]])
    return same(t, func, args, kwargs, out)


def _of_channels(t: Tracer, func: Any, values: Tensor, channels: Expression) -> None:
    """Unify the dimension of a vector with the channels, of which it has one value each."""
    _take_axes(t, values, [channels])
    for dim in t.dims(values):
        t.unify(dim, channels, func)


def _take_axes(t: Tracer, values: Tensor, dims: Dims) -> None:
    """Give an integer buffer, which has no axes of its own, the axes of the values written into it."""
    if values.is_floating_point() or values.dim() != len(dims):
        return
    for own in (t.dims(values), t.axes.dims.get(carried(values).name, [])):
        for place, (mine, other) in enumerate(zip(own, dims, strict=False)):
            if isinstance(mine, int) and mine == size_of(other):
                own[place] = other


@rule("copy")
def copied(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Write one tensor into another, which may be a view; aligned dimensions are unified."""
    if carried(args[0]).name:
        _take_axes(t, args[0], t.dims(args[1]))
    return broadcast(t, func, [t.dims(args[0]), t.dims(args[1])], tuple(args[0].shape))


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "empty_strided",
    "new_empty_strided", "rand", "randn", "scalar_tensor", "empty_permuted", "normal",
)  # fmt: skip
def made(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Make values that depend on no position: each dimension is a new axis."""
    return [Atom(size) if size > 1 else size for size in out.shape]


@rule(
    "arange", "linspace", "eye", "randperm", "randint", "logspace", "nonzero", "item", "_local_scalar_dense", "equal",
    "is_nonzero", "allclose", "tril_indices", "triu_indices", "hann_window", "hamming_window", "unique_consecutive",
    "_unique2", "unique_dim", "torchvision.nms", "bincount", "histc", "searchsorted", "bucketize", "isin",
    "nonzero_static", "affine_grid_generator",
)  # fmt: skip
def fixed(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Pin the inputs of an operation that depends on positions or values; its output has fixed sizes."""
    for x in tensors_in((*args, *kwargs.values())):
        for dim in t.dims(x):
            t.pin(dim, f"{t.name_of(func)} looks at its positions")
    return t.sizes(out)
