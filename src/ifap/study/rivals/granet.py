"""GraNet: gradual global pruning during training, with regeneration (Liu et al., NeurIPS 2021).

Written from the description in the paper. After every few steps the smallest weights of all layers
together are pruned, by a cubic schedule, and then every layer exchanges its smallest weights for
those with the largest gradient. Stem, classifier and depthwise convolutions are masked like the rest.

Three choices differ from the published runs: the first masks keep exactly their share (instead of
each weight with that chance), the last pruning lands on the target whatever the number of updates
is, and nothing is regenerated after the last step, because no training would follow.
"""

from __future__ import annotations

import math

from ifap.errors import ConfigError, TargetError
from ifap.study.config.rivals import GranetOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Masks, Outcome, options_of
from ifap.study.rivals.controller import MaskController, counted
from ifap.study.rivals.density import Prices, counts, erdos_renyi_kernel, maskable, prices, refuse_empty
from ifap.study.rivals.ranking import affordable, global_top, random_masks, regrow
from ifap.study.rivals.run import cosine, outcome, train

_UPDATES = 56
_LAST_SHARE = 0.005
_NEARLY = 1e-9


class GranetController(MaskController):
    """Prune and regenerate every few steps.

    `priced` is the cost of the target, and `goal` the cost to end with. `macs` are the MACs of each weight, for what
    the training costs. For `masks` see `MaskController`.
    """

    def __init__(
        self, masks: Masks, options: GranetOptions, priced: Prices, goal: float, macs: Prices | None = None
    ) -> None:
        super().__init__(masks, macs)
        self._options, self._target, self._goal = options, priced, goal
        self._first_cost = priced.of(counted(masks))
        self._usable = False

    @property
    def every(self) -> int:
        """Steps from one update to the next."""
        return self._options.update_every or max(1, self.steps // _UPDATES)

    @property
    def last_pruning(self) -> int:
        """Number of the update that reaches the target."""
        return int(self._options.window_share * self.steps) // self.every

    def cost_at(self, update: int) -> float:
        """Return the cost that the pruning of one update allows (cubic; Zhu & Gupta 2017)."""
        left = 1 - min(1.0, update / self.last_pruning)
        return self._goal + (self._first_cost - self._goal) * left**3

    def share_at(self, step: int) -> float:
        """Return the share of a layer's weights that is regenerated after so many steps."""
        return cosine(step, self.steps, self._options.regrow, _LAST_SHARE)

    def before_step(self, step: int) -> None:
        """Check once that the run is long enough for the options."""
        if step == 0 and self.last_pruning < 1:
            raise ConfigError(
                f"methods.granet.update_every: {self.every} steps are more than the {self.steps} steps of the run "
                f"times window_share {self._options.window_share}: make it smaller"
            )
        self._usable = False

    def after_backward(self, step: int) -> bool:
        """Note that the gradients can be used."""
        self._usable = True
        return True

    def change(self, step: int) -> None:
        """Prune all layers together, then regenerate each."""
        done = step + 1
        if done % self.every:
            return
        update = done // self.every
        if update <= self.last_pruning:
            self.prune(update)
        # A gradient that overflowed says nothing, and after the last step nothing grows any more.
        if self._usable and done < self.steps:
            self.regenerate(done)

    def prune(self, update: int) -> None:
        """Keep the largest weights of all layers together."""
        magnitudes = {name: weight.detach().abs() for name, weight in self.weights.items()}
        floor = self._options.layer_floor
        keep = affordable(magnitudes, self.masks, self._target, self.cost_at(update), floor)
        masks = global_top(magnitudes, self.masks, keep, floor)
        refuse_empty(counted(masks))
        self.set_masks(masks)

    def regenerate(self, done: int) -> None:
        """Exchange the smallest weights of every layer for those of large gradient."""
        share = self.share_at(done)
        for name, weight in self.weights.items():
            assert weight.grad is not None, f"'{name}' has no gradient"
            mask = self.masks[name]
            moved = math.ceil(share * int(mask.sum()) - _NEARLY)
            self.replace(name, regrow(weight, weight.grad, mask, moved))
        self.apply()

    def step_macs(self, step: int) -> float:
        """Return what a step costs; regeneration needs the gradient of all weights."""
        if (step + 1) % self.every == 0:
            return 2 * self.sparse_forward + self.dense_forward
        return 3 * self.sparse_forward


@SPARSE.register("granet")
def granet(context: Context) -> Outcome:
    """GraNet from ERK masks of some density, or from all weights (`initial_density` 1).

    Train once; pruning is done at `window_share` of the run, regeneration goes on.
    """
    options: GranetOptions = options_of(context, GranetOptions)
    model, split = context.network()
    shapes = {name: weight.shape for name, weight in maskable(model).items()}
    priced = prices(model, context.example_inputs, context.target.kind, shapes)
    goal = priced.goal(context.target)
    kept = counts(erdos_renyi_kernel(shapes, options.initial_density), priced.sizes)
    if priced.of(kept) <= goal:
        raise TargetError(
            f"target: {context.target.kind}={context.target.share:g} is met before pruning: raise "
            f"methods.granet.initial_density ({options.initial_density:g} removes "
            f"{1 - priced.of(kept) / priced.whole:.3f})"
        )
    macs = prices(model, context.example_inputs, "macs", shapes)
    masks = random_masks(shapes, kept, context.seed)
    controller = GranetController(masks, options, priced, goal, macs)
    rows = train(context, model, controller)
    return outcome(context, model, split, controller, rows, start=kept)
