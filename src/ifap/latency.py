"""Measured speed of a network, and what it would be at other widths of its layers."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Floats
from ifap.forward import call_directly, device_of, map_tensors, reading, tensors, to_device
from ifap.layers import has_plain_forward, is_depthwise, modules_by_name, sides, unit_axis

Widths = Mapping[str, tuple[float, float]]
"""Output and input width of layers, by name."""


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass and how it was measured.

    Parameters
    ----------
    median_ms, p10_ms, p90_ms : float
        Median, 10th and 90th percentile over the runs, in milliseconds.
    batch : int
        Samples a pass.
    device, dtype : str
        Where and in what precision.
    threads : int
        Threads of torch's CPU operations.
    runs : int
        Timed passes.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    batch: int
    device: str
    dtype: str
    threads: int
    runs: int


def latency(model: nn.Module, example_inputs: Any, *, warmup: int = 5, runs: int = 30) -> Latency:
    """Time forward passes in evaluation mode without gradients.

    `example_inputs` are one batch. `warmup` passes run before the clock starts; then each of `runs` passes is timed on
    its own. The modes of the network are put back.
    """
    where = device_of(model)
    inputs = to_device(example_inputs, where)
    times = []
    with reading(model), torch.inference_mode():
        for run in range(warmup + runs):
            _synchronize(where)
            start = time.perf_counter()
            call_directly(model, inputs)
            _synchronize(where)
            if run >= warmup:
                times.append(1000 * (time.perf_counter() - start))
    low, middle, high = (round(float(value), 4) for value in np.percentile(times, [10, 50, 90]))
    first = next(tensors(inputs))
    kind = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    dtype = next((p.dtype for p in model.parameters()), first.dtype)
    return Latency(
        middle, low, high, len(first), kind, str(dtype).removeprefix("torch."), torch.get_num_threads(), runs
    )


def _synchronize(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def latency_ratio(model: nn.Module, other: nn.Module, example_inputs: Any, *, rounds: int = 7) -> float:
    """Return the time of one network over that of another; see `side_by_side`."""
    return side_by_side(model, other, example_inputs, rounds=rounds).ratio


@dataclass(frozen=True)
class SideBySide:
    """Times of two networks that ran in turn.

    Parameters
    ----------
    ratio : float
        Median over the rounds of the time of the first over that of the second.
    milliseconds, other_milliseconds : float
        Medians of both.
    rounds : int
        Rounds that counted.
    """

    ratio: float
    milliseconds: float
    other_milliseconds: float
    rounds: int


def side_by_side(model: nn.Module, other: nn.Module, example_inputs: Any, *, rounds: int = 7) -> SideBySide:
    """Time two networks in rounds in which both run in turn, so that a busy machine slows both.

    The first round does not count. Passes of seconds vary less: for them fewer rounds do.
    """
    where = device_of(other)
    inputs = to_device(example_inputs, where)
    with reading(model), reading(other), torch.inference_mode():
        pairs: list[list[float]] = []
        while len(pairs) <= rounds and not (len(pairs) > _FEWEST_ROUNDS and sum(map(sum, pairs)) > _ENOUGH_SECONDS):
            pairs.append([_timed(partial(call_directly, network, inputs), where) for network in (model, other)])
    ratio = statistics.median(mine / theirs for mine, theirs in pairs[1:])
    both = [1000 * statistics.median(times) for times in zip(*pairs[1:], strict=True)]
    return SideBySide(ratio, both[0], both[1], len(pairs) - 1)


def can_compute_on(device: str) -> bool:
    """Return whether this machine has a device, and that device values."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError):  # the latter from builds of torch without CUDA
        return False
    return True


def repeated(example_inputs: Any, batch: int | None) -> Any:
    """Return inputs whose first axis is cut or repeated to `batch` samples; as they are for None."""
    if batch is None:
        return example_inputs
    return map_tensors(
        example_inputs, lambda tensor: tensor.repeat(math.ceil(batch / len(tensor)), *(1,) * (tensor.dim() - 1))[:batch]
    )


class LatencyModel:
    """Times of the layers of a network at other widths, measured on the device that it is on.

    Each convolution and linear layer is timed alone on a grid of widths; layers of the same kind and
    input size are timed once in a process. Between the widths of the grid times are interpolated, and
    a wider layer never counts as a faster one. What the whole network takes beyond its layers (norms,
    activations, attention products) is shared out by the size of the layers' outputs and falls with
    their widths.

    The network is run on `example_inputs`, one batch, and not changed.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        inputs = to_device(example_inputs, device_of(model))
        shapes = _input_shapes(model, inputs)
        modules = modules_by_name(model)
        with reading(model), torch.inference_mode():
            times = [_timed(lambda: call_directly(model, inputs), device_of(model)) for _ in range(_RUNS + 1)]
            self._layers = {name: [_times(modules[name], shape) for shape in called] for name, called in shapes.items()}
        self.total = 1000 * statistics.median(times[1:])
        """Milliseconds of the network as it was given."""
        values = {name: sum(math.prod(s) / s[unit_axis(modules[name])] for s in shapes[name]) for name in shapes}
        self._outputs = {name: values[name] * sides(modules[name])["out"] for name in shapes}
        self.fast_width = fast_width(device_of(model))
        """What widths are best a multiple of."""
        self._widths = layer_widths(model)
        layers = sum(table.at(*self._widths[name]) for name, tables in self._layers.items() for table in tables)
        self._rest = max(0.0, self.total - layers)
        self._scale = self.total / (layers + self._rest)  # where layers alone take longer than in the network

    @property
    def names(self) -> list[str]:
        """The layers that are timed."""
        return list(self._layers)

    def predict(self, widths: Widths) -> float:
        """Return the milliseconds of the network at the given widths; layers that are not named keep theirs."""
        at = {name: widths.get(name, self._widths[name]) for name in self._layers}
        layers = sum(table.at(*at[name]) for name, tables in self._layers.items() for table in tables)
        whole = sum(self._outputs.values()) or 1.0
        left = sum(self._outputs[name] * at[name][0] / self._widths[name][0] for name in self._layers)
        return self._scale * (layers + self._rest * left / whole)


def fast_width(where: torch.device) -> int:
    """Return how many channels a device takes at a time: what is left over takes as long as if it were full."""
    return 16 if where.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def layer_widths(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return output and input width of every convolution and linear layer."""
    found = {}
    for name, module in modules_by_name(model).items():
        if has_plain_forward(module):
            both = sides(module)
            found[name] = (float(both["out"]), float(both.get("in", both["out"])))
    return found


@dataclass(frozen=True)
class _Table:
    """Milliseconds of one layer at some widths, ascending along both axes."""

    outputs: Floats
    inputs: Floats
    milliseconds: Floats

    def at(self, output: float, inner: float) -> float:
        """Interpolate between the four widths around; beyond the smallest time falls in proportion to the outputs."""
        by_input = [float(np.interp(inner, self.inputs, row)) for row in self.milliseconds]
        return float(np.interp(output, self.outputs, by_input)) * min(1.0, output / self.outputs[0])


_RUNS = 5
_FEWEST_ROUNDS, _ENOUGH_SECONDS = 3, 5.0
_SHARES = (0.25, 0.5, 0.75, 1.0)
_MEASURED: dict[tuple[Any, ...], _Table] = {}


def _input_shapes(model: nn.Module, inputs: Any) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that each layer is called with in one forward."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, args: Any) -> None:
            if args:
                found.setdefault(name, []).append(tuple(args[0].shape))

        return hook

    layers = {name: module for name, module in modules_by_name(model).items() if has_plain_forward(module)}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in layers.items()]
    try:
        with reading(model), torch.inference_mode():
            call_directly(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _times(module: nn.Module, shape: tuple[int, ...]) -> _Table:
    """Time a layer on the grid of widths, or return what was measured of one like it."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    options = ["stride", "padding", "dilation", "groups", "transposed"]
    key = (
        type(module), shape, tuple(weight.shape), weight.device, weight.dtype, torch.get_num_threads(),
        *(getattr(module, name, None) for name in options),
    )  # fmt: skip
    if key not in _MEASURED:
        _MEASURED[key] = _measure(module, shape)
    return _MEASURED[key]


def _measure(module: nn.Module, shape: tuple[int, ...]) -> _Table:
    both = sides(module)
    grouped = getattr(module, "groups", 1) > 1
    step = fast_width(module.weight.device)  # type: ignore[arg-type]
    outputs = _grid(both["out"], step) if not grouped or is_depthwise(module) else [both["out"]]
    inputs = _grid(both["in"], step) if "in" in both and not grouped else [both.get("in", both["out"])]
    times = [[_time_of(module, shape, out, inner) for inner in inputs] for out in outputs]
    return _Table(np.array(outputs, dtype=float), np.array(inputs, dtype=float), _ascending(np.array(times)))


def _ascending(times: Floats) -> Floats:
    """Lower what takes longer than something wider: a disturbed measurement is too long, never too short."""
    for axis in range(times.ndim):
        times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return times


def _grid(width: int, step: int) -> list[int]:
    return sorted({min(width, max(1, math.ceil(share * width / step) * step)) for share in _SHARES})


def _time_of(module: nn.Module, shape: tuple[int, ...], out: int, inner: int) -> float:
    """Return the fewest milliseconds of some runs of a layer cut to the given widths."""
    layer: Any = copy.copy(module)
    layer._forward_hooks, layer._forward_pre_hooks = {}, {}
    weight: Tensor = layer.weight.detach()
    if is_depthwise(module):
        layer.groups, inner, weight = out, out, weight[:out]
    else:
        weight = weight[:out, : inner // getattr(module, "groups", 1)]
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[:out])
    layer._parameters = {"weight": nn.Parameter(weight.contiguous()), "bias": bias}
    sizes = list(shape)
    sizes[unit_axis(module)] = inner
    x = torch.ones(sizes, dtype=weight.dtype, device=weight.device)
    return 1000 * min(_timed(lambda: layer(x), weight.device) for _ in range(_RUNS - 1))


def _timed(function: Callable[[], object], where: torch.device) -> float:
    """Return the seconds of one call; on one thread of a CPU those in which nothing else has the processor."""
    clock = time.process_time if where.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _synchronize(where)
    start = clock()
    function()
    _synchronize(where)
    return clock() - start
