"""What the methods share around a training: call it, and sum up what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from ifap.errors import ConfigError
from ifap.sparse.base import Context, Outcome
from ifap.sparse.controller import MaskController
from ifap.training import EpochRow, Progress, fit, read_progress


def train(context: Context, model: nn.Module, controller: MaskController, *, done: int = 0) -> list[EpochRow]:
    """Train in place by the context's recipe with a controller around the steps; `done` epochs are behind it."""
    if not context.recipe.epochs:
        raise ConfigError("training with masks needs at least one epoch: there is no budget for it")
    return fit(
        model,
        context.train,
        context.validation,
        context.recipe,
        context.task,
        seed=context.seed,
        augment=context.augment,
        state=context.state,
        guard=context.guard,
        controller=controller,
        done=done,
    )


def outcome(
    context: Context,
    model: nn.Module,
    split: list[str],
    controller: MaskController,
    rows: list[EpochRow],
    *,
    start: Mapping[str, int],
) -> Outcome:
    """Return what one training made; `start` is how many weights each layer kept before it."""
    theory, dense = controller.training_macs(len(context.train))
    return Outcome(
        model=model.eval(),
        masks=controller.masks,
        split_attention=split,
        history=rows,
        events=[controller.event(0, start), *controller.events(rows)],
        training_macs=theory,
        dense_training_macs=dense,
        progress=read_progress(context.state) if context.state is not None else Progress(),
    )


def cosine(step: float, steps: float, first: float, last: float) -> float:
    """Return a value that falls along half a cosine from `first` to `last`."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * step / steps))
