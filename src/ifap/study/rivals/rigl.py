"""RigL: sparse training from scratch whose masks follow magnitudes and gradients (Evci et al., ICML 2020).

Every layer keeps its number of weights (ERK densities). Now and then, in place of a step of the
weights, the smallest active ones are dropped and those with the largest gradient of this batch grow
from zero. Depthwise convolutions stay dense; the stem and the classifier are masked.
"""

from __future__ import annotations

import math

from ifap.study.config.rivals import RiglOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Masks, Outcome, options_of
from ifap.study.rivals.controller import MaskController
from ifap.study.rivals.density import Prices, erdos_renyi_kernel, maskable, prices, solve_density
from ifap.study.rivals.ranking import random_masks, regrow
from ifap.study.rivals.run import outcome, train

_EVERY = 100
_SHARE_OF_A_SHORT_RUN = 20


class RiglController(MaskController):
    """Move the masks of every layer now and then; their numbers of kept weights never change.

    `options` are the interval, the share that moves at first, and the end. For `masks` and `priced` see
    `MaskController`.
    """

    def __init__(self, masks: Masks, options: RiglOptions, priced: Prices | None = None) -> None:
        super().__init__(masks, priced)
        self._options = options

    @property
    def every(self) -> int:
        """Steps from one update to the next."""
        return self._options.update_every or min(_EVERY, max(2, self.steps // _SHARE_OF_A_SHORT_RUN))

    @property
    def end(self) -> float:
        """Step after which the masks stay."""
        return self._options.end_share * self.steps

    def fraction(self, step: int) -> float:
        """Return the share of a layer's weights that moves in an update at this step."""
        return self._options.drop_fraction / 2 * (1 + math.cos(math.pi * step / self.end))

    def updates(self, step: int) -> bool:
        """Return whether the masks move in this step, instead of the weights."""
        return step % self.every == 0 and step <= self.end

    def after_backward(self, step: int) -> bool:
        """Move the masks if it is time; the gradients of this batch serve nothing else then."""
        if not self.updates(step):
            return True
        for name, weight in self.weights.items():
            assert weight.grad is not None, f"'{name}' has no gradient"
            mask = self.masks[name]
            moved = int(self.fraction(step) * int(mask.sum()))
            self.replace(name, regrow(weight, weight.grad, mask, moved))
        return False

    def step_macs(self, step: int) -> float:
        """Return what a step costs; an update needs the gradient of all weights."""
        if self.updates(step):
            return 2 * self.sparse_forward + self.dense_forward
        return 3 * self.sparse_forward


@SPARSE.register("rigl")
def rigl(context: Context) -> Outcome:
    """RigL with ERK densities that meet the target.

    Train once, sparse from the first step to the last.
    """
    options: RiglOptions = options_of(context, RiglOptions)
    model, split = context.network()
    shapes = {name: weight.shape for name, weight in maskable(model, depthwise=False).items()}
    priced = prices(model, context.example_inputs, context.target.kind, shapes)
    kept = solve_density(erdos_renyi_kernel, shapes, priced, priced.goal(context.target))
    macs = prices(model, context.example_inputs, "macs", shapes)
    controller = RiglController(random_masks(shapes, kept, context.seed), options, macs)
    rows = train(context, model, controller)
    return outcome(context, model, split, controller, rows, start=kept)
