"""What flow scores cost over a bare forward of the same batches, in time and in memory.

The norms of the weights are taken once, however many batches there are; the paper calibrates on far more than these.

Memory is the largest resident set of a process that builds the network and does nothing else than the one or the
other: a process for each, since the largest set of a process never shrinks. It contains what imports take. The C
library is told to return blocks of a megabyte and more at once: by default the peak holds up to 130 MB of holes between
blocks, in some runs and not in others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torchvision
import typer
from torch import nn

import ifap
from benchmarks.ratio import Ratio, compare, report, timed
from ifap.axes.attention import adopt
from ifap.forward import call
from ifap.study.machine.provenance import peak_memory_mb
from ifap.view import trace

BATCH, BATCHES, TOKENS = 8, 2, 128
LIMIT = 1.1
NETWORKS = {
    "resnet50": f"{BATCHES} batches of {BATCH}, 224 px",
    "vit_b_16": f"{BATCHES} batches of {BATCH}, 224 px",
    "convnext_small": f"{BATCHES} batches of {BATCH}, 224 px",
    "bert_base": f"{BATCHES} batches of {BATCH}, {TOKENS} tokens",
}


def network(name: str) -> tuple[nn.Module, Any]:
    """Return a network with random weights and one batch."""
    torch.manual_seed(0)
    if name != "bert_base":
        return getattr(torchvision.models, name)().eval(), torch.randn(BATCH, 3, 224, 224)
    from transformers import BertConfig, BertModel

    ids = torch.randint(1, 30_000, (BATCH, TOKENS))
    return BertModel(BertConfig()).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def scorer(model: nn.Module, batch: Any) -> Callable[[], object]:
    """Return what scores all batches, heads too, as every iteration of pruning does; the units are traced here."""
    adopt(model)
    graph = trace(model, batch)
    return lambda: ifap.flow_scores(model, [batch] * BATCHES, graph=graph)


def runner(model: nn.Module, batch: Any) -> Callable[[], object]:
    """Return what runs all batches."""

    def forward() -> None:
        with torch.no_grad():
            for _ in range(BATCHES):
                call(model, batch)

    return forward


WORK = {"score": scorer, "forward": runner}


def time_of(name: str) -> Ratio:
    """Compare scoring batches with running them."""
    model, batch = network(name)
    score, forward = scorer(model, batch), runner(model, batch)
    return compare(
        f"{name}, {NETWORKS[name]}",
        lambda: timed(score),
        lambda: timed(forward),
        limit=LIMIT,
    )


def memory_of(name: str) -> Ratio:
    """Compare the memory of a process that scores with that of one that runs the network."""

    def peak(work: str) -> float:
        command = [sys.executable, "-m", "benchmarks.scoring", "--network", name, "--work", work]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    return compare(
        f"memory of {name}, {NETWORKS[name]}",
        lambda: peak("score"),
        lambda: peak("forward"),
        limit=LIMIT,
        runs=3,
        unit="MB",
    )


def main(
    network_name: Annotated[str | None, typer.Option("--network", hidden=True)] = None,
    work: Annotated[str, typer.Option(hidden=True)] = "score",
) -> None:
    """Print and record the ratios; a process of its own is started for each peak of memory."""
    torch.set_num_threads(1)
    if network_name is not None:
        WORK[work](*network(network_name))()
        typer.echo(peak_memory_mb())
        return
    rows = [measure(name) for name in NETWORKS for measure in (time_of, memory_of)]
    report("scoring", "Flow scores against the bare forward (one thread)", "forward", rows)


if __name__ == "__main__":
    typer.run(main)
