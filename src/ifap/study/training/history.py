"""What a training writes down: one row an epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochRow:
    """One epoch of training."""

    epoch: int  # Counted from 1.
    lr: float  # Learning rate of the last step.
    train_loss: float  # Mean loss of the epoch's samples, extra terms included.
    validation_loss: float  # Loss on the validation split after the epoch, without label smoothing.
    validation_metric: float  # The task's primary metric on the validation split after the epoch.
