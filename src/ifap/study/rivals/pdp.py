"""PDP: soft masks that follow from the weights alone (parameter-free differentiable pruning; Cho et al. 2023).

After a warm-up the share that each layer loses is read off a global ranking, and rises epoch by
epoch. In every forward a weight w is multiplied by m = sigmoid((w^2 - t^2) / tau), with t midway
between the smallest kept and the largest pruned magnitude of its layer. What is validated after an
epoch, and returned, has hard masks. The stem, the classifier and depthwise convolutions stay dense;
which layers the publication leaves out is not known, and the ranking comes early, when weights still
have the size of their initialisation.

The published text leaves tau open (1e-4 and 1e-5 are in use, for weights of other sizes). By
default it is a share of t^2 here, the same softness in every layer. A floor for every layer is an
addition as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ifap.errors import ConfigError
from ifap.study.config.rivals import PdpOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Masks, Outcome, options_of
from ifap.study.rivals.controller import LatentController, all_kept, counted
from ifap.study.rivals.density import Prices, maskable, prices, refuse_empty
from ifap.study.rivals.ranking import affordable, global_top, top
from ifap.study.rivals.run import outcome, train

_BUDGET = "budget"
_TINY = 1e-30


def threshold(weight: Tensor, keep: int) -> Tensor:
    """Return t: midway between the smallest of the `keep` largest magnitudes and the next; no gradient runs through."""
    magnitudes = weight.detach().abs().flatten()
    gone = len(magnitudes) - keep
    return (magnitudes.kthvalue(gone + 1).values + magnitudes.kthvalue(gone).values) / 2


def soft_mask(weight: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    """Return m, the softmax of {t^2 / tau, w^2 / tau} at the second entry: 0.5 where abs(w) is t."""
    return torch.sigmoid((weight**2 - t**2) / tau)


def slope(weight: Tensor, mask: Tensor, tau: Tensor) -> Tensor:
    """Return the derivative of m w by w, t held fixed: m + 2 w^2 m (1 - m) / tau."""
    return mask + 2 * weight**2 * mask * (1 - mask) / tau


class PdpController(LatentController):
    """Let the network compute with soft-masked weights, and the optimiser step the weights themselves.

    `masks` are those of `MaskController`; nothing is masked at first. `priced` is the cost of the target, and `goal`
    the cost to end with. `macs` are the MACs of each weight.
    """

    def __init__(
        self, masks: Masks, options: PdpOptions, priced: Prices, goal: float, macs: Prices | None = None
    ) -> None:
        super().__init__(masks, macs)
        self._options, self._target, self._goal = options, priced, goal
        self.budget: dict[str, int] = {}
        self._slopes: dict[str, Tensor] = {}

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return self.steps // self.steps_per_epoch

    @property
    def warmup(self) -> int:
        """Epochs before pruning begins."""
        return min(round(self._options.warmup_share * self.epochs), self.epochs - 1)

    @property
    def ramp(self) -> int:
        """Epochs in which sparsity rises."""
        return max(1, min(round(self._options.ramp_share * self.epochs), self.epochs - self.warmup))

    def progress(self, epoch: int) -> float:
        """Return the share of the final sparsity that is asked for in an epoch, counted from 0."""
        return max(0.0, min(1.0, (epoch - self.warmup + 1) / self.ramp))

    def keep(self, name: str, epoch: int) -> int:
        """Return how many weights of a layer an epoch keeps."""
        size = self.masks[name].numel()
        return size - round(self.progress(epoch) * (size - self.budget[name])) if self.budget else size

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Put soft-masked weights in place of the weights."""
        self.put_back()
        epoch = step // self.steps_per_epoch
        if epoch < self.warmup:
            return
        if not self.budget:
            self._share_out()
        for name, weight in self.weights.items():
            keep = self.keep(name, epoch)
            if keep == weight.numel():
                continue
            t = threshold(weight, keep)
            tau = self._tau(t)
            mask = soft_mask(weight, t, tau)
            self._slopes[name] = slope(weight, mask, tau)
            self.show(name, mask)

    @torch.no_grad()
    def after_backward(self, step: int) -> bool:
        """Turn gradients of the soft-masked weights into those of the weights, and put these back."""
        for name, factor in self._slopes.items():
            gradient = self.weights[name].grad
            assert gradient is not None, f"'{name}' has no gradient"
            gradient.mul_(factor)
        self.put_back()
        return True

    def put_back(self) -> None:
        """Give the network its weights again."""
        super().put_back()
        self._slopes = {}

    @torch.no_grad()
    def end_epoch(self, step: int) -> None:
        """Mask hard what is validated; the weights themselves come back with the next step."""
        if not self.budget:
            return
        epoch = step // self.steps_per_epoch
        for name, weight in self.weights.items():
            self.masks[name] = top(weight.detach().abs(), self.keep(name, epoch))
            self.show(name, self.masks[name])

    def state(self) -> dict[str, Tensor]:
        """Return the layers' shares as well."""
        return {**super().state(), _BUDGET: torch.tensor(list(self.budget.values()), dtype=torch.int64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        super().restore(tensors)
        kept = tensors[_BUDGET].tolist()
        self.budget = dict(zip(self.masks, kept, strict=True)) if kept else {}

    def _share_out(self) -> None:
        """Read off a global ranking how many weights each layer keeps in the end."""
        magnitudes = {name: weight.detach().abs() for name, weight in self.weights.items()}
        floor = self._options.layer_floor
        keep = affordable(magnitudes, self.masks, self._target, self._goal, floor)
        self.budget = counted(global_top(magnitudes, self.masks, keep, floor))
        refuse_empty(self.budget)

    def _tau(self, t: Tensor) -> Tensor:
        relative = self._options.temperature_of == "threshold"
        return (self._options.temperature * (t**2 if relative else torch.ones_like(t))).clamp_min(_TINY)


@SPARSE.register("pdp")
def pdp(context: Context) -> Outcome:
    """PDP of single weights; first convolution, last linear layer and depthwise convolutions stay dense.

    Train once, with soft masks after the warm-up.
    """
    options: PdpOptions = options_of(context, PdpOptions)
    if context.recipe.ema_decay is not None:
        raise ConfigError("method 'pdp' has soft masks, which cannot be averaged: leave out ema_decay")
    model, split = context.network()
    weights = maskable(model, first=False, last=False, depthwise=False)
    priced = prices(model, context.example_inputs, context.target.kind, weights)
    macs = prices(model, context.example_inputs, "macs", weights)
    masks = all_kept(weights)
    controller = PdpController(masks, options, priced, priced.goal(context.target), macs)
    kept = counted(masks)
    rows = train(context, model, controller)
    return outcome(context, model, split, controller, rows, start=kept)
