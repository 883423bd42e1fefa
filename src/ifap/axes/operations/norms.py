"""Norms and recurrent kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ifap.axes.expressions import CannotAgreeError, atoms_of, factor, mark_averaged, size_of
from ifap.axes.operations.base import rule
from ifap.axes.trace import carried, tensors_in

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm_elemt",
)  # fmt: skip
def batch_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Normalise over all but the channels."""
    dims = t.dims(args[0])
    channels = dims[1] if len(dims) > 1 else dims[0]
    for each in tensors_in(args[1:5]):
        t.unify(channels, t.dims(each)[0], func)
    if t.is_weight(args[0]):  # a standardised weight: the norm averages over axes of other tensors
        for dim in (dims[0], *dims[2:]):
            mark_averaged(dim, "batch norm of a weight")
    rest = [[channels] if each.dim() == 1 and each.shape[0] == size_of(channels) else t.sizes(each) for each in out[1:]]
    return [dims, *rest]


def _shows_what_is_masked(weight: Any) -> bool:
    """Return whether the weight of a norm is a tensor of the network, whose masked values are almost zero."""
    return weight is not None and bool(carried(weight).name)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Normalise over the last dimensions."""
    dims, number = t.dims(args[0]), len(args[1])
    if len(args) < 3 or not _shows_what_is_masked(args[2]):
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
    """Normalise within groups of channels, which are removed as a whole."""
    dims = t.dims(args[0])
    composed = t.name_of(func) == "group_norm"
    groups = args[1] if composed else args[6]
    for each in tensors_in(args[2:4] if composed else args[1:3]):
        t.unify(dims[1], t.dims(each)[0], func)
    try:
        group, inner = factor(dims[1], groups)
        for atom in atoms_of(group):
            atom.is_group = True
        if not _shows_what_is_masked(args[2 if composed else 1]):
            mark_averaged(inner, "group norm")
            if groups == 1:
                mark_averaged(dims[1], "group norm")
        if isinstance(group, int) and groups > 1:
            t.pin(inner, "groups of a norm are fixed parts of it")
    except CannotAgreeError:
        t.pin(dims[1], "groups of a norm cut it in the middle")
    return [dims, *[t.sizes(each) for each in out[1:]]] if isinstance(out, (tuple, list)) else dims


@rule(
    "mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh", "rnn_relu", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
    "lstm_cell", "gru_cell", "quantized_lstm", "_cudnn_rnn",
)  # fmt: skip
def recurrent(t: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Run a recurrent kernel, which reads its widths by itself."""
    return t.pin_all(args, kwargs, "a fused recurrent kernel is not followed")
