"""What stays can stand in for what goes, as far as least squares allow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap import compensate as readers
from ifap.axes.cut import cut_units
from ifap.data import Split
from ifap.errors import ScoreError, SplitError
from ifap.methods import METHODS
from ifap.view import trace


class Twice(nn.Module):
    """Its last hidden units are sums of the first ones: nothing is lost without them."""

    def __init__(self, *, conv, bias):
        super().__init__()
        make = (lambda i, o: nn.Conv2d(i, o, 1, bias=bias)) if conv else (lambda i, o: nn.Linear(i, o, bias=bias))
        self.first, self.second = make(4, 6), make(6, 3)
        with torch.no_grad():
            self.first.weight[3:] = self.first.weight[:3] * 2 + self.first.weight[[1, 2, 0]]
            if bias:
                self.first.bias[3:] = 1.0  # what a constant input can stand for

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_units_that_follow_from_others_can_go_without_a_trace(conv, bias):
    torch.manual_seed(0)
    network = Twice(conv=conv, bias=bias)
    x = torch.randn(64, 4, 5, 5) if conv else torch.randn(64, 4)
    wanted = network(x)
    plain = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.4), steps=1, method=last_units_first)
    kept = ifap.prune(
        network, x[:1], [x], target=ifap.Target(macs=0.4), steps=1, method=last_units_first, compensate=True
    )
    assert plain.after == kept.after
    assert plain.plan.kept == kept.plan.kept
    assert (kept.model(x) - wanted).abs().max() < 1e-2 * wanted.abs().max()
    assert (plain.model(x) - wanted).abs().max() > 0.1 * wanted.abs().max()
    assert torch.equal(network(x), wanted), "the given network was changed"


def last_units_first(model, batches, *, normalize, site, seed):
    width = model.first.weight.shape[0]
    return {"first": torch.arange(width, 0, -1).float(), "second": torch.ones(3)}


def test_the_weights_are_those_of_the_normal_equations():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False)), torch.randn(256, 5)
    graph = trace(network, x[:1])
    removed = np.array([1, 4])
    hidden = network[1](network[0](x)).detach().double()
    left = [0, 2, 3, 5]
    wanted = torch.linalg.lstsq(hidden[:, left], hidden @ network[2].weight.detach().double().t()).solution.t()
    lost = graph.unit_of[graph.slot("2", "in")]
    readers.compensate(network, graph, np.array([lost[unit] for unit in removed]), [x])
    assert torch.allclose(network[2].weight.detach()[:, left].double(), wanted, atol=2e-3)


def test_layers_in_groups_shared_and_very_wide_ones_are_not_changed(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 1), nn.Conv2d(8, 2, 1), nn.Flatten(),
        nn.Linear(8, 40), nn.Linear(40, 8), nn.Linear(8, 8), nn.Linear(8, 8),
    )  # fmt: skip
    network[8].weight = network[7].weight
    monkeypatch.setattr(readers, "WIDEST", 31)
    names = readers.readers(network, trace(network, torch.randn(1, 4, 4, 4)))
    assert set(names) == {"0", "1", "2", "3", "5", "6", "7"}  # the last has no weight of its own
    assert (names["0"] == -1).all()  # the inputs of the network stay
    assert readers._compensable(network, names) == {"0", "3", "5"}


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
            assert total == pytest.approx(float(readers.reading_norms(layer)[channel]), rel=1e-5)


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


def test_heads_that_stay_stand_in_for_one_like_them():
    network, x = attention_network(), torch.randn(64, 6, 16)
    weight = network["attention"].in_proj_weight
    with torch.no_grad():
        for part in weight.split(16):
            part[4:8] = part[:4]  # the second head is the first once more
    wanted = network(x)
    graph = trace(network, x[:1])
    removed = graph.heads[0][1:2]
    plain, kept = copy.deepcopy(network), copy.deepcopy(network)
    for each in (plain, kept):
        each.forward = lambda x, m=each: m["head"](x + m["attention"](x, x, x, need_weights=False)[0])
    readers.compensate(kept, graph, removed, [x])
    for each in (plain, kept):
        cut_units(each, graph, removed)
    assert (kept(x) - wanted).abs().max() < 1e-2 * wanted.abs().max()
    assert (plain(x) - wanted).abs().max() > 0.01 * wanted.abs().max()


def test_second_moments_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(8, 3, 6, 6)
    whole, parts = (readers.second_moments(network, data, ["2"])["2"] for data in ([x], [x[:3], x[3:]]))
    assert whole.shape == (5, 5)  # four channels and the constant
    assert torch.allclose(whole, parts, rtol=1e-5)
    assert whole[4, 4] == pytest.approx(1.0)
    assert torch.allclose(readers.mean_squares(network, [x], ["2"])["2"], whole.diagonal()[:4], rtol=1e-5)


def test_errors_name_what_is_wrong():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(4, 3)
    with pytest.raises(ScoreError, match="empty"):
        readers.second_moments(network, [], ["1"])
    with pytest.raises(ScoreError, match=r"'1'.*not finite"):
        readers.second_moments(network, [x * float("nan")], ["1"])
    with pytest.raises(SplitError):
        readers.second_moments(network, Split("test", x, torch.zeros(4)), ["1"])


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
