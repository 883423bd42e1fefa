"""Flow scores: how much signal each unit of a network carries (section "Flow Evaluation" of the paper).

The flow of unit c of a layer is the product of an activation norm and a weight norm,

    flow_c = E_x[ ||z_c(x)||_2 ] * ||W_c||_2 ,

where the norm of the activation runs over the spatial or token positions of one sample, the mean
over all calibration samples, and W_c are the weights that produce the unit. For an attention head,

    flow_h = E_x[ ||A_h(x)||_F / n ] * (||W_Q,h||_F + ||W_K,h||_F + ||W_V,h||_F)

with the attention probabilities A_h over n tokens. Activations are reduced as they pass: nothing
is stored and nothing leaves the device before the last batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ifap.arguments import BATCHES_ONCE, MODULE, checked, instance, one_of, optional
from ifap.axes.attention import adopted
from ifap.axes.running import Running
from ifap.axes.state import State
from ifap.axes.tensors import unmapped
from ifap.axes.units import Graph
from ifap.data import refuse_test
from ifap.errors import ScoreError
from ifap.forward import Inputs, device_of, evaluation_mode, placed, refuse_empty, run_batch
from ifap.layers import modules_by_name, unit_axis, weight_norms
from ifap.scores.heads import HeadCalls, head_weights, replace_heads
from ifap.scores.weights import WeightUses, all_weights, is_weighted, made_by_heads, used_by_attention, weights_alone

Normalize = Literal["layer", "volume", "none"]
Site = Literal["output", "activation"]
Statistic = Literal["norm", "rms", "centered"]
NORMALIZE = ("layer", "volume", "none")
SITES = ("output", "activation")
STATISTICS = ("norm", "rms", "centered")
NO_DATA = "calibration data are empty: give at least one batch of inputs"


@checked(
    model=MODULE, batches=BATCHES_ONCE, normalize=one_of(*NORMALIZE), site=one_of(*SITES),
    statistic=one_of(*STATISTICS), graph=optional(instance("what ifap.view.trace returned", Graph)),
)  # fmt: skip
def flow_scores(
    model: nn.Module,
    batches: Iterable[Inputs],
    normalize: Normalize = "layer",
    site: Site = "output",
    statistic: Statistic = "norm",
    graph: Graph | None = None,
) -> dict[str, Tensor]:
    """Score every output position of every convolution, linear layer and other weight of `model`.

    Parameters
    ----------
    model : nn.Module
        Any network. It is run in evaluation mode without gradients; its modes and hooks are left
        as they were found.
    batches : iterable
        Calibration inputs without labels: each item is a tensor, a tuple of arguments or a dict of
        keyword arguments of one forward. The first axis counts samples.
    normalize : {'layer', 'volume', 'none'}
        Divide each layer's scores by their mean, by the number of output values a sample
        (C*H*W for a convolution, n for a linear layer), or not at all. Raw scores of different
        layers are not comparable: a global ranking of them empties the deep layers.
    site : {'output', 'activation'}
        Measure a layer's own output, or that output after the norm and the non-linearity that
        follow it directly.
    statistic : {'norm', 'rms', 'centered'}
        What stands for the activation: the mean over samples of its norm (the paper's), the root of
        the mean squared norm, or that root after the mean over samples and positions, which a bias
        could stand in for, is taken off.
    graph : Graph, optional
        The units of the network, from `ifap.view.trace`. With it weights outside layers are scored as well, and the
        positions of an attention head get the score of the head where its probabilities can be seen.

    Returns
    -------
    dict of str to Tensor
        Layer, or weight outside a layer, to scores: shape (output positions,), float32 on the device of the network.

    Raises
    ------
    ConfigError
        If an argument has the wrong type or value.
    ScoreError
        If there is no batch, or if an activation is not finite (the layer is named).
    SplitError
        If `batches` is a test split.

    Notes
    -----
    The formulas are those of the section "Flow Evaluation" of the paper: the mean norm of the activation times the norm
    of the weights, and for a head the mean norm of its probabilities times the norms of its queries, keys and values.

    Examples
    --------
    >>> scores = ifap.flow_scores(net, batches)
    >>> scores["layer1.0.conv1"].shape
    torch.Size([64])
    """
    meters, heads = _measure(model, batches, normalize, site, statistic, graph)
    scores = {name: _normalized(meter.flow(), meter, normalize) for name, meter in meters.items()}
    if graph is None:
        return scores
    for name, rows in all_weights(model, graph).items():
        if name not in scores:  # no forward shows its activations: its weights speak for it
            norms = torch.linalg.vector_norm(rows.float(), dim=1)
            scores[name] = norms / norms.mean().clamp_min(1e-30) if normalize == "layer" else norms
    return replace_heads(graph, scores, [_normalized(meter.flow_or_weights(), meter, normalize) for meter in heads])


def activation_norms(
    model: nn.Module,
    batches: Iterable[Inputs],
    site: Site = "output",
    normalize: Normalize = "none",
    graph: Graph | None = None,
) -> dict[str, Tensor]:
    """Return the mean activation norm of every output position alone, without weights; see `flow_scores`."""
    meters, heads = _measure(model, batches, normalize, site, "norm", graph)
    scores = {name: _normalized(meter.mean(), meter, normalize) for name, meter in meters.items()}
    found = [_normalized(meter.mean(), meter, normalize) if meter.samples else torch.empty(0) for meter in heads]
    return scores if graph is None else replace_heads(graph, scores, found)


@dataclass
class _Meter:
    """Running sum of one layer's activation norms over samples."""

    weights: Tensor  # (units,) weight norms
    total: Tensor | None = None  # (units,) sum of norms
    samples: int = 0
    volume: int = 1  # output values of one sample

    def add(self, norms: Tensor, volume: int) -> None:
        """Add the norms of one batch, shape (samples, units)."""
        batch = norms.sum(dim=0, dtype=torch.float32)
        self.total = batch if self.total is None else self.total + batch
        self.samples += norms.shape[0]
        self.volume = volume

    def output(self, output: Tensor, axis: int) -> None:
        """Add one output of a layer, with units along `axis`."""
        self.add(unit_norms(output, axis), _volume(output))

    @staticmethod
    def of_heads(probabilities: Tensor) -> Tensor:
        """Return what is kept of attention probabilities, shape (samples, heads, n, m)."""
        return _head_norms(probabilities)

    def heads(self, kept: Tensor) -> None:
        """Add what is kept of the probabilities of one batch, shape (samples, heads, ...)."""
        self.add(kept, kept.shape[1])

    def mean(self) -> Tensor:
        """Return the mean norm over samples, shape (units,)."""
        assert self.total is not None
        return self.total / self.samples

    def flow(self) -> Tensor:
        """Return activation norm x weight norm, shape (units,)."""
        return self.mean() * self.weights.to(self.mean().device)

    def flow_or_weights(self) -> Tensor:
        """Return the flow, or the weight norms alone where no activation was seen."""
        return self.flow() if self.samples else self.weights


class _SquareMeter(_Meter):
    """The root of the mean squared norm."""

    def add(self, norms: Tensor, volume: int) -> None:
        super().add(norms.float().square(), volume)

    def mean(self) -> Tensor:
        return super().mean().sqrt()


class _SpreadMeter(_Meter):
    """The root of the mean squared norm around the mean over samples and positions.

    Batches are centred each on its own mean and joined by the formula of Chan et al. (1983): the
    difference of two large sums would be all rounding where the mean is far from zero.
    """

    _centre: Tensor | None = None
    _values = 0

    def output(self, output: Tensor, axis: int) -> None:
        if output.dim() + axis == 0:
            output = output.unsqueeze(0)
        self._join(output.movedim(axis, 1).unsqueeze(-1).flatten(2), _volume(output))

    @staticmethod
    def of_heads(probabilities: Tensor) -> Tensor:
        return probabilities.flatten(2) / probabilities.shape[-2]

    def heads(self, kept: Tensor) -> None:
        self._join(kept, kept.shape[1])

    def _join(self, values: Tensor, volume: int) -> None:
        """Add values of shape (samples, units, positions)."""
        values = values.float()
        number, centre = values.shape[0] * values.shape[2], values.mean(dim=(0, 2))
        squares = (values - centre[:, None]).square().sum(dim=(0, 2))
        if self._centre is not None and self.total is not None:
            both, shift = self._values + number, centre - self._centre
            squares = self.total + squares + shift.square() * (self._values * number / both)
            number, centre = both, self._centre + shift * (number / both)
        self.total, self._centre, self._values = squares, centre, number
        self.samples += values.shape[0]
        self.volume = volume

    def mean(self) -> Tensor:
        return super().mean().sqrt()


_METERS: dict[str, type[_Meter]] = {"norm": _Meter, "rms": _SquareMeter, "centered": _SpreadMeter}


def _measure(
    model: nn.Module,
    batches: Iterable[Inputs],
    normalize: Normalize,
    site: Site,
    statistic: Statistic,
    graph: Graph | None,
) -> tuple[dict[str, _Meter], list[_Meter]]:
    """Return the meters of all weights, and those of the heads of each call that makes probabilities."""
    make = _METERS[statistic]
    meters: dict[str, _Meter] = {}
    heads = [] if graph is None else [make(weights) for weights in head_weights(model, graph)]
    with ExitStack() as stack:
        if heads:
            stack.enter_context(adopted(model))
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        flush = stack.enter_context(_observe(model, meters, heads, site, make, graph))
        for _ in forwards(model, batches):
            flush()
    used = {name: meter for name, meter in meters.items() if meter.samples}
    has_run = any(meter.total is not None for meter in meters.values())
    if has_run and not used and not any(meter.samples for meter in heads):
        raise ScoreError(NO_DATA)
    _check_finite(used)
    return used, heads


def forwards(model: nn.Module, batches: Iterable[Inputs]) -> Iterator[None]:
    """Run a network on calibration batches, each from the state that it has now, and yield after each.

    Raises a ScoreError if there is no batch, or if the network does not take one, such as inputs with labels. Raises a
    SplitError if `batches` is a test split.
    """
    refuse_test(batches, "scoring")
    refuse_empty(model)
    device, state, number = device_of(model), State(model), 0
    for number, batch in enumerate(batches, start=1):
        try:
            run_batch(model, placed(batch, device, number), number)
            yield
        finally:
            state.restore()
    if not number:
        raise ScoreError(NO_DATA)


@contextmanager
def _observe(
    model: nn.Module,
    meters: dict[str, _Meter],
    heads: list[_Meter],
    site: Site,
    make: type[_Meter],
    graph: Graph | None,
) -> Iterator[Callable[[], None]]:
    """Keep every weight and head of `model` observed inside the block; gives what to call after each forward."""
    handles: list[RemovableHandle] = []
    follower = _Follower(meters) if site == "activation" else None
    inside = set() if graph is None else made_by_heads(graph)
    silent = used_by_attention(model)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name not in inside and is_weighted(module):
                meters[name] = make(weight_norms(module))
                if name not in silent:
                    handles.append(module.register_forward_hook(_layer_hook(meters[name], name, follower)))
                    stack.callback(handles[-1].remove)
        if graph is not None:
            alone = {name: rows for name, rows in weights_alone(model, graph).items() if name not in inside}
            if alone or silent:
                meters.update(
                    {name: make(torch.linalg.vector_norm(rows.float(), dim=1)) for name, rows in alone.items()}
                )
                stack.enter_context(
                    WeightUses(model, graph, {*alone, *silent}, lambda name, *found: meters[name].output(*found))
                )
            if heads:
                running = stack.enter_context(Running(modules_by_name(model)))
                stack.enter_context(
                    HeadCalls(running, graph, make.of_heads, lambda number, kept: heads[number].heads(kept))
                )
        if follower is not None:
            stack.enter_context(follower)
        yield (lambda: None) if follower is None else follower.flush


def _layer_hook(meter: _Meter, name: str, follower: _Follower | None) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        axis, units = unit_axis(module), len(meter.weights)
        if not isinstance(output, Tensor):  # a layer of its own kind that returns more than its products
            return
        if output.dim() < -axis or output.shape[axis] != units:
            if output.shape[-1:] != (units,):  # nor does it count them elsewhere
                return
            axis = -1
        if follower is None:
            with torch._C.DisableTorchFunction():  # what is done here is no call of the network's
                meter.output(unmapped(output), axis)
        else:
            follower.start(name, output, axis)

    return hook


def unit_norms(output: Tensor, axis: int) -> Tensor:
    """Return the L2 norm of each unit of each sample over all positions.

    The output may be (B, C, H, W), (B, N, C), (B, C) or of any other rank; `axis` counts from its end. The norms have
    the shape (samples, units). An output without a batch axis counts as one sample.
    """
    if axis == -1:
        if output.dim() == 1:
            return output.abs().unsqueeze(0)
        if output.dim() == 2:
            return output.abs()
        return _row_norms(output.flatten(1, -2))
    if output.dim() + axis == 0:
        output = output.unsqueeze(0)
    if output.stride(axis) == 1 and output.dim() > 2:  # channels last in memory
        return _row_norms(output.movedim(axis, -1).flatten(1, -2))
    return torch.linalg.vector_norm(output.movedim(axis, 1).flatten(2), dim=2)


def _row_norms(rows: Tensor) -> Tensor:
    """Return the norms of (samples, positions, units) over the positions: shape (samples, units)."""
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64):
        return torch.linalg.vector_norm(rows, dim=1)
    # On a CPU torch's own norm is vectorised along the last axis alone and takes some times as long.
    values = rows.detach().numpy()
    return torch.from_numpy(np.einsum("spu,spu->su", values, values)).sqrt_()


def _volume(output: Tensor) -> int:
    return output.numel() // max(1, output.shape[0])


def _head_norms(probabilities: Tensor) -> Tensor:
    """Return ||A_h||_F / n of (samples, heads, n, m) probabilities: shape (samples, heads)."""
    return torch.linalg.vector_norm(probabilities.flatten(2), dim=2) / probabilities.shape[-2]


# --- the activation site --------------------------------------------------------------------------


def _functions(*names: str) -> set[Any]:
    homes = (functional, torch, Tensor)
    return {getattr(home, name) for home in homes for name in names if hasattr(home, name)}


_NORMS = _functions("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_ACTIVATIONS = _functions(
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu", "celu_",
    "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "sigmoid", "sigmoid_", "tanh",
    "tanh_", "softplus", "softsign", "logsigmoid", "clamp", "clamp_",
)  # fmt: skip


class _Follower(TorchFunctionMode):
    """Follow each layer's output through the norm and the non-linearity that come next.

    Works on calls rather than on modules, so that ``torch.relu(x)`` counts as well as ``nn.ReLU``.
    A value is measured when anything else reads it, before that can overwrite it.
    """

    def __init__(self, meters: dict[str, _Meter]) -> None:
        super().__init__()
        self._meters = meters
        self._open: dict[int, tuple[str, Tensor, int]] = {}  # id of a tensor -> layer, tensor, unit axis

    def start(self, name: str, output: Tensor, axis: int) -> None:
        """Begin to follow the output of a layer."""
        self._open[id(output)] = (name, output, axis)

    def flush(self) -> None:
        """Measure whatever is still being followed at the end of a forward."""
        for key in list(self._open):
            self._measure(key)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args else kwargs.get("input")
        if func in _NORMS or func in _ACTIVATIONS:
            followed = self._open.pop(id(source), None)
            result = func(*args, **kwargs)
            if followed is not None:
                name, _, axis = followed
                self._open[id(result)] = (name, result, axis)
                if func in _ACTIVATIONS:
                    self._measure(id(result))
            return result
        if func not in _PASSIVE and getattr(func, "__name__", "") != "__get__":
            for value in (*args, *kwargs.values()):
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    if id(item) in self._open:
                        self._measure(id(item))
        return func(*args, **kwargs)

    def _measure(self, key: int) -> None:
        name, value, axis = self._open.pop(key)
        with torch._C.DisableTorchFunction():
            self._meters[name].output(unmapped(value), axis)


# Asked inside modules before the data are used; like attributes (``__get__``) they read no values.
_PASSIVE = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.stride, Tensor.is_contiguous}


# --- results --------------------------------------------------------------------------------------


def _normalized(scores: Tensor, meter: _Meter, normalize: Normalize) -> Tensor:
    if normalize == "layer":
        mean = scores.mean()
        return scores / mean if mean > 0 else scores
    if normalize == "volume":
        return scores / meter.volume
    return scores


def _check_finite(meters: dict[str, _Meter]) -> None:
    if not meters:
        return
    finite = torch.stack([torch.isfinite(meter.flow()).all().cpu() for meter in meters.values()]).tolist()
    for name, is_finite in zip(meters, finite, strict=True):
        if not is_finite:
            raise ScoreError(f"layer '{name}': activations are not finite on the calibration data")
