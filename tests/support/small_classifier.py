"""A classifier of three classes, its data, and how the weights of two of them are compared."""

from __future__ import annotations

import torch
from torch import nn

from ifap.data import Split


def network(norm=False):
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def split(role, samples):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    inputs = torch.randn(samples, 1, 4, 4, generator=generator)
    inputs[:, 0, 0, :3] += 3 * nn.functional.one_hot(targets, 3)
    return Split(role, inputs, targets)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def furthest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)
