"""FastNAS of NVIDIA's Model Optimizer: widths by what each alone costs on calibration data.

It is not in the lock file; see `benchmarks.fastnas`. Here it has no labels: what it searches by is the agreement with
the original's first choice on 128 images for calibration. Its counter of operations is not ours, so that its bound is
lowered until the MACs are met; where it undercuts them, the table says by how much. Its units are not mapped to ours:
our compensation cannot follow.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import ifap
from benchmarks.fastnas import CLOSER, RATIOS, TRIES
from benchmarks.pretrained.case import Case
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.errors import ScoreError

SEARCHED = 128  # images


def _way(case: Case, share: float, *, compensate: bool) -> nn.Module:
    if importlib.util.find_spec("modelopt") is None:
        raise ScoreError("the package nvidia-modelopt is not installed; benchmarks/fastnas.py says how")
    goal = (1 - share) * ifap.cost(case.model, case.example).macs
    bound = 1 - share
    for _ in range(TRIES):
        network = _search(case, bound)
        if ifap.cost(network, case.example).macs <= goal:
            return network
        bound *= CLOSER
    raise ScoreError(f"FastNAS does not reach {share:g} of the MACs in {TRIES} searches")


def _search(case: Case, share: float) -> Any:
    import modelopt.torch.prune as mtp  # type: ignore[import-not-found]

    channels = {"*": {"channels_ratio": RATIOS, "channel_divisor": 2}}
    features = {"*": {"features_ratio": RATIOS, "feature_divisor": 2}}
    widths = {"nn.Conv2d": channels, "nn.BatchNorm2d": features, "nn.Linear": features}
    few = _few(case)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        network, _ = mtp.prune(
            copy.deepcopy(case.model),
            mode=[("fastnas", widths)],
            constraints={"flops": f"{100 * share}%"},
            dummy_input=case.example,
            config={
                "data_loader": few,
                "score_func": lambda network: agreement(network, few),
                "checkpoint": str(Path(folder) / "search.pth"),
                "verbose": False,
            },
        )
    return network.eval()


def _few(case: Case) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for batch, targets in case.labelled:
        if sum(len(images) for images, _ in found) >= SEARCHED:
            break
        found.append((batch, targets))
    return found


def agreement(network: nn.Module, batches: list[tuple[Any, Any]]) -> float:
    """Return the share of samples with the target as first choice, in evaluation mode."""
    with torch.no_grad():
        same = [(network.eval()(images).argmax(dim=1) == targets).float() for images, targets in batches]
    return float(torch.cat(same).mean())


RIVALS.register("fastnas")(Rival(_way, "Model Optimizer, FastNAS", ("convolutional",), compensates=False))
