"""Measured speed of a network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ifap.tracing import call, device_of, evaluation_mode, tensors, to_device


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

    Parameters
    ----------
    model : Module
        The network; its modes are put back.
    example_inputs : Tensor, sequence or mapping
        One batch.
    warmup : int, optional
        Passes before the clock starts.
    runs : int, optional
        Timed passes, each on its own.

    Returns
    -------
    Latency
        The distribution and the conditions.
    """
    where = device_of(model)
    inputs = to_device(example_inputs, where)
    times = []
    with evaluation_mode(model), torch.inference_mode():
        for run in range(warmup + runs):
            _synchronize(where)
            start = time.perf_counter()
            call(model, inputs)
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
