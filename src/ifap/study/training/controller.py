"""What a method may do around the steps of a training."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Controller(Protocol):
    """What a sparse-training method does around the steps of `fit`.

    Steps are optimiser steps, counted from 0 over the whole run. Random draws must come from a
    generator of the controller's own, whose state it returns from `state`: the global ones depend
    on the network's dropout, and differ between processes.
    """

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Prepare, once before the first epoch of a session; a resumed session then calls `restore`.

        The network still has its first weights here, also in a session that goes on with others.
        """
        ...

    def before_step(self, step: int) -> None:
        """Act before the forward of a step."""
        ...

    def after_backward(self, step: int) -> bool:
        """Act on the gradients, averaged and unscaled; False leaves the weights alone in this step.

        Not called where half precision overflowed: such a step is skipped anyway.
        """
        ...

    def after_step(self, step: int) -> None:
        """Act at the end of every step, skipped ones included."""
        ...

    def finish(self) -> None:
        """Act on the network that is returned, after the last step and before it is validated."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs to go on after an epoch."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned; network and optimiser are already those of that moment."""
        ...
