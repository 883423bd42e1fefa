"""What the ways to prune are compared on: a network, its data and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ifap.data import CalibrationBatches, Split
from ifap.study.tasks import TASKS

TASK = TASKS.get("classification")
Recover = Callable[[nn.Module, nn.Module, int], object] | None


@dataclass(frozen=True)
class Setting:
    """A trained network with the data that it is pruned on."""

    name: str
    seed: int
    network: nn.Module
    train: Split
    validation: Split
    test: Split

    @property
    def image(self) -> Tensor:
        """One input."""
        return self.test.inputs[:1]  # type: ignore[index, return-value]

    @property
    def calibration(self) -> CalibrationBatches:
        """Training samples to score with."""
        return self.train.calibration(CALIBRATION, BATCH, self.seed)


def top1(network: nn.Module, split: Split) -> float:
    """Return the accuracy in percent."""
    return TASK.evaluate(network, split, 500)["top1"]


TRAIN, VALIDATION, TEST, CALIBRATION, BATCH = 4000, 1000, 10_000, 256, 64
