"""Watching a training: a bar on a terminal, and curves for TensorBoard where they are asked for."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ifap.study.training.history import EpochRow

TENSORBOARD_SWITCH = "IFAP_TENSORBOARD"


@dataclass(frozen=True)
class Speed:
    """How fast an epoch was trained, validation left out."""

    seconds: float
    samples_per_second: float  # Training samples, those of all processes together.


OnEpoch = Callable[[EpochRow, Speed], None]
"""What `ifap.study.training.fit.fit` calls after every epoch."""


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[OnEpoch | None]:
    """Yield what writes a training's curves for TensorBoard, one point an epoch, for `fit` to call as ``on_epoch``.

    Yields None unless the environment variable IFAP_TENSORBOARD is 1. A resumed run goes on where its state was: the
    points that an earlier session, or an earlier run in the same folder, wrote from there on are hidden.
    """
    if os.environ.get(TENSORBOARD_SWITCH) != "1":
        yield None
        return
    writer: Any = None

    def write(row: EpochRow, speed: Speed) -> None:
        nonlocal writer
        if writer is None:
            # Here, so that jobs that nobody watches do not wait for the import.
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder), purge_step=row.epoch)
        points = {
            "loss/train": row.train_loss,
            "loss/validation": row.validation_loss,
            "metric/validation": row.validation_metric,
            "lr": row.lr,
            "speed/epoch_seconds": speed.seconds,
            "speed/samples_per_second": speed.samples_per_second,
        }
        for name, value in points.items():
            writer.add_scalar(name, value, row.epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


class StepBar:
    """A bar that advances with every step of an epoch; shows nothing where stderr is no terminal.

    `epochs` are those of the whole training, `steps` those of one epoch. Without `shown` it is quiet on a terminal as
    well.
    """

    def __init__(self, epochs: int, steps: int, *, shown: bool = True) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  {task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.shown = shown and sys.stderr.isatty()
        self._epochs = epochs
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self.shown, transient=True)
        self._line = self._bar.add_task("training", total=steps, speed="")
        self._start, self._samples = 0.0, 0

    def __enter__(self) -> StepBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def epoch(self, epoch: int) -> None:
        """Start the bar of an epoch, counted from 1."""
        self._start, self._samples = time.monotonic(), 0
        self._bar.reset(self._line, description=f"epoch {epoch}/{self._epochs}", speed="")

    def step(self, samples: int, loss: float | None) -> None:
        """Advance by one step; `loss` is the newest one that is known, or None."""
        if not self.shown:
            return
        self._samples += samples
        rate = self._samples / max(time.monotonic() - self._start, 1e-9)
        known = "" if loss is None else f"loss {loss:.4f}  "
        self._bar.update(self._line, advance=1, speed=f"{known}{rate:.0f} samples/s")
