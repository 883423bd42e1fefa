"""Recovery as a scale's options ask for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ifap.data import Augment, Batches, Split, refuse_test
from ifap.errors import ConfigError
from ifap.recovery.distillation import Distillation
from ifap.study.config.recipes import RecoveryOptions
from ifap.study.tasks.base import Task


def validator(
    data: Split | Batches, task: Task, batch_size: int = 256, *, newest: dict[str, float] | None = None
) -> Callable[[nn.Module], float]:
    """Return a function that measures a network's primary metric, for `ifap.prune`.

    Parameters
    ----------
    data : Split or iterable of (inputs, targets)
        What to measure on; the test split is refused.
    task : Task
        Gives the metric; higher is better here, so one that should be low is negated.
    batch_size : int, optional
        Samples a batch of a `Split`.
    newest : dict, optional
        Holds all metrics of the network that was measured last.
    """
    refuse_test(data, "validating during pruning")

    def validate(model: nn.Module) -> float:
        found = task.evaluate(model, data, batch_size)
        if newest is not None:
            newest.update(found)
        return task.sign * found[task.primary]

    return validate


def distillation(
    train: Split,
    validation: Split,
    options: RecoveryOptions,
    *,
    task: Task,
    augment: bool | Augment | None = False,
    seed: int = 0,
) -> Distillation:
    """Return the distillation that a scale's options ask for.

    Raises
    ------
    ConfigError
        If a teacher is to be copied in a task where it cannot be.
    """
    for name in ("feature_weight", "logit_weight"):
        if getattr(options, name) and not task.teaches:
            raise ConfigError(
                f"prune.recovery.{name}: a network that makes images sees noise of its own in training, and its "
                "teacher other noise: nothing of them can be compared; set it to 0"
            )
    return Distillation(
        train,
        validation,
        loss=task.loss,
        augment=augment if options.augment else False,
        seed=seed,
        losing=task.losing,
        **options.model_dump(exclude={"teacher", "augment"}),
    )
