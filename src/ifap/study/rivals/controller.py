"""Masks around the steps of `ifap.study.training.fit.fit`: masked weights are exactly zero after every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ifap.errors import TrainingError
from ifap.study.rivals.base import Event, Masks
from ifap.study.rivals.density import Prices
from ifap.study.training.history import EpochRow

_MASK, _LATENT = "mask.", "latent."


class MaskController:
    """Keep masked weights and their momentum at zero; the masks stay as they are.

    Masking is in place, so gradients are those of all weights: a method that lets weights grow
    reads them in `after_backward`.

    Parameters
    ----------
    masks : dict of str to Tensor
        Name of a weight to its mask; True is kept.
    priced : Prices, optional
        MACs of each weight, for what the training costs in theory.
    """

    def __init__(self, masks: Mapping[str, Tensor], priced: Prices | None = None) -> None:
        self.masks: Masks = dict(masks)
        self.weights: dict[str, Tensor] = {}
        self.steps = self.steps_per_epoch = 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._priced = priced
        self._forward = 0.0
        self._total = torch.zeros(2, dtype=torch.float64)
        self._kept: list[list[int]] = []

    # what `fit` calls

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Find the weights and mask them."""
        parameters = dict(model.named_parameters())
        for name, mask in self.masks.items():
            weight = parameters.get(name)
            if weight is None or weight.shape != mask.shape:
                raise TrainingError(f"the network has no weight '{name}' of shape {tuple(mask.shape)} to mask")
            self.weights[name] = weight
            self.masks[name] = mask.to(weight.device)
        self._optimizer, self.steps, self.steps_per_epoch = optimizer, steps, steps_per_epoch
        self.apply()
        self._count()

    def before_step(self, step: int) -> None:
        """Do nothing."""

    def after_backward(self, step: int) -> bool:
        """Let the weights take the step."""
        return True

    def after_step(self, step: int) -> None:
        """Mask, and note at the end of an epoch what is left."""
        self._total += torch.tensor([self.step_macs(step), 3 * self.dense_forward], dtype=torch.float64)
        self.apply()
        self.change(step)
        if (step + 1) % self.steps_per_epoch == 0:
            self.end_epoch(step)
            self._kept.append([int(mask.sum()) for mask in self.masks.values()])
            self._check((step + 1) // self.steps_per_epoch)

    def finish(self) -> None:
        """Mask the network that is returned."""
        self.apply()

    def state(self) -> dict[str, Tensor]:
        """Return the masks and what was noted."""
        noted = {"kept": torch.tensor(self._kept, dtype=torch.int64), "total": self._total}
        return {**noted, **{_MASK + name: mask for name, mask in self.masks.items()}}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self._kept = tensors["kept"].tolist()
        self._total = tensors["total"].clone()
        for name, mask in self.masks.items():
            self.masks[name] = tensors[_MASK + name].to(mask.device)
        self._count()

    # what a method changes

    def change(self, step: int) -> None:
        """Change the masks after a step of the weights."""

    def end_epoch(self, step: int) -> None:
        """Act on the network that is validated after an epoch."""

    def step_macs(self, step: int) -> float:
        """Return the theoretical MACs of one sample in this step: forward, and twice that backward."""
        return 3 * self._forward

    # helpers

    @property
    def dense_forward(self) -> int:
        """MACs of one forward of the unmasked network."""
        return self._priced.whole if self._priced is not None else 0

    @property
    def sparse_forward(self) -> float:
        """Theoretical MACs of one forward with the present masks."""
        return self._forward

    @torch.no_grad()
    def apply(self) -> None:
        """Set masked weights and their entries in the optimiser's state to zero."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])
            for slot in self._slots(weight):
                slot.mul_(self.masks[name])

    def set_masks(self, masks: Masks) -> None:
        """Exchange all masks, and mask."""
        self.masks = masks
        self.apply()
        self._count()

    @torch.no_grad()
    def replace(self, name: str, mask: Tensor) -> None:
        """Exchange one mask; weights that were masked so far start at zero, without momentum."""
        grown = mask & ~self.masks[name]
        for tensor in (self.weights[name], *self._slots(self.weights[name])):
            tensor.masked_fill_(grown, 0)
        self.masks[name] = mask

    def events(self, rows: Iterable[EpochRow]) -> list[Event]:
        """Join what was noted after every epoch with the rows of `ifap.study.training.fit.fit`."""
        noted = zip(rows, self._kept, strict=True)
        return [self.event(row.epoch, dict(zip(self.masks, kept, strict=True)), row) for row, kept in noted]

    def event(self, number: int, kept: Mapping[str, int], row: EpochRow | None = None) -> Event:
        """Describe one state of the masks."""
        total = sum(kept.values())
        size = sum(mask.numel() for mask in self.masks.values())
        macs = round(self._priced.of(kept)) if self._priced is not None else 0
        return Event(number, total, total / size, macs, row)

    def training_macs(self, samples: int) -> tuple[int, int]:
        """Return theoretical and dense MACs of all steps, in epochs of so many samples."""
        theory, dense = (self._total * samples / max(1, self.steps_per_epoch)).tolist()
        return round(theory), round(dense)

    def _slots(self, weight: Tensor) -> list[Tensor]:
        slots = self._optimizer.state.get(weight, {}) if self._optimizer is not None else {}
        return [value for value in slots.values() if isinstance(value, Tensor) and value.shape == weight.shape]

    def _count(self) -> None:
        if self._priced is not None:
            self._forward = self._priced.of({name: int(mask.sum()) for name, mask in self.masks.items()})

    def _check(self, epoch: int) -> None:
        for name, weight in self.weights.items():
            wrong = int((weight.detach() != 0).logical_and(~self.masks[name]).sum())
            if wrong:
                raise TrainingError(f"{wrong} masked weights of '{name}' are not zero after epoch {epoch}")


class LatentController(MaskController):
    """Let the network compute with other weights than the optimiser steps.

    A method puts weights in for a forward or for validation by `show`; the weights themselves come
    back by `put_back`, at the latest before the next step. What is validated after an epoch, and
    returned, is masked hard.
    """

    def __init__(self, masks: Mapping[str, Tensor], priced: Prices | None = None) -> None:
        super().__init__(masks, priced)
        self.latent: dict[str, Tensor] = {}

    @torch.no_grad()
    def show(self, name: str, factor: Tensor) -> None:
        """Let the network compute with a weight times `factor`."""
        self.latent[name] = self.weights[name].detach().clone()
        self.weights[name].mul_(factor)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the network its weights again."""
        for name, latent in self.latent.items():
            self.weights[name].copy_(latent)
        self.latent = {}

    def change(self, step: int) -> None:
        """Put the weights back where a step was skipped."""
        self.put_back()

    def apply(self) -> None:
        """Do nothing: the optimiser steps all weights."""

    def finish(self) -> None:
        """Mask the network that is returned."""
        super().apply()

    def state(self) -> dict[str, Tensor]:
        """Return the weights themselves as well."""
        return {**super().state(), **{_LATENT + name: weight for name, weight in self.latent.items()}}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        super().restore(tensors)
        self.latent = {
            name: tensors[_LATENT + name].to(weight.device)
            for name, weight in self.weights.items()
            if _LATENT + name in tensors
        }

    def step_macs(self, step: int) -> float:
        """Return what a step costs: that of the unmasked network."""
        return 3 * self.dense_forward


def counted(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many weights each mask keeps."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def all_kept(weights: Mapping[str, Tensor]) -> Masks:
    """Return masks that mask nothing."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
