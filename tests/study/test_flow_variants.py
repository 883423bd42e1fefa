"""Variants of the paper's flow that the study recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.methods import METHODS
from ifap.scores.energies import reading_norms
from ifap.study.rivals import SPARSE
from ifap.view import trace

assert SPARSE, "which makes the variants known"


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv1d(6, 4, 2, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2)],
)
def test_norms_are_those_of_the_weights_that_read_an_input(layer):
    """What one channel of ones adds to the outputs, squared, is the norm where nothing is added up on the way."""
    with torch.no_grad():
        layer.bias.zero_()
        for channel in range(6):
            sizes = {nn.Linear: (1, 6), nn.Conv1d: (1, 6, 2)}.get(type(layer), (1, 6, 3, 3))
            total = 0.0
            for position in np.ndindex(*sizes[2:]):
                x = torch.zeros(sizes)
                x[(0, channel, *position)] = 1.0
                total += float(layer(x).square().sum())
                if isinstance(layer, nn.ConvTranspose2d):
                    break  # each position spreads all weights
            assert total == pytest.approx(float(reading_norms(layer)[channel]), rel=1e-5)


def test_a_unit_that_a_layer_in_groups_reads_is_scored():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        network[1].weight[:4] = 0.0  # nothing comes from the first group
        network[1].bias[:4] = 0.0
    x = torch.randn(4, 4, 6, 6)
    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.3), steps=1, method="ifap_readers")
    assert pruned.plan.kept["0"]["out"] == [4, 5, 6, 7]
    assert torch.allclose(pruned.model(x), network(x), atol=1e-5)


def attention_network():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    network = nn.ModuleDict({"attention": attention, "head": nn.Linear(16, 3)})
    network.forward = lambda x: network["head"](x + attention(x, x, x, need_weights=False)[0])
    return network


def test_what_attention_hands_to_its_last_layer_is_read():
    network, x = attention_network(), torch.randn(4, 6, 16)
    with torch.no_grad():
        network["attention"].out_proj.weight[:, 4:8] = 0.0  # nobody reads the second head
    graph = trace(network, x)
    scores = METHODS.get("ifap_readers")(network, [x], normalize="none", site="output", seed=0, graph=graph)
    heads = scores["attention.in_proj_weight"][::4][:4]
    assert heads[1] == 0
    assert (heads[[0, 2, 3]] > 0).all()
    assert type(network["attention"]) is nn.MultiheadAttention


def test_flow_into_readers_sees_who_is_read_and_what_it_costs():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(64, 5)
    with torch.no_grad():
        network[2].weight[:, 3] = 0.0
    pruned = ifap.prune(
        network, x[:1], [x], target=ifap.Target(macs=0.1), steps=1, method="ifap_readers", compensate=True
    )
    assert 3 not in pruned.plan.kept["0"]["out"]
    assert torch.allclose(pruned.model(x), network(x), atol=1e-4)
