"""What stays can stand in for what goes, as far as least squares allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap import readers
from ifap.errors import ScoreError, SplitError
from ifap.graph import trace
from ifap.splits import Split


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


def test_shared_and_grouped_weights_are_not_touched():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)
    )
    graph = trace(network, torch.randn(1, 4, 6, 6))
    found = readers.readers(network, graph)
    assert set(found) == {"0", "3"}
    assert (found["0"] == -1).all()  # the inputs of the network stay


def test_second_moments_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(8, 3, 6, 6)
    whole, parts = (readers.second_moments(network, data, ["2"])["2"] for data in ([x], [x[:3], x[3:]]))
    assert whole.shape == (5, 5)  # four channels and the constant
    assert torch.allclose(whole, parts, rtol=1e-5)
    assert whole[4, 4] == pytest.approx(1.0)


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
