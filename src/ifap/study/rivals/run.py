"""What the methods share around a training: call it, and sum up what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ifap.costs import cost
from ifap.errors import ConfigError
from ifap.forward import Inputs
from ifap.plan import Plan
from ifap.saving.plans import sliced_plan, unpruned_plan
from ifap.study.rivals.attention import heads
from ifap.study.rivals.base import Context, Outcome
from ifap.study.rivals.controller import MaskController
from ifap.study.training.controller import Controller
from ifap.study.training.fit import Progress, fit, read_progress
from ifap.study.training.history import EpochRow

if TYPE_CHECKING:
    from ifap.results import Pruned


def train(context: Context, model: nn.Module, controller: Controller | None = None, *, done: int = 0) -> list[EpochRow]:
    """Train in place by the context's recipe with a controller around the steps; `done` epochs are behind it."""
    if not context.recipe.epochs:
        raise ConfigError("a method that trains needs at least one epoch: there is no budget for it")
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
        progress=_progress(context),
    )


def cut_outcome(context: Context, cut: Pruned, rows: list[EpochRow], forward: int) -> Outcome:
    """Return what one training made of which a smaller network came; `forward` is the MACs of the trained one."""
    macs = 3 * forward * len(context.train) * len(rows)
    *earlier, last = cut.receipts
    metric = rows[-1].validation_metric
    receipts = [*earlier, replace(last, metric_before=None, metric_after=metric)]
    return Outcome(
        model=cut.model,
        masks={},
        split_attention=cut.plan.split_attention,
        history=rows,
        events=[],
        training_macs=macs,
        dense_training_macs=macs,
        progress=_progress(context),
        cut=replace(cut, receipts=receipts),
    )


def masked_plan(model: nn.Module, split: list[str], example_inputs: Inputs) -> Plan:
    """Return the plan of a network that keeps its shape, with the attention modules that were split."""
    if not split:
        return unpruned_plan(model, example_inputs)
    whole = cost(model, example_inputs)
    return sliced_plan({}, split, heads(model), example_inputs, whole, whole)


def _progress(context: Context) -> Progress:
    return read_progress(context.state) if context.state is not None else Progress()


def cosine(step: float, steps: float, first: float, last: float) -> float:
    """Return a value that falls along half a cosine from `first` to `last`."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * step / steps))
