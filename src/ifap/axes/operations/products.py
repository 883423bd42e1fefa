"""Matrix products, convolutions and operations built of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ifap.axes.expressions import CannotAgreeError, Expression, atoms_of, factor, product, size_of
from ifap.axes.operations.base import argument, broadcast, part_of, rule
from ifap.axes.trace import Dims

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


def contracted(t: Tracer, func: Any, x: Tensor, y: Tensor, mine: Expression, other: Expression) -> None:
    """Unify the contracted dimensions. Between two activations they are the width of a head, which is pinned."""
    t.unify(mine, other, func)
    if not t.is_weight(x) and not t.is_weight(y):
        t.pin(mine, "a product of two activations sums over it")


@rule("mm", "_int_mm", is_product=True)
def mm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(n, k) x (k, m)."""
    x, y = args[0], args[1]
    (n, k), (k2, m) = t.dims(x), t.dims(y)
    contracted(t, func, x, y, k, k2)
    t.multiply(n, k, m)
    t.produced_by(x, y, n, m)
    return [n, m]


@rule("addmm", is_product=True)
def addmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A bias and (n, k) x (k, m)."""
    dims = mm(t, func, args[1:], kwargs, out)
    return broadcast(t, func, [dims, t.dims(args[0])], tuple(out.shape))


@rule("_sparse_addmm")
def sparse(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A term and (n, k) x (k, m), whose cost depends on how many values are not zero."""
    (n, k), (k2, m) = t.dims(args[1]), t.dims(args[2])
    contracted(t, func, args[1], args[2], k, k2)
    return broadcast(t, func, [[n, m], t.dims(args[0])], tuple(out.shape))


@rule("bmm", is_product=True)
def bmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(b, n, k) x (b, k, m)."""
    x, y = args[0], args[1]
    (b, n, k), (b2, k2, m) = t.dims(x), t.dims(y)
    t.unify(b, b2, func)
    heads = [atom for atom in atoms_of(b) if atom.pin is None]  # samples are pinned
    for atom in heads:
        atom.is_group = True
    contracted(t, func, x, y, k, k2)
    if heads and t.is_softmax(x) and not t.is_weight(y):
        t.pin(m, "it is the width of a head")
    t.multiply(b, n, k, m)
    t.produced_by(x, y, n, m)
    return [b, n, m]


@rule("baddbmm", is_product=True)
def baddbmm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A term and (b, n, k) x (b, k, m)."""
    dims = bmm(t, func, args[1:], kwargs, out)
    return broadcast(t, func, [dims, t.dims(args[0])], tuple(out.shape))


@rule("glu")
def glu(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Gate the first half of a dimension by the second: value and gate are removed together."""
    dims = list(t.dims(args[0]))
    place = argument(args, kwargs, 1, "dim", -1) % len(dims)
    values = part_of(t, dims[place], 0, out.shape[place])
    gates = part_of(t, dims[place], out.shape[place], out.shape[place])
    t.unify(values, gates, func)
    dims[place] = values
    return dims


@rule("linalg_solve_triangular", "triangular_solve", "linalg_solve")
def solve(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Solve A X = B: A and the rows of B are pinned, columns of B and the batch are handed on."""
    a, b = t.dims(args[0]), t.dims(args[1])
    for dim in (*a[-2:], b[-2]):
        t.pin(dim, "a system of equations is solved along it")
    lead = broadcast(t, func, [a[:-2], b[:-2]], tuple(out.shape[:-2]))
    return [*lead, out.shape[-2], b[-1]]


@rule("mv", "dot", "vdot", is_product=True)
def mv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """(n, k) x (k), or (k) x (k)."""
    x, y = args[0], args[1]
    *n, k = t.dims(x)
    contracted(t, func, x, y, k, t.dims(y)[0])
    if n:
        t.produced_by(x, y, n[0], 1)
    return n


@rule("addmv", is_product=True)
def addmv(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """A bias and (n, k) x (k)."""
    return broadcast(t, func, [mv(t, func, args[1:], kwargs, out), t.dims(args[0])], tuple(out.shape))


@rule("_trilinear", is_product=True)
def trilinear(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Multiply three tensors, each broadcast over the dimensions that it lacks, and sum over some."""
    factors, spread, summed = args[:3], args[3:6], args[6]
    rank = args[0].dim() + len(spread[0])
    aligned = []
    for each, missing in zip(factors, spread, strict=True):
        own = iter(t.dims(each))
        aligned.append([1 if place in missing else next(own) for place in range(rank)])
    shape = tuple(max(size_of(dims[place]) for dims in aligned) for place in range(rank))
    joined = broadcast(t, func, aligned, shape)
    t.multiply(*joined)
    for each, missing, dims in zip(factors, spread, aligned, strict=True):
        for place, dim in enumerate(dims):
            if t.is_weight(each) and place not in summed and size_of(dim) > 1:
                t.produced(each, place - sum(gone < place for gone in missing), dim)
    return [dim for place, dim in enumerate(joined) if place not in summed]


@rule("_cdist_forward", is_product=True)
def distances(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Compute the distances between the rows of (..., n, k) and of (..., m, k)."""
    x, y = t.dims(args[0]), t.dims(args[1])
    contracted(t, func, args[0], args[1], x[-1], y[-1])
    return [*broadcast(t, func, [x[:-2], y[:-2]], tuple(out.shape[:-2])), x[-2], y[-2]]


_LANES = 8  # values of half precision in 16 bytes


@rule("_grouped_mm", is_product=True)
def grouped_mm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Rows sorted by expert (n, k) x (experts, k, m); its kernel needs widths that are multiples of 16 bytes."""
    x, y = args[0], args[1]
    if x.dim() != 2 or y.dim() != 3:
        return t.pin_all(args, kwargs, "grouped_mm is not followed")
    (n, k), (experts, k2, m) = t.dims(x), t.dims(y)
    t.unify(k, k2, func)
    t.pin(experts, "it is the number of experts")
    for dim in (k, m):
        fits_half = size_of(dim) % _LANES == 0  # a network that runs in half precision still does when it is cut
        t.align(dim, _LANES if fits_half else max(1, 16 // y.element_size()))
    t.multiply(n, k, m)
    t.produced_by(x, y, n, m)
    return [n, m]


@rule("convolution", "_convolution", "mkldnn_convolution", "thnn_conv2d", is_product=True)
def convolution(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Convolve: groups of input channels make groups of output channels."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    dims, w = t.dims(x), t.dims(weight)
    channels = dims[1] if x.dim() == weight.dim() else dims[0]
    for dim in w[2:]:
        t.pin(dim, "it is the size of a kernel")
    places = _places(t, dims[-len(w) + 2 :], args, out)
    inputs, outputs = grouped(t, func, channels, w, groups, transposed=transposed)
    if bias is not None:
        t.unify(outputs, t.dims(bias)[0], func)
    t.produced(weight, 1 if transposed and groups == 1 else 0, outputs)
    counted = dims[2:] if transposed else places
    t.multiply(out.shape[0] * math.prod(weight.shape[2:]), *counted, inputs, outputs)
    t.read(weight, channels)
    return [dims[0], outputs, *places]


def _places(t: Tracer, dims: Dims, args: tuple[Any, ...], out: Any) -> Dims:
    """Return the spatial dimensions of a convolution's output; those with windows of one position are handed on."""
    weight, _, strides, padding = args[1:5]
    found: Dims = []
    for place, dim in enumerate(dims):
        stride, more = strides[place % len(strides)], padding[place % len(padding)]
        if weight.shape[2 + place] == stride == 1 and not more:
            found.append(dim)
        else:
            t.pin(dim, "a convolution runs over it")
            found.append(out.shape[2 + place])
    return found


def grouped(
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
        atom.is_group = True
    if transposed:
        t.unify(inner, second, func)
        return inner, product([group, w[1]])
    t.unify(inner, w[1], func)
    return inner, w[0]
