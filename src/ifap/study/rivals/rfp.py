"""RFP: heads and neurons of a trained language model removed without training (Kwon et al., NeurIPS 2022).

Every head and every neuron has a mask variable of 1 that its output is multiplied by, and the loss of
some training samples a gradient g by each of them. A unit is worth the sum of its squared gradients (the
diagonal of the Fisher information). Then, in turn:

- *search*: for every number of heads, as many neurons as the budget allows, best first; the choice that
  is worth most is kept. No choice that costs more than the budget is looked at;
- *rearrangement*: within each layer units are exchanged where the squared norm of the summed gradients
  of those that go gets smaller, which takes in how units interact;
- *tuning*: layer by layer, the kept units are scaled so that the output comes close, in least squares,
  to that of a teacher: the network masked by a search at the square root of the constraint.

The scales go into the layers that read the units, and the units that are left out are cut away. Nothing
else changes and nothing is trained. The constraint is the whole network's here, like every target: what
cannot go (embeddings, pooler, head) is taken off the budget first.

The published search keeps heads that cost more than the budget, and may leave a layer nothing, with
which the models do not run: here each layer keeps its best unit. Where units of a kind differ in cost
(T5, whose decoder reads other lengths), they are taken by worth over cost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ifap.costs import Cost, cost
from ifap.data import refuse_test
from ifap.errors import ConfigError, ScoreError, TargetError
from ifap.forward import call, device_of, evaluation_mode, private_copy, tensors, to_device
from ifap.layers import is_producer, sides
from ifap.results import Pruned, Receipt, Target
from ifap.saving.plans import sliced_plan
from ifap.seeds import derive_seed
from ifap.study.config.rivals import RfpOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.attention import heads, split_attention, sync
from ifap.study.rivals.base import Context, Outcome, options_of
from ifap.study.rivals.blocks import Group, cut_units, find_groups, matrix, scaled_units
from ifap.study.rivals.rfp_search import _NEARLY, Budget, budget_of, search
from ifap.study.rivals.rfp_tuning import Labelled, Loss, Scales, Solved, group_widths, tune, unit_masks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What was decided about a network."""

    kept: list[Tensor]  # Boolean mask of each group, shape (units,).
    scales: Scales  # Scale of each unit by the layer that reads it, shape (units,); 0 where it goes.
    solved: list[Solved]  # The layers that were tuned, in order.


# --- what units cost ------------------------------------------------------------------------------


# --- importance -----------------------------------------------------------------------------------


def mask_gradients(
    model: nn.Module, groups: Sequence[Group], labelled: Labelled, loss: Loss, *, per_sample: bool = False
) -> list[Tensor]:
    """Return the gradients of the loss by the masks of all units, in evaluation mode.

    ``loss(outputs, targets)`` returns the mean over the samples of a batch. The gradients of each group have the shape
    (batches or samples, units): `per_sample` gives one a sample, which does not depend on how samples are batched; else
    there is one a batch.
    """
    found: list[list[Tensor]] = [[] for _ in groups]
    where = device_of(model)
    for inputs, targets in labelled:
        samples = len(targets)
        # A mask of its own for every sample: samples do not meet in a forward, so one backward has all.
        masks = [torch.ones(samples, 1, group.units, device=where, requires_grad=True) for group in groups]
        scales = {part.reader: mask for group, mask in zip(groups, masks, strict=True) for part in group.parts}
        with evaluation_mode(model), scaled_units(model, group_widths(groups), scales):
            value = loss(call(model, to_device(inputs, where)), to_device(targets, where))
            gradients = torch.autograd.grad(value, masks)
        for rows, gradient in zip(found, gradients, strict=True):
            each = gradient.squeeze(1).double()
            rows.append(samples * each if per_sample else each.sum(dim=0, keepdim=True))
    if not found or not found[0]:
        raise ScoreError("there are no labelled data: give at least one batch of inputs and targets")
    joined = [torch.cat(rows).cpu() for rows in found]
    for group, gradient in zip(groups, joined, strict=True):
        if not torch.isfinite(gradient).all():
            raise ScoreError(f"'{group.name}': gradients are not finite on the labelled data")
    return joined


def fisher(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the diagonal of the Fisher information of each group: summed squared gradients, shape (units,)."""
    return [rows.square().sum(dim=0) for rows in gradients]


# --- rearrangement --------------------------------------------------------------------------------


def rearrange(kept: Tensor, gradients: Tensor) -> Tensor:
    """Exchange kept units of a group for others where that hurts less; their number stays.

    What is made smaller is the squared norm of the summed gradients of all that go (block-diagonal Fisher information).
    It starts from those of least importance; each of the others, by rising importance, joins them once, and the one
    whose return helps most comes back. `kept` and the result are boolean masks of the shape (units,), and `gradients`
    those of `mask_gradients`.
    """
    gone = int((~kept).sum())
    if gone in {0, len(kept)}:
        return kept.clone()
    ranked = torch.argsort(gradients.square().sum(dim=0), stable=True)
    out = ranked[:gone].tolist()
    norms = gradients.square().sum(dim=0)
    total = gradients[:, out].sum(dim=1)
    for unit in ranked[gone:].tolist():
        # The newcomer is last, so that of equal choices an exchange is made only if something is gained.
        trial, members = total + gradients[:, unit], [*out, unit]
        after = trial.square().sum() - 2 * trial @ gradients[:, members] + norms[members]
        back = int(after.argmin())
        if after[back] < after[-1]:
            total = trial - gradients[:, members[back]]
            out = [*members[:back], *members[back + 1 :]]
    found = torch.ones_like(kept)
    found[out] = False
    return found


# --- all together ---------------------------------------------------------------------------------


def decide(
    model: nn.Module, groups: Sequence[Group], labelled: Labelled, loss: Loss, budget: Budget, options: RfpOptions
) -> Decision:
    """Return which units stay, and how they are scaled; the network is left as it was."""
    refuse_test(labelled, "scoring")
    with _frozen(model):
        gradients = mask_gradients(model, groups, labelled, loss, per_sample=options.per_sample)
        worth, kinds = fisher(gradients), [group.kind for group in groups]
        kept = search(worth, budget.prices, kinds, budget.allowed)
        if options.rearrange:
            kept = [rearrange(mask, rows) for mask, rows in zip(kept, gradients, strict=True)]
        if not options.tune:
            return Decision(kept, unit_masks(groups, kept, device_of(model)), [])
        teacher = search(worth, budget.prices, kinds, budget.constraint**0.5 * budget.units)
        scales, solved = tune(model, groups, teacher, kept, labelled, loss, options)
    return Decision(kept, scales, solved)


def prune_units(
    model: nn.Module, example_inputs: Any, labelled: Labelled, loss: Loss, target: Target, options: RfpOptions
) -> tuple[Pruned, Decision]:
    """Remove heads and neurons of a trained language model without training it.

    `model` is a BERT, GPT-2 or T5 with any head, trained for the task; it is not modified. `example_inputs` are of the
    length that MACs are counted at. `labelled` are batches of training samples, never of the test split; they are gone
    through several times. ``loss(outputs, targets)`` returns the mean over the samples of a batch. `target` is of the
    whole network. Returns what `ifap.prune` does, and what was decided.

    Raises a ConfigError if the network has no blocks of a known family, a TargetError if the target cannot be reached,
    and a ScoreError if there are no data, or gradients are not finite.
    """
    small = private_copy(model)
    split = split_attention(small)
    groups = find_groups(small)
    if not groups:
        raise ConfigError(f"method 'rfp' is not defined for {type(model).__name__}: it has no transformer blocks")
    before = cost(model, example_inputs)
    budget = budget_of(small, groups, example_inputs, target, before)
    decision = decide(small, groups, labelled, loss, budget, options)
    kept = fold_and_cut(small, groups, decision)
    after = cost(small, example_inputs)
    left = getattr(after, budget.kind)
    if left > budget.whole * budget.left * (1 + _NEARLY):
        raise TargetError(f"target: {budget.kind}={target.share:g} was missed: {left} of {budget.whole} are left")
    plan = sliced_plan(kept, split, heads(small), example_inputs, before, after)
    return Pruned(small, plan, _receipts(model, small, decision, budget, before, after), before, after), decision


@torch.no_grad()
def fold_and_cut(model: nn.Module, groups: Sequence[Group], decision: Decision) -> dict[str, dict[str, list[int]]]:
    """Multiply the scales into the weights and cut away what goes, in place; returns what stays, as in a plan."""
    for group in groups:
        for part in group.parts:
            weight = matrix(model.get_submodule(part.reader))
            weight.mul_(decision.scales[part.reader].to(weight).repeat_interleave(group.width))
    kept = cut_units(model, groups, [mask.nonzero().flatten().cpu() for mask in decision.kept])
    sync(model)
    return kept


@SPARSE.register("rfp")
def rfp(context: Context) -> Outcome:
    """`prune_units` on a draw of training samples.

    Prune the trained network; there is no training.
    """
    options: RfpOptions = options_of(context, RfpOptions)
    model = context.baseline()
    inputs = to_device(context.example_inputs, device_of(model))
    drawn = draw(context, options)
    pruned, decision = prune_units(model, inputs, drawn, context.task.loss, context.target, options)
    metrics = [
        context.task.evaluate(network, context.validation, options.batch_size)[context.task.primary]
        for network in (model, pruned.model)
    ]
    start, end = pruned.receipts
    receipts = [
        replace(start, metric_before=None, metric_after=metrics[0]),
        replace(end, metric_before=metrics[0], metric_after=metrics[1]),
    ]
    # One backward a sample, and at most two forwards for each layer that was tuned.
    spent = (3 + 2 * len(decision.solved)) * options.samples * _per_sample(pruned.before, context.example_inputs)
    return Outcome(
        model=pruned.model.eval(),
        masks={},
        split_attention=pruned.plan.split_attention,
        history=[],
        events=[],
        training_macs=spent,
        dense_training_macs=spent,
        cut=Pruned(pruned.model, pruned.plan, receipts, pruned.before, pruned.after),
    )


def draw(context: Context, options: RfpOptions) -> Labelled:
    """Return batches of training samples, drawn with replacement by the context's seed."""
    generator = torch.Generator().manual_seed(derive_seed(context.seed, "rfp"))
    rows = torch.randint(len(context.train), (options.samples,), generator=generator)
    return [context.train.read(some) for some in rows.split(options.batch_size)]


# --- helpers --------------------------------------------------------------------------------------


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach parameters: only those of masks are wanted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _receipts(
    model: nn.Module, small: nn.Module, decision: Decision, budget: Budget, before: Cost, after: Cost
) -> list[Receipt]:
    def widths(network: nn.Module) -> dict[str, int]:
        return {name: sides(module)["out"] for name, module in network.named_modules() if is_producer(module)}

    total = sum(len(mask) for mask in decision.kept)
    removed = sum(int((~mask).sum()) for mask in decision.kept)
    asked = round(budget.whole * budget.left)
    return [
        Receipt(0, before.macs, before.params, widths=widths(model)),
        Receipt(
            1,
            after.macs,
            after.params,
            units_asked=removed,
            units_removed=removed,
            macs_asked=asked if budget.kind == "macs" else after.macs,
            params_asked=asked if budget.kind == "params" else after.params,
            rho=removed / total,
            widths=widths(small),
        ),
    ]


def _per_sample(whole: Cost, example_inputs: Any) -> int:
    return whole.macs // len(next(tensors(example_inputs)))
