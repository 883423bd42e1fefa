"""Watching a training: a bar on a terminal, and curves for TensorBoard where they are asked for."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ifap.study.training.history import EpochRow

TENSORBOARD_SWITCH = "IFAP_TENSORBOARD"


@dataclass(frozen=True)
class Speed:
    """How fast an epoch was trained, validation left out.

    Parameters
    ----------
    seconds : float
        Of the epoch.
    samples_per_second : float
        Training samples, those of all processes together.
    """

    seconds: float
    samples_per_second: float


class OnEpoch(Protocol):
    """What `ifap.study.training.fit.fit` calls after every epoch."""

    def __call__(self, row: EpochRow, speed: Speed) -> None:
        """Take note of an epoch."""
        ...


class TensorBoard:
    """Curves of a training for TensorBoard, one point an epoch; pass an instance to `fit` as ``on_epoch``.

    A resumed run goes on where its state was: the points that an earlier session, or an earlier run
    in the same folder, wrote from there on are hidden.

    Parameters
    ----------
    folder : Path
        Where the event files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, row: EpochRow, speed: Speed) -> None:
        """Write the points of one epoch."""
        if self._writer is None:
            # Here, so that jobs that nobody watches do not wait for the import.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=row.epoch)
        points = {
            "loss/train": row.train_loss,
            "loss/validation": row.validation_loss,
            "metric/validation": row.validation_metric,
            "lr": row.lr,
            "speed/epoch_seconds": speed.seconds,
            "speed/samples_per_second": speed.samples_per_second,
        }
        for name, value in points.items():
            self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[OnEpoch | None]:
    """Yield a `TensorBoard` of a folder if the environment variable IFAP_TENSORBOARD is 1, else None."""
    if os.environ.get(TENSORBOARD_SWITCH) != "1":
        yield None
        return
    board = TensorBoard(folder)
    try:
        yield board
    finally:
        board.close()


class StepBar:
    """A bar that advances with every step of an epoch; shows nothing where stderr is no terminal.

    Parameters
    ----------
    epochs : int
        Of the whole training.
    steps : int
        Of one epoch.
    shown : bool, optional
        False keeps it quiet on a terminal as well.
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
