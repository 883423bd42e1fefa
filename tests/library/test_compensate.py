"""What stays can stand in for what goes, as far as ridge regression allows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.axes.cut import cut_units
from ifap.compensate import biases_to_come, compensate
from ifap.data import Split
from ifap.errors import ScoreError, SplitError
from ifap.scores.moments import POSITIONS, halves, input_means
from ifap.view import trace

MADE = {
    "linear": lambda i, o, bias: nn.Linear(i, o, bias=bias),
    "convolution": lambda i, o, bias: nn.Conv2d(i, o, 3, bias=bias),
    "transposed": lambda i, o, bias: nn.ConvTranspose2d(i, o, 2, stride=2, bias=bias),
}


class Repeats(nn.Module):
    """Its last hidden units are sums of the first ones: nothing is lost without them."""

    def __init__(self, kind, *, bias):
        super().__init__()
        self.first = nn.Linear(4, 6) if kind == "linear" else nn.Conv2d(4, 6, 1)
        self.second = MADE[kind](6, 3, bias)
        with torch.no_grad():
            self.first.weight[3:] = self.first.weight[:3] * 2 + self.first.weight[[1, 2, 0]]
            self.first.bias[3:] = self.first.bias[:3] * 2 + self.first.bias[[1, 2, 0]]
            if kind != "transposed":  # whose outputs see different shares of what is constant
                self.first.bias[3:] += 1.0  # what only a bias can stand for

    def forward(self, x):
        return self.second(self.first(x))


def last_units_first(model, batches, *, normalize, site, seed):
    width = model.first.weight.shape[0]
    return {"first": torch.arange(width, 0, -1).float(), "second": torch.ones(3)}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("bias", [True, False])
def test_units_that_follow_from_others_can_go_without_a_trace(kind, bias, tmp_path):
    torch.manual_seed(0)
    network = Repeats(kind, bias=bias)
    x = torch.randn(64, 4) if kind == "linear" else torch.randn(64, 4, 5, 5)
    wanted, state = network(x), copy.deepcopy(network.state_dict())
    given = {"target": ifap.Target(macs=0.4), "steps": 1, "method": last_units_first}
    plain = ifap.prune(network, x[:1], [x], **given)
    kept = ifap.prune(network, x[:1], [x], compensate=True, **given)
    assert plain.plan.kept == kept.plan.kept
    assert plain.after.macs == kept.after.macs
    assert (kept.model(x) - wanted).abs().max() < 4e-2 * wanted.abs().max()
    assert (plain.model(x) - wanted).abs().max() > 0.1 * wanted.abs().max()
    assert kept.receipts[-1].compensated["second"].startswith("ridge 0.001, held-out error")
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert kept.plan.biases == ([] if bias or kind == "transposed" else ["second"])
    ifap.save(kept, tmp_path)
    loaded = ifap.load(tmp_path, lambda: Repeats(kind, bias=bias))
    assert torch.equal(loaded(x), kept.model(x))


def test_the_weights_are_those_of_the_normal_equations(monkeypatch):
    monkeypatch.setattr("ifap.compensate.RIDGES", (1e-6,))
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False)), torch.randn(256, 5)
    graph = trace(network, x[:1])
    hidden = network[1](network[0](x)).detach().double()
    left = [0, 2, 3, 5]
    rows = torch.cat([hidden[:, left], torch.ones(256, 1)], dim=1)
    wanted = torch.linalg.lstsq(rows, hidden @ network[2].weight.detach().double().t()).solution.t()
    compensate(network, graph, np.array([1, 4]), [x])
    assert torch.allclose(network[2].weight.detach()[:, left].double(), wanted[:, :-1], atol=2e-3)
    assert torch.allclose(network[2].bias.detach().double(), wanted[:, -1], atol=2e-3)


def grouped_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 12, 1), nn.Conv2d(12, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 9, 2))
    with torch.no_grad():  # in both groups the last two channels follow from the first four
        for first in (0, 6):
            network[0].weight[first + 4 : first + 6] = network[0].weight[first : first + 2] * 2
    return network


def test_each_group_of_channels_is_refitted_by_itself():
    network, x = grouped_network(), torch.randn(32, 4, 5, 5)
    wanted = network(x)
    graph = trace(network, x[:1], units="inner")
    units = graph.unit_of[graph.slot("1", "in")]
    removed = np.unique(units[[4, 5, 10, 11]])
    assert len(removed) == 2, "the same channels of both groups are one unit"
    done = compensate(network, graph, removed, [x])
    assert done.said["1"].startswith("ridge")
    cut_units(network, graph, removed)
    assert (network(x) - wanted).abs().max() < 2e-2 * wanted.abs().max()


class Independent(nn.Module):
    def __init__(self, width=40):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(width))

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_too_few_samples_change_nothing_or_only_means(mean):
    """Forty independent inputs of which nothing follows, and twelve samples: least squares would only harm."""
    torch.manual_seed(0)
    network = Independent()
    few, many = torch.randn(12, 40) + mean, torch.randn(4000, 40) + mean
    graph, removed = trace(network, few[:1]), np.arange(10)
    wanted = network(many)
    masked = copy.deepcopy(network)
    done = compensate(network, graph, removed, [few])
    for each in (network, masked):
        cut_units(each, graph, removed)
    lost, plain = ((each(many) - wanted).square().mean() for each in (network, masked))
    assert lost <= 1.3 * plain
    if mean:
        assert lost < 0.5 * plain
    assert done.said["second"].split(",")[0] in ("means", "nothing", "ridge 1")


def test_never_worse_than_nothing_on_what_was_held_out():
    torch.manual_seed(0)
    for seed in range(5):
        network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 5, bias=False))
        x, other = torch.randn(400, 8), torch.randn(2000, 8)
        graph, wanted = trace(network, x[:1]), network(other)
        removed = np.random.default_rng(seed).choice(24, 10, replace=False)
        masked = copy.deepcopy(network)
        compensate(network, graph, removed, [x])
        for each in (network, masked):
            cut_units(each, graph, removed)
        assert (network(other) - wanted).square().mean() < (masked(other) - wanted).square().mean()


def test_what_was_done_can_be_undone():
    network, x = Repeats("convolution", bias=False), torch.randn(16, 4, 5, 5)
    graph, before = trace(network, x[:1]), copy.deepcopy(network.state_dict())
    places = [list(found) for found in graph.structure.places]
    done = compensate(network, graph, np.array([3, 4]), [x])
    assert network.second.bias is not None
    assert graph.structure.biases == ["second"]
    done.undo()
    assert network.second.bias is None
    assert graph.structure.biases == []
    assert graph.structure.places == places
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def without_biases():
    first, second = nn.Linear(5, 30, bias=False), nn.Linear(30, 20, bias=False)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(20, 2))


def test_a_bias_that_was_made_is_cut_with_its_layer():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 2)
    )
    x = torch.randn(64, 5)
    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.6), steps=3, compensate=True)
    assert pruned.plan.biases == ["2"]
    assert pruned.model[2].bias.shape == (pruned.model[2].out_features,)
    assert pruned.proof.holds


def test_a_target_in_parameters_allows_for_the_biases():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(5, 30, bias=False), nn.ReLU(), nn.Linear(30, 20, bias=False), nn.ReLU(), nn.Linear(20, 2)
    )
    x = torch.randn(64, 5)
    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(params=0.5))
    assert pruned.after.params <= 0.5 * pruned.before.params
    assert pruned.after.params == sum(weight.numel() for weight in pruned.model.parameters())


def test_a_run_goes_on_with_the_biases_that_it_made(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(5, 30, bias=False), nn.ReLU(), nn.Linear(30, 20, bias=False), nn.ReLU(), nn.Linear(20, 2)
    )
    x = torch.randn(64, 5)

    class StoppedError(Exception):
        pass

    def stop(model, receipt):
        if receipt.iteration == 2:
            raise StoppedError

    given = {"target": ifap.Target(macs=0.6), "steps": 3, "pace": "macs"}
    whole = ifap.prune(network, x[:1], [x], **given)
    with pytest.raises(StoppedError):
        ifap.prune(network, x[:1], [x], **given, resume=tmp_path, on_step=stop)
    resumed = ifap.prune(network, x[:1], [x], **given, resume=tmp_path)
    assert resumed.plan.biases == whole.plan.biases
    assert torch.equal(resumed.model(x), whole.model(x))


def test_a_rolled_back_iteration_takes_its_biases_back(tmp_path):
    torch.manual_seed(0)
    network, x = without_biases(), torch.randn(64, 5)
    metrics = iter([1.0, 0.0])
    pruned = ifap.prune(
        network, x[:1], [x], target=ifap.Target(macs=0.5), validate=lambda _: next(metrics), max_drop=0.5
    )
    assert not pruned.receipts[-1].accepted
    assert pruned.plan.biases == []
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, without_biases)(x), pruned.model(x))


def test_the_default_is_flow_once_with_compensation():
    torch.manual_seed(0)
    network, x = without_biases(), torch.randn(64, 5)
    usual = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.5))
    named = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.5), method="flow", steps=1, compensate=True)
    assert len(usual.receipts) == 2
    assert usual.receipts[-1].compensated
    assert torch.equal(usual.model(x), named.model(x))
    papers = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.5), method="ifap")
    assert len(papers.receipts) > 2
    assert not papers.receipts[-1].compensated


@pytest.mark.parametrize("kind", MADE)
def test_calibration_data_are_run_twice_forward_and_once_backward(kind, monkeypatch):
    """What the score has measured, compensation does not measure again."""
    torch.manual_seed(0)
    network, x = Repeats(kind, bias=False), torch.randn(64, 4) if kind == "linear" else torch.randn(64, 4, 6, 6)
    forwards, backwards = [], []
    forward, backward = Repeats.forward, torch.autograd.backward
    monkeypatch.setattr(Repeats, "forward", lambda self, given: forwards.append(len(given)) or forward(self, given))
    monkeypatch.setattr(torch.autograd, "backward", lambda *given: backwards.append(1) or backward(*given))
    pruned = ifap.prune(network, x[:1], x.split(16), target=ifap.Target(macs=0.4))
    assert pruned.receipts[-1].compensated
    assert (forwards.count(16), len(backwards)) == (2 * 4, 4)


def test_types_stay_and_moments_are_single():
    torch.manual_seed(0)
    network, x = Repeats("linear", bias=False).bfloat16(), torch.randn(256, 4).bfloat16()
    wanted = network(x)
    pruned = ifap.prune(
        network, x[:1], [x], target=ifap.Target(macs=0.4), method=last_units_first, steps=1, compensate=True
    )
    assert {value.dtype for value in pruned.model.state_dict().values()} == {torch.bfloat16}
    assert (pruned.model(x) - wanted).abs().max() < 0.1 * wanted.abs().max()
    ((_, found),) = halves(network, [x], {"second": network.second})
    assert found[0].covariance.dtype == torch.float32


def test_layers_that_share_a_weight_are_not_changed():
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    network[4].weight = network[2].weight
    x = torch.randn(16, 8)
    graph = trace(network, x[:1])
    removed = np.unique(graph.unit_of[graph.slot("0", "out")])[:2]
    assert "2" not in compensate(network, graph, removed, [x]).said


def attention_network():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    network = nn.ModuleDict({"attention": attention, "head": nn.Linear(16, 3)})
    network.forward = lambda x: network["head"](x + attention(x, x, x, need_weights=False)[0])
    return network


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
    compensate(kept, graph, removed, [x])
    for each in (plain, kept):
        cut_units(each, graph, removed)
    assert (kept(x) - wanted).abs().max() < 1e-2 * wanted.abs().max()
    assert (plain(x) - wanted).abs().max() > 0.01 * wanted.abs().max()


# --- moments --------------------------------------------------------------------------------------


def test_moments_do_not_depend_on_the_batches_and_join():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(8, 3, 6, 6) + 3
    found = []
    for data in ([x], [x[:4], x[4:]]):
        ((_, (first, second)),) = halves(network, data, {"2": network[2]})
        found.append(first.joined(second))
    rows = network[1](network[0](x)).detach().movedim(1, -1).reshape(-1, 4).double()
    for moments in found:
        assert moments.number == len(rows)
        assert torch.allclose(moments.mean.double(), rows.mean(0), atol=1e-5)
        assert torch.allclose(moments.covariance.double(), rows.t().cov(correction=0), atol=1e-4)
    assert torch.allclose(input_means(network, [x], {"2": network[2]})["2"], found[0].mean, atol=1e-5)


def test_batches_go_to_the_halves_in_turn_and_few_are_divided():
    network, x = nn.Sequential(nn.Identity(), nn.Linear(1, 2)), torch.arange(10.0).unsqueeze(1)
    batches = x[:3], x[3:4], x[4:8], x[8:]
    wanted_of = (batches, ([0, 1, 2, 4, 5, 6, 7], [3, 8, 9])), ([x[:4], x[4:]], ([0, 1, 4, 5, 6], [2, 3, 7, 8, 9]))
    for data, wanted in wanted_of:
        ((_, found),) = halves(network, data, {"1": network[1]})
        assert [half.number for half in found] == [len(rows) for rows in wanted]
        assert [float(half.mean) for half in found] == pytest.approx([np.mean(rows) for rows in wanted])


def test_so_many_positions_do(monkeypatch):
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 40, 40)
    ((_, found),) = halves(network, [x, x], {"1": network[1]})
    assert sum(half.number for half in found) == 4 * POSITIONS


def test_layers_are_measured_in_parts_where_memory_is_short(monkeypatch):
    torch.manual_seed(0)
    network, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), torch.randn(16, 8)
    layers = {name: network[int(name)] for name in ("1", "2", "3")}
    whole = dict(halves(network, [x], layers))
    monkeypatch.setattr("ifap.scores.moments.MOST_BYTES", 1)
    parts = dict(halves(network, [x], layers))
    assert list(whole) == list(parts)
    assert all(torch.equal(whole[name][0].covariance, parts[name][0].covariance) for name in whole)


def test_errors_name_what_is_wrong():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(4, 3)
    with pytest.raises(ScoreError, match="empty"):
        list(halves(network, [], {"1": network[1]}))
    with pytest.raises(ScoreError, match=r"'1'.*not finite"):
        list(halves(network, [x * float("nan")], {"1": network[1]}))
    with pytest.raises(SplitError):
        list(halves(network, Split("test", x, torch.zeros(4)), {"1": network[1]}))


def test_inputs_that_are_constant_are_named():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(16, 3)
    with torch.no_grad():
        network[0].weight.zero_()
    graph = trace(network, x[:1])
    assert compensate(network, graph, np.array([1]), [x]).said["1"] == "means: its inputs are constant"
    with torch.no_grad():
        network[0].bias.zero_()
    assert compensate(network, graph, np.array([1]), [x]).said["1"] == "nothing: its inputs are zero"


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_reads_too_many_channels_gets_the_means_alone(monkeypatch, bias):
    monkeypatch.setattr("ifap.scores.moments.WIDEST", 5)
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias)), torch.randn(64, 4) + 1
    pruned = ifap.prune(network, x[:1], x.split(16), target=ifap.Target(macs=0.3))
    assert pruned.receipts[-1].compensated["2"] == "means only: it reads too many channels (6) for least squares"
    kept = pruned.plan.kept["2"]["in"]
    assert torch.equal(pruned.model[2].weight, network[2].weight[:, kept])
    torch.testing.assert_close(pruned.model(x).mean(dim=0), network(x).mean(dim=0))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.ConvTranspose1d])
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_that_is_made_is_compensated_as_a_plain_one(normed, convolution):
    torch.manual_seed(0)
    plain = nn.Sequential(convolution(3, 12, 1), nn.Tanh(), convolution(12, 4, 3))
    made = nn.Sequential(*(normed(copy.deepcopy(layer)) if list(layer.parameters()) else layer for layer in plain))
    x = torch.randn(64, 3, 5) + 1
    one, other = (ifap.prune(net, x[:1], x.split(16), target=ifap.Target(macs=0.4)) for net in (plain, made))
    assert "ridge" in other.receipts[-1].compensated["2"]
    assert other.receipts[-1].compensated == one.receipts[-1].compensated
    assert other.proof.units_checked > 0
    torch.testing.assert_close(other.model(x), one.model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_spectral_norm_is_refitted_through_its_vectors(normed):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), normed(nn.Linear(12, 4))).eval(), torch.randn(64, 3)
    before = copy.deepcopy(network.state_dict())
    pruned = ifap.prune(network, x[:1], x.split(16), target=ifap.Target(macs=0.4))
    assert "ridge" in pruned.receipts[-1].compensated["2"]
    assert (pruned.model(x) - network(x)).square().mean() < 0.1 * network(x).var()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_weight_that_cannot_be_given_any_value_stays_whole():
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(12, 12))
    network = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), orthogonal, nn.Tanh(), nn.Linear(12, 20), nn.Linear(20, 4))
    x, before = torch.randn(64, 3), copy.deepcopy(network.state_dict())
    pruned = ifap.prune(network, x[:1], x.split(16), target=ifap.Target(macs=0.2))
    kept = pruned.plan.kept["4"]["in"]  # its rows are multiplied by a square matrix on the right
    torch.testing.assert_close(pruned.model[2].weight, network[2].weight[kept])
    assert "2" not in pruned.receipts[-1].compensated
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("can_be_refitted", [True, False])
def test_only_layers_that_can_be_refitted_count_for_biases_to_come(can_be_refitted):
    network = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    if not can_be_refitted:
        nn.utils.parametrizations.orthogonal(network[1])
    assert biases_to_come(network, trace(network, torch.ones(1, 4))) == (3 if can_be_refitted else 0)
