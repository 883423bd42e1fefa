"""MvP: movement pruning (Sanh, Wolf & Rush, NeurIPS 2020), from a pre-trained language model.

Each linear layer of the blocks gets a score for every weight. The network computes with W M, where M
keeps the largest scores of the layer. Gradients go straight through the choice: with G the gradient
by W M, a score gets G W and a weight gets G M. Scores so rise where weights move away from zero, those
of masked weights included, which may come back. Scores start at zero and are stepped by the same AdamW
as the weights, at a rate of their own and without decay.

What is kept falls from all to the target along a cubic, between two flat stretches; learning rates rise
for the first warm-up and then fall linearly. Embeddings are frozen. What is validated, and returned, has
the final masks.

Soft movement pruning keeps the scores above a threshold that rises, and a penalty lowers them: how much
is left follows from the weight of the penalty and is not known before the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ifap.errors import ConfigError, TargetError
from ifap.study.config.rivals import MvpOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.attention import split_attention
from ifap.study.rivals.base import Context, Masks, Outcome, options_of
from ifap.study.rivals.blocks import Group, block_weights, find_groups, is_transposed
from ifap.study.rivals.controller import LatentController, all_kept, counted
from ifap.study.rivals.density import Prices, prices, refuse_empty
from ifap.study.rivals.ranking import top
from ifap.study.rivals.run import outcome, train

_SCORE = "score."
_NEARLY = 1e-9
_LEAST = 0.005
_DEFAULT_WARMUP = 0.1


def cubic(step: int, steps: int, warmup: int, options: MvpOptions, first: float, last: float) -> float:
    """Return a value that goes from `first` to `last`: flat, along a cubic, flat.

    `step` counts from 0, of the `steps` of the run. The steps of the `warmup` are the unit of the flat stretches, whose
    lengths are in `options`.
    """
    begin, end = options.initial_warmup * warmup, steps - options.final_warmup * warmup
    if step <= begin:
        return first
    if step > end:
        return last
    return last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3


def linear(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rates in a step: a linear rise, then a linear fall towards zero."""
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)


def by_block(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Sum a matrix over blocks of so many rows and columns."""
    rows, columns = block
    return values if block == (1, 1) else values.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum(dim=(1, 3))


def spread(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Give every element of a block the block's value."""
    rows, columns = block
    return values if block == (1, 1) else values.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


class MvpController(LatentController):
    """Scores beside the weights, and masks that keep the largest.

    `masks` are those of `MaskController`; nothing is masked at first. `final` is the share of each layer's weights that
    is kept in the end, which soft scores do not use. `lr` is the peak learning rate of the weights, and `macs` are the
    MACs of each. `transposed` are weights that are stored as (in, out), so that blocks are turned.

    Raises a ConfigError if blocks do not divide a layer, and in `start` if the schedule is longer than the training.
    """

    def __init__(
        self,
        masks: Masks,
        options: MvpOptions,
        final: float,
        lr: float,
        macs: Prices | None = None,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(masks, macs)
        self._options, self.final, self._lr = options, final, lr
        self.warmup = 0
        self.scores: dict[str, nn.Parameter] = {}
        self._blocks = {name: self._block(name, mask, turned=name in transposed) for name, mask in masks.items()}
        self._model: nn.Module | None = None

    # what `fit` calls

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Check the schedule, and give the optimiser the scores."""
        options = self._options
        self.warmup = max(1, round(_DEFAULT_WARMUP * steps)) if options.warmup_steps is None else options.warmup_steps
        self._check_schedule(steps)
        super().start(model, optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
        self._model = model
        for name, weight in self.weights.items():
            rows, columns = self._blocks[name]
            shape = (weight.shape[0] // rows, weight.shape[1] // columns)
            self.scores[name] = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
        # Without decay, which is not AdamW's default: scores that nothing moves must stay.
        group = {"params": list(self.scores.values()), "lr": options.score_lr, "weight_decay": 0.0}
        optimizer.add_param_group(group)

    def before_step(self, step: int) -> None:
        """Set the learning rates, and let the network compute with what the step keeps."""
        self.put_back()
        assert self._optimizer is not None
        factor = linear(step, self.steps, self.warmup)
        *own, scores = self._optimizer.param_groups
        for group in own:
            group["lr"] = self._lr * factor
        scores["lr"] = self._options.score_lr * factor
        for name in self.weights:
            self.masks[name] = self.mask(name, step)
            self.show(name, self.masks[name])

    @torch.no_grad()
    def after_backward(self, step: int) -> bool:
        """Turn gradients of the masked weights into those of scores and weights, and put the weights back."""
        for name, weight in self.weights.items():
            gradient = weight.grad
            assert gradient is not None, f"'{name}' has no gradient"
            self.scores[name].grad = by_block(gradient * self.latent[name], self._blocks[name])
            gradient.mul_(self.masks[name])
        self.put_back()
        if self._options.scores == "soft":
            self._penalise(step)
        if self._options.grad_clip is not None:
            assert self._model is not None
            every = [p for p in (*self._model.parameters(), *self.scores.values()) if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(every, self._options.grad_clip)
        return True

    def end_epoch(self, step: int) -> None:
        """Mask what is validated as it will be in the end; the weights come back with the next step."""
        for name in self.weights:
            self.masks[name] = self.mask(name, self.steps)
            self.show(name, self.masks[name])

    def state(self) -> dict[str, Tensor]:
        """Return the scores as well."""
        return {**super().state(), **{_SCORE + name: score.detach() for name, score in self.scores.items()}}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        super().restore(tensors)
        for name, score in self.scores.items():
            score.copy_(tensors[_SCORE + name])

    # masks

    @torch.no_grad()
    def mask(self, name: str, step: int) -> Tensor:
        """Return the mask of a layer in a step; in step `steps`, the final one."""
        score = self.scores[name]
        if self._options.scores == "hard":
            count = math.floor(self.kept(step) * score.numel() + _NEARLY)
        else:
            above = int((torch.sigmoid(score) > self.threshold(step)).sum())
            count = max(above, math.ceil(_LEAST * score.numel()))
        return spread(top(score.detach(), count), self._blocks[name])

    def kept(self, step: int) -> float:
        """Return the share of each layer's scores that a step keeps (v)."""
        return cubic(step, self.steps, self.warmup, self._options, self._options.initial, self.final)

    def threshold(self, step: int) -> float:
        """Return what soft scores are compared with after the sigmoid (tau)."""
        return cubic(step, self.steps, self.warmup, self._options, 0.0, self._options.final_threshold)

    # helpers

    def _penalise(self, step: int) -> None:
        """Add the gradient of lambda times the mean over layers of the mean sigmoid of the scores."""
        weight = self._options.penalty * self.threshold(step) / self._options.final_threshold / len(self.scores)
        for score in self.scores.values():
            soft = torch.sigmoid(score.detach())
            assert score.grad is not None
            score.grad.add_(soft * (1 - soft), alpha=weight / score.numel())

    def _check_schedule(self, steps: int) -> None:
        first, last = self._options.initial_warmup, self._options.final_warmup
        if (first + last) * self.warmup >= steps or self.warmup >= steps:
            most = math.ceil(steps / max(1.0, first + last)) - 1
            raise ConfigError(
                f"methods.mvp: {first:g} + {last:g} warm-ups of {self.warmup} steps leave nothing of a training of "
                f"{steps} steps to prune in: set warmup_steps to at most {most}, or train longer"
            )

    def _block(self, name: str, mask: Tensor, *, turned: bool) -> tuple[int, int]:
        rows, columns = self._options.block_rows, self._options.block_columns
        block = (columns, rows) if turned else (rows, columns)
        if mask.shape[0] % block[0] or mask.shape[1] % block[1]:
            shape = tuple(reversed(mask.shape)) if turned else tuple(mask.shape)
            raise ConfigError(
                f"methods.mvp: blocks of {rows} x {columns} do not divide '{name}' of {shape[0]} x {shape[1]}"
            )
        return block


@SPARSE.register("mvp")
def mvp(context: Context) -> Outcome:
    """Movement pruning of the linear layers of a language model's blocks.

    Fine-tune once, from the pre-trained network where there is one, else from the trained one.
    """
    options: MvpOptions = options_of(context, MvpOptions)
    _check_recipe(context)
    model = context.build() if context.pretrained else context.baseline()
    split = split_attention(model)
    groups = find_groups(model)
    weights = block_weights(model, groups)
    if not weights:
        raise ConfigError(f"method 'mvp' is not defined for {type(model).__name__}: it has no transformer blocks")
    priced = prices(model, context.example_inputs, context.target.kind, weights)
    macs = prices(model, context.example_inputs, "macs", weights)
    goal = priced.goal(context.target)
    final = (goal - priced.fixed) / (priced.whole - priced.fixed)
    controller = MvpController(
        all_kept(weights), options, final, context.recipe.lr, macs, transposed_weights(model, weights)
    )
    start = counted(controller.masks)
    frozen = freeze_embeddings(model, groups)
    try:
        rows = train(context, model, controller)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    _check_reached(context, controller, priced, goal)
    return outcome(context, model, split, controller, rows, start=start)


def transposed_weights(model: nn.Module, weights: dict[str, Tensor]) -> frozenset[str]:
    """Return which of the named weights are stored as (in, out)."""
    return frozenset(n for n in weights if is_transposed(model.get_submodule(n.removesuffix(".weight"))))


def freeze_embeddings(model: nn.Module, groups: list[Group]) -> list[nn.Parameter]:
    """Let no gradient reach embeddings of tokens and positions; returns the parameters that had one."""
    biases = {name for group in groups for part in group.parts for name in part.columns}
    tables = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name not in biases
    }
    frozen = [parameter for parameter in model.parameters() if id(parameter) in tables and parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def _check_recipe(context: Context) -> None:
    if context.recipe.optimizer != "adamw":
        raise ConfigError(f"method 'mvp' steps weights and scores by one AdamW, not by {context.recipe.optimizer}")
    if context.recipe.ema_decay is not None:
        raise ConfigError("method 'mvp' has masks that move, which cannot be averaged: leave out ema_decay")


def _check_reached(context: Context, controller: MvpController, priced: Prices, goal: float) -> None:
    """Refuse a soft run that kept too much; the masks of hard scores keep what was asked for."""
    kept = counted(controller.masks)
    refuse_empty(kept)
    reached = 1 - priced.of(kept) / priced.whole
    if priced.of(kept) > goal + _NEARLY * priced.whole:
        raise TargetError(
            f"target: {priced.kind}={context.target.share:g} was missed by soft scores, which reached {reached:.4f}: "
            f"raise methods.mvp.penalty ({controller._options.penalty:g}), or use hard scores"
        )
