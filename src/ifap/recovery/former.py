"""Refuse optimizers that still hold parameters which a cut has replaced: the network would not learn from them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ifap.errors import TrainingError

_MESSAGE = (
    "{} steps on parameters that are not in the pruned network: pruning makes new ones, so make a new optimizer and a "
    "new scheduler for them in every call of recover"
)


class FormerParameters:
    """Parameters that were replaced by a cut and are still referred to."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[nn.Parameter]] = {}

    def add(self, model: nn.Module) -> None:
        """Register the parameters of a network before a cut, or of the network of the caller."""
        self._known |= {id(each): weakref.ref(each) for each in model.parameters()}

    @contextmanager
    def refused(self, model: nn.Module) -> Iterator[None]:
        """Stop an optimizer that would change parameters of a former network in place of those of `model`.

        Raises a TrainingError at the first step of such an optimizer inside the block.
        """
        present = {id(each) for each in model.parameters()}

        def check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for parameter in (each for group in optimizer.param_groups for each in group["params"]):
                known = self._known.get(id(parameter))
                if known is not None and known() is parameter and id(parameter) not in present:
                    raise TrainingError(_MESSAGE.format(type(optimizer).__name__))

        handle = register_optimizer_step_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()
