"""The learning rate over a training, and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

BETA2 = 0.999
"""Decay of the mean squared gradient of AdamW, torch's own default."""


def learning_rate(
    step: int, steps: int, warmup: int, peak: float, *, milestones: Sequence[float] | None = None, gamma: float = 0.1
) -> float:
    """Return the learning rate of one step: a linear rise to `peak`, then half a cosine towards zero.

    Parameters
    ----------
    step : int
        Counted from 0.
    steps : int
        Steps of the whole run.
    warmup : int
        Steps of the linear rise.
    peak : float
        Largest learning rate.
    milestones : sequence of float, optional
        Shares of the run; given them, the learning rate falls in steps there and not along a cosine.
    gamma : float, optional
        Factor at every milestone.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if milestones is not None:
        return peak * gamma ** sum(step >= share * steps for share in milestones)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    *,
    momentum: float = 0.9,
    beta1: float = 0.9,
    decay_norms: bool = False,
) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with Nesterov momentum; biases and norm parameters are not decayed unless asked for."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": weight_decay if decay_norms else 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, BETA2))
