"""How fast this machine trains and runs the classifiers of a scale: a few steps of each, on made-up images."""

from __future__ import annotations

import time

import torch

from ifap.data import Split
from ifap.study.config.data import ModelOptions
from ifap.study.data import DATASETS
from ifap.study.data.base import DatasetSpec
from ifap.study.grid import Grid
from ifap.study.machine.determinism import device
from ifap.study.models import MODELS
from ifap.study.paths import Cell
from ifap.study.report.estimate import Network, Pace, network_of
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit
from ifap.study.training.progress import Speed

BATCHES = 3


def paces(grid: Grid) -> dict[Network, Pace]:
    """Time steps of every classifier of images of a scale, by the recipe of its baseline.

    Builds the networks and needs no data. Reading and changing images at random is left out. On the CPU the time of the
    processor counts: a job takes longer where it shares its core.
    """
    cells = {network_of(cell): cell for cell in reversed(grid.baselines()) if cell.task == "classification"}
    return {network: _pace(grid, cell) for network, cell in cells.items()}


def _pace(grid: Grid, cell: Cell) -> Pace:
    spec, options = DATASETS.get(cell.dataset), grid.model(cell)
    assert isinstance(spec, DatasetSpec)
    assert isinstance(options, ModelOptions)
    channels = grid.options.datasets[cell.dataset].channels or spec.channels
    network = MODELS.get(cell.model)(spec.classes, channels, options.image_size).to(device())
    recipe = grid.training(cell).model_copy(update={"epochs": 2, "warmup_epochs": 0})
    count, task = BATCHES * recipe.batch_size, TASKS.get(cell.task)
    inputs = torch.rand(count, channels, options.image_size, options.image_size)
    targets = torch.arange(count) % spec.classes
    train, few = Split("train", inputs, targets), Split("validation", inputs[:2], targets[:2])
    on_gpu = device().type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    ends: list[float] = []

    def note(row: object, speed: Speed) -> None:
        ends.append(clock())

    # The first epoch warms up.
    fit(network, train, few, recipe, task, seed=0, on_epoch=note)
    start = clock()
    task.evaluate(network, train, recipe.batch_size)
    return Pace((ends[1] - ends[0]) / count, (clock() - start) / count, on_gpu)
