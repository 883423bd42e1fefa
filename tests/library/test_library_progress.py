"""Progress bars: words and numbers on a terminal, nothing anywhere else."""

from __future__ import annotations

import io
import re

import torch
from rich.console import Console
from torch import nn

import ifap
from ifap.cli.progress import WORDS, Bars

IMAGES = torch.randn(12, 3, 8, 8)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def run(console):
    with Bars(2, console=console) as bars:
        bars.expect(12)
        ifap.prune(
            network(), IMAGES[:1], bars.watched(IMAGES.split(4)), target=ifap.Target(macs=0.5), steps=2,
            recover=lambda model, teacher, step: bars.on_read(12), validate=lambda model: 1.0,
            on_step=bars.on_step, on_phase=bars.on_phase,
        )  # fmt: skip
        bars._bars.refresh()


def test_a_terminal_shows_what_is_done_and_the_macs_so_far():
    screen = io.StringIO()
    run(Console(file=screen, force_terminal=True, width=140))
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "iteration 2 of 2" in said
    assert re.search(r"[\d,]+ MACs, \d\d\.\d % of the start", said)
    assert WORDS["prove"] in said


def test_nothing_is_shown_where_there_is_no_terminal():
    screen = io.StringIO()
    run(Console(file=screen, force_terminal=False, width=140))
    assert screen.getvalue() == ""


def test_every_phase_is_named_in_order():
    phases = []
    ifap.prune(
        network(), IMAGES[:1], [IMAGES], target=ifap.Target(macs=0.5), steps=2, validate=lambda model: 1.0,
        recover=lambda model, teacher, step: None, on_phase=lambda phase, step: phases.append((phase, step)),
    )  # fmt: skip
    each = ["score", "prune", "validate", "recover", "validate"]
    wanted = [("trace", 0), ("validate", 0), *((p, 1) for p in each), *((p, 2) for p in each), ("prove", 2)]
    assert phases == wanted
    assert {phase for phase, _ in phases} <= set(WORDS)


def test_watched_batches_count_their_passes():
    with Bars(1, console=Console(file=io.StringIO(), force_terminal=True)) as bars:
        batches = bars.watched([1, 2, 3])
        assert (list(batches), list(batches), len(batches)) == ([1, 2, 3], [1, 2, 3], 3)
        task = bars._bars.tasks[1]
        assert (task.completed, task.total) == (3, 3)
