"""An optimizer of the network before a cut is named as the mistake it is; others are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ifap
from ifap.errors import TrainingError
from ifap.recovery.former import FormerParameters

IMAGES, LABELS = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
MESSAGE = "SGD steps on parameters that are not in the pruned network: pruning makes new ones, so make a new optimizer"


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4))


def prune(network, recover):
    target = ifap.Target(macs=0.5)
    return ifap.prune(network, IMAGES[:1], [IMAGES], target=target, steps=2, recover=recover)


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    optimizer.step()


def test_an_optimizer_of_the_original_network_is_refused():
    network = convnet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = [each.clone() for each in network.parameters()]
    with pytest.raises(TrainingError, match=MESSAGE):
        prune(network, lambda model, teacher, number: step(model, optimizer))
    assert all(map(torch.equal, network.parameters(), before))


def test_an_optimizer_of_the_iteration_before_is_refused():
    kept = []

    def recover(model, teacher, number):
        kept.append(torch.optim.SGD(model.parameters(), lr=0.1))
        step(model, kept[0])

    with pytest.raises(TrainingError, match=MESSAGE):
        prune(convnet(), recover)
    assert len(kept) == 2


def test_new_optimizers_and_those_of_other_networks_may_step():
    other = nn.Linear(3, 3)
    others = torch.optim.SGD(other.parameters(), lr=0.1)

    def recover(model, teacher, number):
        mixed = [*model.parameters(), *other.parameters()]
        step(model, torch.optim.SGD(mixed, lr=0.1))
        other(torch.ones(3)).sum().backward()
        others.step()

    assert len(prune(convnet(), recover).receipts) == 3


def test_nothing_is_watched_outside_of_recovery():
    former, network = FormerParameters(), convnet()
    former.add(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(TrainingError), former.refused(convnet()):
        step(network, optimizer)
    step(network, optimizer)
    with former.refused(network):
        step(network, optimizer)
