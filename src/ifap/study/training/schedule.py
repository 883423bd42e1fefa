"""The learning rate over a training, and its optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn

from ifap.study.config.recipes import TrainingOptions

BETA2 = 0.999
"""Decay of the mean squared gradient of AdamW, torch's own default."""


def learning_rate(step: int, steps_per_epoch: int, recipe: TrainingOptions) -> float:
    """Return the learning rate of one step, counted from 0: a linear rise to the peak, then the recipe's schedule.

    It falls along half a cosine towards zero, or by the factor gamma at every milestone.
    """
    steps, warmup = recipe.epochs * steps_per_epoch, recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(step >= share * steps for share in recipe.milestones)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_optimizer(model: nn.Module, recipe: TrainingOptions) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with Nesterov momentum; biases and norm parameters are not decayed unless asked for."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = recipe.weight_decay
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": decay if recipe.decay_norms else 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, BETA2))
