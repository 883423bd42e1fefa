"""Time networks in turn, by the time of the processor, so that what else a machine does changes no ratio much."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from ifap.forward import Inputs, call, evaluation_mode

Times = dict[str, list[float]]


def rounds(networks: Mapping[str, nn.Module], inputs: Inputs, number: tuple[int, int], seconds: float) -> Times:
    """Return the processor seconds of each network, one for each round; in every other round their order is reversed.

    Parameters
    ----------
    networks : mapping of str to nn.Module
        All are run in every round.
    inputs : Tensor, tuple, list or dict
        Of one forward.
    number : (int, int)
        Rounds at least and at most, after one that is not counted.
    seconds : float
        After so long no further round is begun.
    """
    times: Times = {name: [] for name in networks}
    least, most = number
    start = time.perf_counter()
    for turn in range(most + 1):
        for name in list(networks)[:: 1 if turn % 2 else -1]:
            taken = _seconds(networks[name], inputs)
            if turn:  # the first round only warms up
                times[name].append(taken)
        if turn >= least and time.perf_counter() - start > seconds:
            break
    return times


def speedup(whole: list[float], part: list[float]) -> float:
    """Return how much faster the second of two networks is: the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(whole, part, strict=True))


def _seconds(network: nn.Module, inputs: Inputs) -> float:
    with evaluation_mode(network), torch.inference_mode():
        start = time.process_time()
        call(network, inputs)
        return time.process_time() - start
