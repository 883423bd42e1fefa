"""Matrices outside of layers read units as layers do: they are scored, and stand in for what goes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ifap.axes.cut import cut_units
from ifap.compensate import compensate
from ifap.scores.fisher import unit_fisher
from ifap.scores.matrices import matrices
from ifap.view import trace

WIDTH, HEADS = 8, 2


class Attention(nn.Module):
    """What torch's attention computes, from linear layers."""

    def __init__(self, other: nn.MultiheadAttention):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = copy.deepcopy(other.out_proj)
        with torch.no_grad():
            for part, weight, bias in zip(
                self.parts, other.in_proj_weight.chunk(3), other.in_proj_bias.chunk(3), strict=True
            ):
                part.weight.copy_(weight)
                part.bias.copy_(bias)

    def forward(self, x):
        q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.parts)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Torchs(nn.Module):
    """Torch's attention of a tensor to itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(5, WIDTH), attention, nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.attention(x)).mean(dim=1)


def pair():
    """Return two networks that compute the same, one with torch's attention, one with linear layers."""
    torch.manual_seed(0)
    torchs = Block(Torchs())
    linear = Block(Attention(torchs.attention.inner))
    linear.embed, linear.head = copy.deepcopy(torchs.embed), copy.deepcopy(torchs.head)
    return torchs.eval(), linear.eval()


def width_units(network, x):
    graph = trace(network, x[:1])
    return graph, graph.unit_of[graph.slot("embed", "out")]


@pytest.mark.parametrize("centred", [True, False])
def test_torchs_attention_is_scored_as_linear_layers_are(centred):
    scores, x = [], torch.randn(32, 6, 5)
    for network in pair():
        graph, units = width_units(network, x)
        scores.append(unit_fisher(network, graph, x.split(8), centred=centred)[units])
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_torchs_attention_is_compensated_as_linear_layers_are():
    x, outputs = torch.randn(64, 6, 5), []
    for network in pair():
        graph, units = width_units(network, x)
        said = compensate(network, graph, units[:2], [x]).said
        assert sum(text.startswith("ridge") for text in said.values()) == 4  # queries, keys, values and the head
        cut_units(network, graph, units[:2])
        outputs.append(network(x))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def test_parts_of_a_matrix_are_named_by_their_rows():
    network, x = pair()[0], torch.randn(4, 6, 5)
    found = matrices(network, width_units(network, x)[0], [x]).by_name
    name = "attention.inner.in_proj_weight"
    assert list(found) == [f"{name}[0:8]", f"{name}[8:16]", f"{name}[16:24]"]
    assert all(matrix.weight.shape == (8, 8) and matrix.bias.shape == (8,) for matrix in found.values())
    assert torch.equal(found[f"{name}[8:16]"].weight, network.attention.inner.in_proj_weight[8:16])


class Reads(nn.Module):
    """Reads five hidden units by a matrix, in a product of some kind."""

    def __init__(self, product, shape=(6, 4)):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.product = nn.Linear(5, 6), product
        self.second, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(4))
        with torch.no_grad():
            self.first.weight[3:] = self.first.weight[:3] * 2
            self.first.bias[3:] = self.first.bias[:3] * 2 + 1

    def forward(self, x):
        return self.product(self.first(x), self.second, self.bias)


PRODUCTS = {
    "matmul": (lambda x, w, _b: x @ w, (6, 4)),
    "a product and a sum": (lambda x, w, b: torch.addmm(b, x, w), (6, 4)),
    "linear": (lambda x, w, b: functional.linear(x, w, b), (4, 6)),
    "turned": (lambda x, w, b: torch.addmm(b, x, w.t()), (4, 6)),
    "columns": (lambda x, w, b: torch.cat([x @ w[:, :2], x @ w[:, 2:]], 1) + b, (6, 4)),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_what_stays_stands_in_for_what_goes(kind):
    network, x = Reads(*PRODUCTS[kind]), torch.randn(64, 5)
    wanted, graph = network(x), trace(network, x[:1])
    removed = graph.unit_of[graph.slot("first", "out")][3:]
    plain = copy.deepcopy(network)
    compensate(network, graph, removed, [x])
    for each in (plain, network):
        cut_units(each, copy.deepcopy(graph), removed)
    if kind == "linear" or "sum" in kind or kind == "turned":  # whose bias is known, for the mean
        assert (network(x) - wanted).abs().max() < 2e-2 * wanted.abs().max()
    assert (network(x) - wanted).square().sum() < 0.5 * (plain(x) - wanted).square().sum()


def test_a_matrix_that_something_else_uses_is_not_changed():
    def also_a_table(x, w, _b):
        return x @ w + w.sum(dim=0)

    network, x = Reads(also_a_table), torch.randn(16, 5)
    graph = trace(network, x[:1])
    assert not matrices(network, graph, [x]).by_name["second"].can_change
    removed = graph.unit_of[graph.slot("first", "out")][3:]
    assert compensate(network, graph, removed, [x]).said == {}


def test_readers_of_other_kinds_are_added_to_those_that_are_looked_at():
    class Split(nn.Module):
        """Two readers of the same units: one is looked at, one is an einsum."""

        def __init__(self, product):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.seen = nn.Linear(5, 6), nn.Linear(6, 4)
            self.other, self.product, self.head = nn.Parameter(torch.randn(6, 4)), product, nn.Linear(4, 3)

        def forward(self, x):
            hidden = self.first(x)
            return self.head(self.seen(hidden) + self.product(hidden, self.other))

    x = torch.randn(64, 5)
    scores = [
        unit_fisher(network, trace(network, x[:1]), x.split(1), centred=False)
        for network in (Split(torch.matmul), Split(lambda x, w: torch.einsum("bi,ij->bj", x, w)))
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)
