"""Compensate the layers that read removed units.

A layer that mixes channels, a convolution or a linear layer, computes ``y = W x + b``. Without the inputs G it loses
``W_G x_G``, of which the inputs K that stay can say a part: ``x_G`` is about ``m_G + A (x_K - m_K)`` with the means m
and the A of ridge regression. So ``W_K + W_G A`` and the bias ``b + W_G (m_G - A m_K)`` do what can be done without
training.

How strong the ridge is, or whether anything is changed at all, each layer's held-out error says: what is fitted on one
half of the calibration samples is measured on the other, both ways round. What is taken is then fitted on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ifap.axes.cut import Lost, lost_positions, scale_positions, without_positions
from ifap.axes.tensors import named_tensors
from ifap.axes.units import Graph, Indices
from ifap.costs import NetworkError
from ifap.forward import Inputs
from ifap.layers import add_bias, has_plain_forward, modules_by_name, weight_by_group
from ifap.made_weights import CannotSetError, Made, agree, give_weight, made_tensors, restoring
from ifap.scores.matrices import matrices
from ifap.scores.moments import Halves, Moments, halves, input_means, is_too_wide, widths_read
from ifap.scores.reading import owners, readers

RIDGES = (1e-3, 1e-2, 0.05, 0.2, 1.0, math.inf)
"""Shares of the mean variance of the inputs that stay; infinity puts the means of the inputs that go into the bias."""

_ALMOST_ZERO = 1e-9  # not zero: a weight that is divided by its norm would be no number


@dataclass
class Compensation:
    """The changes of `compensate`, and how to undo them.

    Parameters
    ----------
    said : dict of str to str
        Layer to what was done to it: the ridge that its held-out error chose, ``means`` or ``nothing``, and by how much
        that error fell.
    """

    said: dict[str, str] = field(default_factory=dict)
    kept: list[tuple[str, Made, Tensor]] = field(default_factory=list)
    _back: list[Callable[[], None]] = field(default_factory=list)

    def undo(self) -> None:
        """Put the network back as it was."""
        for step in reversed(self._back):
            step()

    def require_kept(self) -> None:
        """See that the cut layers make the weights that they had made before.

        Raises a NetworkError if one does not; it names the layer.
        """
        for name, made, weight in self.kept:
            if not agree(made.value(), weight):
                raise NetworkError(
                    f"'{made.name}' is made from other tensors, and a cut would change what stays of it: remove the "
                    "parametrization first, or ignore the layer",
                    name,
                )


def compensate(
    model: nn.Module,
    graph: Graph,
    removed: Indices,
    batches: Iterable[Inputs],
    known: Mapping[str, Halves] | None = None,
    *,
    new_biases: bool = True,
) -> Compensation:
    """Refit the layers that read units before these are removed, so that the remaining inputs replace them.

    Call it before the units are cut. Weights of the removed inputs are left as they are, and so are layers that share
    their weight with another, which is not theirs to change. With `new_biases` a layer without a bias may be given one.

    `model` is changed in place, and `graph` learns of the biases that are made. `removed` are the units that are about
    to go. `batches` are iterated once where the moments of all layers fit into memory. `known` holds moments that were
    measured before; see `ifap.scores.moments.halves`.

    Raises a ScoreError if there is no batch, if the network does not take one, or if an input is not finite; it names
    the layer. Raises a SplitError if `batches` is a test split.
    """
    read_by = readers(model, graph, matrices(model, graph, batches).by_name)
    gone = {name: np.isin(each.units, removed) for name, each in read_by.items() if each.can_change}
    layers = {name: read_by[name].layer for name, lost in gone.items() if lost.any() and not lost.all()}
    wide = {name: layers.pop(name) for name, width in widths_read(layers).items() if is_too_wide(width)}
    done = Compensation()
    for name, found in halves(model, batches, layers, known=known):
        _refit(layers[name], name, graph, torch.from_numpy(gone[name]), found, done, new_biases=new_biases)
    for name, mean in input_means(model, batches, wide).items() if wide else ():
        _shift(wide[name], name, graph, torch.from_numpy(gone[name]), mean, done, new_biases=new_biases)
    keep_made_weights(model, graph, removed, done)
    return done


def keep_made_weights(model: nn.Module, graph: Graph, removed: Indices, done: Compensation) -> None:
    """Set removed weights to almost zero in layers that make their weight, so that the kept weights do not change.

    A weight norm would scale the kept weights up to the norm of the uncut weight. `Compensation.require_kept` checks
    them after the cut. `done` takes what undoes the change, and the weights that the cut layers are to make.
    """
    makers = {name: found for name, module in modules_by_name(model).items() if (found := made_tensors(module))}
    tensors = named_tensors(model) if makers else {}
    weights: dict[Made, Tensor] = {}
    lost_by_made: dict[Made, tuple[str, list[Lost]]] = {}
    for tensor, lost in lost_positions(graph, removed).items() if makers else ():
        name = next((each for each in owners(tensor) if each in makers), None)
        if name is None:
            continue
        for made in makers[name]:
            if not tensor.removeprefix(f"{name}.").startswith(made.prefixes):
                continue
            if made not in weights:
                weights[made] = made.value().clone()
            if tensors[tensor].shape == weights[made].shape:
                lost_by_made[made] = name, lost
    for made, (name, lost) in lost_by_made.items():
        weight = weights[made]
        for dim, gone in lost:
            scale_positions(weight, dim, gone, _ALMOST_ZERO)
        with suppress(CannotSetError):
            done._back.append(made.set(weight))
        for dim, gone in lost:
            weight = without_positions(weight, dim, gone)
        done.kept.append((name, made, weight))


def biases_to_come(model: nn.Module, graph: Graph) -> int:
    """Return how many values the biases would have that `compensate` may make."""
    layers = [each.layer for each in readers(model, graph).values() if each.can_change and each.reads_any]
    return sum(len(weight_by_group(layer).flatten(0, 1)) for layer in layers if layer.bias is None)


def _refit(
    module: Any, name: str, graph: Graph, lost: Tensor, found: Halves, done: Compensation, *, new_biases: bool
) -> None:
    """Refit one layer, each of its groups of channels by itself."""
    weight = weight_by_group(module)
    lost = lost.to(weight.device)
    groups, outputs, inputs, _ = weight.shape
    shift = weight.new_zeros(groups, outputs)
    has_bias = _may_have_bias(module, new_biases=new_biases)
    words = []
    for number in range(groups):
        part = slice(number * inputs, (number + 1) * inputs)
        its = lost[part]
        if not its.any() or its.all():
            continue
        refit = _best(weight[number], its, (found[0].of(part), found[1].of(part)), has_bias=has_bias)
        words.append(refit.words)
        weight[number][:, ~its] += refit.weights
        shift[number] = refit.shift / _phases(module)
    done.said[name] = ", ".join(dict.fromkeys(words)) or "nothing"
    _put(module, name, graph, weight, shift.flatten(), done)


def _shift(
    module: Any, name: str, graph: Graph, lost: Tensor, mean: Tensor, done: Compensation, *, new_biases: bool
) -> None:
    """Add the means of lost inputs to the bias of a layer that is too wide for second moments."""
    weight = weight_by_group(module)
    groups, _, inputs, _ = weight.shape
    if not _may_have_bias(module, new_biases=new_biases):
        done.said[name] = f"nothing: it reads too many channels ({inputs}) and has no bias"
        return
    gone = torch.where(lost.to(weight.device), mean.to(weight.device), 0).unflatten(0, (groups, inputs))
    shift = (weight.sum(dim=-1) * gone.unsqueeze(1)).sum(dim=-1) / _phases(module)
    done.said[name] = f"means only: it reads too many channels ({inputs}) for least squares"
    _put(module, name, graph, weight, shift.flatten(), done)


def _may_have_bias(module: Any, *, new_biases: bool) -> bool:
    return module.bias is not None or (new_biases and has_plain_forward(module))


def _phases(module: Any) -> int:
    """Return into how many outputs a transposed convolution spreads its taps: each sees but its share of a mean."""
    return math.prod(module.stride) if isinstance(module, _ConvTransposeNd) else 1


def _put(module: Any, name: str, graph: Graph, by_group: Tensor, shift: Tensor, done: Compensation) -> None:
    """Give a layer its new weights and add to its bias; one is made where there is none and it is needed."""
    if isinstance(module, _ConvTransposeNd):
        by_group = by_group.transpose(1, 2)
    try:
        undo = give_weight(module, by_group.flatten(0, 1).reshape(module.weight.shape))
    except CannotSetError:  # a layer that makes its weight took another one, but not this
        done.said[name] = "nothing"
        return
    done._back.append(undo)
    if module.bias is not None:
        done._back.append(restoring(module.bias))
    with torch.no_grad():
        if module.bias is None and bool(shift.any()):
            add_bias(module)
            graph.know_bias(name)
            done._back.append(partial(_without_bias, module, name, graph))
        if module.bias is not None:
            module.bias.add_(shift.to(module.bias.dtype))


def _without_bias(module: Any, name: str, graph: Graph) -> None:
    module.bias = None
    graph.forget_bias(name)


# --- ridge regression -----------------------------------------------------------------------------


class _Refit(NamedTuple):
    """The change of the weights of kept inputs (outputs, kept, taps) and of the bias (outputs,)."""

    words: str
    weights: Tensor
    shift: Tensor


class _Split(NamedTuple):
    """Moments of the kept and of the lost channels."""

    kept: Tensor  # (kept, kept), centred
    cross: Tensor  # (kept, lost)
    lost: Tensor  # (lost, lost)
    kept_means: Tensor
    lost_means: Tensor


def _split(moments: Moments, lost: Tensor, *, has_bias: bool) -> _Split:
    """Split the moments into kept and lost channels. Without a bias they are taken around zero instead of the mean."""
    means, covariance = moments.mean, moments.covariance
    if not has_bias:
        covariance, means = torch.addr(covariance, means, means), torch.zeros_like(means)
    rows, others = covariance[~lost], covariance[lost]
    return _Split(rows[:, ~lost], rows[:, lost], others[:, lost], means[~lost], means[lost])


def _best(weight: Tensor, lost: Tensor, found: Halves, *, has_bias: bool) -> _Refit:
    """Return the refit of a group of channels with the smallest held-out error; weight: (outputs, inputs, taps)."""
    whole, first, second = (_split(moments, lost, has_bias=has_bias) for moments in (found[0].joined(found[1]), *found))
    nothing_added = _Refit("nothing", torch.zeros_like(weight[:, ~lost]), weight.new_zeros(len(weight)))
    is_constant = not bool(whole.kept.diagonal().any() or whole.lost.diagonal().any())
    if is_constant and not bool(whole.lost_means.any()):
        return nothing_added._replace(words="nothing: its inputs are zero")
    reads = weight[:, lost].movedim(2, 1).flatten(0, 1)  # (outputs x taps, lost)
    gram = reads.t() @ reads

    def held_out(ridge: float | None) -> float:
        """Return the error on each half of a fit to the other half, summed."""
        pairs = ((first, second), (second, first))
        return sum(_error(gram, held, *_shares(fitted, ridge)) for fitted, held in pairs)

    ridges = [math.inf] if is_constant else list(RIDGES) if has_bias else [r for r in RIDGES if math.isfinite(r)]
    best, error = _smallest(held_out, ridges)
    nothing = held_out(None)
    if not error < nothing:
        return nothing_added
    shares, means = _shares(whole, best)
    weights = (reads @ shares.t()).unflatten(0, (len(weight), -1)).movedim(1, 2)
    words = "means" if math.isinf(best) else f"ridge {best:g}"
    said = "means: its inputs are constant" if is_constant else f"{words}, held-out error {error / nothing:.2g}"
    return _Refit(said, weights, (reads @ means).unflatten(0, (len(weight), -1)).sum(dim=1))


def _smallest(error: Callable[[float], float], ridges: list[float]) -> tuple[float, float]:
    """Walk from the middle downhill; the error over ridges has one valley."""
    known: dict[int, float] = {}

    def at(index: int) -> float:
        if not 0 <= index < len(ridges):
            return math.inf
        if index not in known:
            value = error(ridges[index])
            known[index] = value if math.isfinite(value) else math.inf
        return known[index]

    place = len(ridges) // 2
    while True:
        step = 1 if at(place + 1) < at(place) else -1
        if not at(place + step) < at(place):
            return ridges[place], at(place)
        place += step


def _shares(fitted: _Split, ridge: float | None) -> tuple[Tensor, Tensor]:
    """Return the regression of lost on kept inputs, (kept, lost), and the rest of the means, (lost,)."""
    if ridge is None:
        return torch.zeros_like(fitted.cross), torch.zeros_like(fitted.lost_means)
    if math.isinf(ridge):
        return torch.zeros_like(fitted.cross), fitted.lost_means
    damped = fitted.kept.clone()
    damped.diagonal().add_(ridge * damped.diagonal().mean().clamp_min(1e-30))
    factor, _ = torch.linalg.cholesky_ex(damped)
    shares = torch.cholesky_solve(fitted.cross, factor)
    return shares, fitted.lost_means - fitted.kept_means @ shares


def _error(gram: Tensor, held: _Split, shares: Tensor, means: Tensor) -> float:
    """Return the mean squared error of a layer's output on samples that were not fitted, summed over outputs."""
    left, off = held.lost, held.lost_means - means
    if bool(shares.any()):
        both = shares.t() @ (held.kept @ shares - 2 * held.cross)  # its transpose adds the same: gram is symmetric
        left, off = left + both, off - held.kept_means @ shares
    return float((gram * left).sum() + off @ gram @ off)
