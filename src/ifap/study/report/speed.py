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

    Builds the networks and needs no data. Reading and changing images at random is left out. Other processes on the
    same machine make the result slower.
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
    train, validation = (Split(role, inputs, targets) for role in ("train", "validation"))
    seconds: list[float] = []

    def note(row: object, speed: Speed) -> None:
        seconds.append(speed.seconds)

    fit(network, train, validation, recipe, task, seed=0, on_epoch=note)
    start = time.perf_counter()
    task.evaluate(network, validation, recipe.batch_size)
    # The first epoch warms up.
    return Pace(seconds[-1] / count, (time.perf_counter() - start) / count, device().type == "cuda")
