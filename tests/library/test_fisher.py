"""The damage that the removal of a unit does to the outputs, by gradients and by brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.axes.units import Graph
from ifap.data import Split
from ifap.errors import ScoreError, SplitError
from ifap.scores.directions import class_axis, direction
from ifap.scores.energies import energy_shares
from ifap.scores.fisher import unit_fisher
from ifap.scores.reading import Reader, readers
from ifap.scores.residuals import Residuals
from ifap.view import trace

KINDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), (5,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(8, 4, 2),
            nn.Flatten(), nn.Linear(4 * 9, 3),
        ),
        (2, 6, 6),
    ),
}  # fmt: skip


def brute_force(network: nn.Module, graph: Graph, x: torch.Tensor) -> np.ndarray:
    """Return what `unit_fisher` estimates, with every class in place of drawn ones and one gradient a sample."""
    found = {}
    modules = dict(network.named_modules())
    for name, (_, units, _) in readers(network, graph).items():
        if not (units >= 0).any():
            continue
        squares = np.zeros(graph.num_units)
        means = None
        for turn in ("mean", "squares"):
            for one in x.split(1) if turn == "squares" else [x]:
                held = []
                hook = modules[name].register_forward_pre_hook(lambda _m, args, held=held: held.append(args[0]))
                logs = network(one).log_softmax(dim=-1)
                hook.remove()
                axis = 1 if held[0].dim() == 4 else -1
                if turn == "mean":
                    rows = held[0].detach().movedim(axis, -1)
                    means = rows.reshape(-1, rows.shape[-1]).mean(0)
                    continue
                for k in range(logs.shape[1]):
                    (gradient,) = torch.autograd.grad(logs[0, k], held[0], retain_graph=True)
                    back, read = (t.detach().movedim(axis, -1).reshape(-1, len(means)) for t in (gradient, held[0]))
                    signal = (back * (read - means)).sum(0).double().numpy()
                    by_unit = np.zeros(graph.num_units)
                    np.add.at(by_unit, units[units >= 0], signal[units >= 0])
                    squares += float(logs[0, k].detach().exp()) * by_unit**2 / (2 * len(x))
        found[name] = squares
    return sum(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_brute_force(kind, monkeypatch):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    network, x = make(), torch.randn(6, *shape)
    graph = trace(network, x[:1])
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)
    monkeypatch.setattr("ifap.scores.fisher.fits_into_memory", lambda *given: False)
    scores = unit_fisher(network, graph, [x.repeat(400, *[1] * len(shape))])
    np.testing.assert_allclose(scores, brute_force(network, graph, x), rtol=0.25, atol=1e-4)


def test_a_unit_that_is_constant_does_no_damage_once_its_mean_is_kept():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(64, 5)
    with torch.no_grad():
        network[0].weight[2] = 0.0
        network[0].bias[2] = 3.0
    graph = trace(network, x[:1])
    assert unit_fisher(network, graph, [x])[2] < 1e-10
    assert unit_fisher(network, graph, [x], centred=False)[2] > 1e-3


def test_what_others_say_of_a_unit_is_no_loss_while_they_stay():
    """Units 1 and 2 say the same, so that one can go; unit 3 says something of its own, with as much of an effect."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), torch.randn(4000, 5)
    with torch.no_grad():
        network[0].weight[2] = network[0].weight[1]
        network[1].weight[:, 2] = network[1].weight[:, 1]
    graph = trace(network, x[:1])
    alone, together = unit_fisher(network, graph, [x], centred=False), unit_fisher(network, graph, [x])
    assert together[[1, 2]].min() < 0.1 * alone[1]
    assert together[[1, 2]].max() > 10 * together[[1, 2]].min()
    assert together[3] > 0.2 * alone[3]


@pytest.mark.parametrize("size", [1, 2])
def test_residuals_are_those_of_regression_on_the_other_half(size):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), torch.randn(400, 6) @ torch.randn(6, 6) + 2
    units = np.arange(6) // size
    residuals = Residuals(network, [x], {"0": Reader(network[0], units, can_change=True)})
    found = residuals.of("0", x.unsqueeze(1), 0).squeeze(1)
    turns = [x[:50], x[200:300], x[50:200], x[300:]]
    by_batch = Residuals(network, turns, {"0": Reader(network[0], units, can_change=True)})
    for number, start in enumerate((0, 200, 50, 300)):
        of_batch = by_batch.of("0", turns[number], number)
        torch.testing.assert_close(of_batch, found[start : start + len(of_batch)], rtol=1e-3, atol=1e-3)
    for own in [np.flatnonzero(units == unit) for unit in np.unique(units)]:
        others = np.setdiff1d(np.arange(6), own)
        fitted, held = x[200:].double(), x[:200].double()
        centred = fitted - fitted.mean(0)
        moments = centred.t() @ centred / 200
        moments = moments * 0.9 + torch.diag(moments.diagonal()) * 0.1
        said = torch.linalg.solve(moments[others][:, others], moments[others][:, own])
        wanted = (held - fitted.mean(0))[:, own] - (held - fitted.mean(0))[:, others] @ said
        torch.testing.assert_close(found[:200][:, own].double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_residuals_grow_as_what_could_stand_in_goes(size):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), torch.randn(400, 6) @ torch.randn(6, 6)
    units = np.array([3, 3, 0, 0, 2, 2]) if size == 2 else np.array([3, 1, 0, 4, -1, 2])
    residuals = Residuals(network, [x], {"0": Reader(network[0], units, can_change=True)})
    scores = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4])
    found = residuals.growth("0", scores)
    first, second = (torch.cov(half.double().t(), correction=0) for half in x.split(200))
    first = first * 0.9 + torch.diag(first.diagonal()) * 0.1

    def left(own, others):
        """Return the variance that others leave in the second half by what they say in the first."""
        said = torch.zeros(len(own), 6, dtype=first.dtype)
        said[:, own] = torch.eye(len(own), dtype=first.dtype)
        said[:, others] = -torch.linalg.solve(first[others][:, others], first[others][:, own]).t()
        return float(((said @ second @ said.t()).diagonal() / first.diagonal()[own]).sum())

    for unit in set(units.tolist()) - {-1}:
        own = np.flatnonzero(units == unit)
        stays = [each for each in range(6) if units[each] < 0 or scores[units[each]] > scores[unit]]
        wanted = max(1.0, left(own, stays) / left(own, np.setdiff1d(np.arange(6), own)))
        torch.testing.assert_close(found[own], torch.full((len(own),), wanted, dtype=found.dtype), rtol=1e-3, atol=1e-3)
    assert found.max() > 1.5


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_few_samples_give_every_unit_a_score(samples):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10), nn.Linear(10, 4))
    x = torch.randn(samples, 3, 8, 8) * 1e3
    assert np.isfinite(unit_fisher(network, trace(network, x[:1]), [x])).all()


class Tokens(nn.Module):
    """One row of outputs for each token."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_tokens_with_a_row_of_their_own_are_samples():
    torch.manual_seed(0)
    network, x = Tokens(), torch.randn(40, 8, 4)
    graph = trace(network, x[:1])
    tokens, single = (unit_fisher(network, graph, [data.repeat(60, 1, 1)]) for data in (x, x.reshape(-1, 1, 4)))
    np.testing.assert_allclose(tokens, 8 * single, rtol=0.1)


def test_scores_repeat_and_leave_the_network_alone():
    torch.manual_seed(0)
    network, x = KINDS["convolutions"][0](), torch.randn(6, 2, 6, 6)
    network.train()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    graph = trace(network, x[:1])
    first, second, other = (unit_fisher(network, graph, [x], seed=seed) for seed in (0, 0, 1))
    assert (first == second).all()
    assert (first != other).any()
    assert network.training
    assert [weight.requires_grad for weight in network.parameters()].count(False) == 1
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_half_precision_is_scored_in_single():
    torch.manual_seed(0)
    network, x = Tokens(), torch.randn(64, 8, 4)
    graph = trace(network, x[:1])
    whole, half = unit_fisher(network, graph, [x]), unit_fisher(network.bfloat16(), graph, [x.bfloat16()])
    assert half.dtype == np.float64
    assert np.corrcoef(whole, half)[0, 1] > 0.9


def test_a_loss_stands_for_the_directions():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)), torch.randn(64, 5)
    with torch.no_grad():
        network[2].weight[1:, 3] = 0.0  # unit 3 reaches the first output alone
    pruned = ifap.prune(
        network, x[:1], [x], target=ifap.Target(macs=0.1), loss=lambda outputs, inputs: outputs[:, 1:].square().sum()
    )
    assert 3 not in pruned.plan.kept["0"]["out"]


# --- what is an output of classes -----------------------------------------------------------------


def outputs(network, *shape):
    torch.manual_seed(0)
    return network(torch.randn(*shape).requires_grad_())


def scaled(layer, factor):
    with torch.no_grad():
        layer.weight.mul_(factor)
    return layer


@pytest.mark.parametrize(
    ("network", "shape", "axis"),
    [
        (scaled(nn.Linear(8, 5), 10), (4, 8), 1),
        (scaled(nn.Linear(8, 5, bias=False), 10), (4, 6, 8), 2),
        (scaled(nn.Conv2d(8, 5, 1), 10), (4, 8, 6, 6), 1),
        (nn.Sequential(scaled(nn.Conv2d(8, 5, 1), 10), nn.Upsample(scale_factor=2, mode="bilinear")), (4, 8, 6, 6), 1),
        (nn.Sequential(scaled(nn.Conv2d(8, 5, 6), 10), nn.Flatten()), (4, 8, 6, 6), 1),
        (scaled(nn.Linear(8, 5), 0.1), (4, 8), None),  # flat
        (nn.Linear(8, 1), (4, 8), None),  # one value
        (nn.Sequential(scaled(nn.Linear(8, 5), 10), nn.LayerNorm(5)), (4, 8), None),
        (nn.Sequential(scaled(nn.Linear(8, 5), 10), nn.Sigmoid()), (4, 8), None),
    ],
)  # fmt: skip
def test_logits_are_what_a_product_makes_last_and_no_flat_softmax(network, shape, axis):
    assert class_axis(outputs(network, *shape)) == axis


@pytest.mark.parametrize("axis", [None, 1])
def test_directions_have_the_fisher_information_as_second_moment(axis):
    torch.manual_seed(0)
    one = torch.randn(1, 4) * 2
    output = one.repeat(40_000, 1)
    drawn = direction(output, axis, torch.Generator().manual_seed(0)).double()
    found = drawn.t() @ drawn / len(drawn)
    p = one[0].softmax(0).double()
    wanted = torch.diag(p) - torch.outer(p, p) if axis else torch.eye(4) / output.std().double().square()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max() + 2e-3


def test_numbers_that_saturate_a_softmax_still_have_a_direction():
    drawn = direction(torch.tensor([[0.0, 900.0, 300.0]]), 1, torch.Generator().manual_seed(0))
    assert drawn.abs().sum() > 0.01


# --- outputs whose number depends on the data ------------------------------------------------------


class Finder(nn.Sequential):
    """Returns the rows that are detected: those of samples whose first number is above zero."""

    def forward(self, x):
        return super().forward(x)[x[:, 0] > 0]


def test_a_batch_in_which_nothing_is_detected_says_nothing():
    torch.manual_seed(0)
    network = Finder(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    x, nothing = torch.randn(16, 3).abs(), -torch.randn(16, 3).abs()
    graph = trace(network, x[:1])
    scores = unit_fisher(network, graph, [x, nothing], centred=False)
    np.testing.assert_allclose(scores, unit_fisher(network, graph, [x], centred=False))
    assert (scores > 0).any()


def test_where_nothing_is_ever_detected_units_are_judged_by_their_energy():
    torch.manual_seed(0)
    network = Finder(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    nothing = [-torch.randn(16, 3).abs(), -torch.randn(16, 3).abs()]
    with pytest.raises(ScoreError, match="no values on the calibration data, as where nothing is detected"):
        unit_fisher(network, trace(network, nothing[0]), nothing)
    pruned = ifap.prune(network, nothing[0], nothing, target=ifap.Target(macs=0.4))
    assert pruned.after.macs < 0.61 * pruned.before.macs


# --- errors ---------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(4, 3)
    graph = trace(network, x[:1])
    with pytest.raises(ScoreError, match="empty"):
        unit_fisher(network, graph, [])
    with pytest.raises(ScoreError, match=r"'1'.*not finite"):
        unit_fisher(network, graph, [x * float("nan")])
    with pytest.raises(SplitError):
        unit_fisher(network, graph, Split("test", x, torch.zeros(4)))
    stopped = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    stopped.forward = lambda x: stopped[1](stopped[0](x)).detach()
    with pytest.raises(ScoreError, match="depends by a gradient"):
        unit_fisher(stopped, graph, [x])


class Silent(nn.Sequential):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("centred", [True, False])
def test_energies_are_what_units_bring_to_their_readers(centred):
    torch.manual_seed(0)
    network, x = Silent(nn.Linear(5, 6), nn.Linear(6, 4)), torch.randn(64, 5) + 1
    graph = trace(network, x[:1])
    read = network[0](x).double()
    brought = (read.var(dim=0, correction=0) if centred else read.square().mean(dim=0)) * network[
        1
    ].weight.square().sum(0)
    wanted = (brought / brought.sum()).detach().numpy()
    np.testing.assert_allclose(energy_shares(network, graph, x.split(7), centred=centred), wanted, rtol=1e-5)


def test_a_network_without_gradients_is_scored_by_energy_and_says_so():
    torch.manual_seed(0)
    network, x = Silent(nn.Linear(5, 6), nn.Linear(6, 4)), torch.randn(64, 5)
    with torch.no_grad():
        network[1].weight[:, [1, 4]] *= 0.01
    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.3))
    assert pruned.plan.kept["0"]["out"] == [0, 2, 3, 5]
    assert "no output of the network depends by a gradient" in pruned.receipts[-1].scored[0]
    learning = ifap.prune(nn.Sequential(*network), x[:1], [x], target=ifap.Target(macs=0.3))
    assert learning.receipts[-1].scored == []


class Overwrites(Tokens):
    def __init__(self, *, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        hidden = self.first(x)
        out = self.second(hidden)
        return out + (hidden.mul_(2) if self.in_place else hidden * 2).sum(-1, keepdim=True)


def test_what_is_overwritten_after_it_was_read_is_copied_first():
    x, scores = torch.randn(40, 4), []
    for in_place in (True, False):
        torch.manual_seed(0)
        network = Overwrites(in_place=in_place)
        scores.append(unit_fisher(network, trace(network, x[:1]), [x]))
    np.testing.assert_allclose(*scores, rtol=1e-5)


class Matrix(nn.Module):
    """A linear layer of a library: its weight is a matrix beside a bias, and no layer of torch."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_matrices_outside_of_layers_read_as_layers_do():
    torch.manual_seed(0)
    x, matrices = torch.randn(64, 5), nn.Sequential(Matrix(5, 6), nn.Tanh(), Matrix(6, 4))
    layers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        for place in (0, 2):
            layers[place].weight.copy_(matrices[place].weight.t())
            layers[place].bias.zero_()
    scores = [unit_fisher(network, trace(network, x[:1]), [x], centred=False) for network in (matrices, layers)]
    assert np.isfinite(scores[0]).all()
    np.testing.assert_allclose(*scores, rtol=1e-4)


class Turns(nn.Conv1d):
    """Reads (samples, positions, channels), and with a weight that it makes new each time."""

    def forward(self, x):
        return nn.functional.conv1d(x.transpose(1, 2), self.weight * 2, self.bias).transpose(1, 2)


class Pointwise(nn.Linear):
    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels)
        with torch.no_grad():
            self.weight.copy_(conv.weight[..., 0] * 2)
            self.bias.copy_(conv.bias)


def test_a_layer_with_a_forward_of_its_own_reads_what_its_product_is_given():
    torch.manual_seed(0)
    turned = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), Turns(6, 4, 1))
    plain = nn.Sequential(*turned[:2], Pointwise(turned[2]))
    x = torch.randn(16, 3, 5)
    scores = [unit_fisher(network, trace(network, x[:1]), x.split(4)) for network in (turned, plain)]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    kept = [
        ifap.prune(network, x[:1], x.split(4), target=ifap.Target(macs=0.4)).plan.kept["0"]
        for network in (turned, plain)
    ]
    assert kept[0] == kept[1]


class Spoils(nn.Module):
    """Overwrites what its own backward needs, as a network that only generates may do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.second(self.first(x)).exp()
        out = self.third(hidden * 1.0)
        hidden.mul_(0)
        return out


def test_a_network_that_cannot_go_backward_is_scored_by_energy():
    x = torch.randn(64, 5)
    with pytest.raises(RuntimeError, match="inplace"):
        Spoils()(x).sum().backward()
    pruned = ifap.prune(Spoils(), x[:1], [x], target=ifap.Target(macs=0.3))
    assert "the network cannot go backward (one of the variables" in pruned.receipts[-1].scored[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_layers_that_make_their_weight_read_units_too(normed):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(3, 6, 1), nn.Tanh(), nn.ConvTranspose1d(6, 4, 2), nn.Tanh(), nn.Conv1d(4, 2, 1))
    made = nn.Sequential(*(normed(copy.deepcopy(layer)) if list(layer.parameters()) else layer for layer in plain))
    x = torch.randn(16, 3, 5)
    scores = [
        unit_fisher(network, trace(network, x[:1]), x.split(4), centred=False).tolist() for network in (plain, made)
    ]
    assert not np.isnan(scores[0]).any()
    np.testing.assert_allclose(sorted(scores[1]), sorted(scores[0]), rtol=1e-4)
    pruned = ifap.prune(made, x[:1], x.split(4), target=ifap.Target(macs=0.3))
    assert pruned.after.macs <= 0.7 * pruned.before.macs


class Reads(nn.Module):
    """Reads hidden units by a parameter, in a product that is looked into or in one that is not."""

    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.product = nn.Linear(5, 6), product
        self.second = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return self.product(self.first(x), self.second)


def test_a_product_that_is_not_looked_into_is_judged_by_its_weights():
    seen, unseen = Reads(torch.matmul), Reads(lambda x, w: torch.einsum("bi,ij->bj", x, w))
    x = torch.randn(64, 5)
    for size, tolerance in ((1, 1e-4), (4, 0.7)):  # samples of a batch are told apart by chance only
        scores = [
            unit_fisher(network, trace(network, x[:1]), x.split(size), centred=False) for network in (seen, unseen)
        ]
        np.testing.assert_allclose(scores[1], scores[0], rtol=tolerance)
    assert unseen.second.grad is None
    assert unseen.second.requires_grad


def test_a_gradient_that_the_forward_asks_for_is_not_counted():
    class Slope(nn.Module):
        """A value and its slope, such as an energy and its forces."""

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.layers(x)
                (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return energy, slope

    model, x = Slope(), torch.randn(8, 6)
    scores = unit_fisher(model, trace(model, x), [x], seed=0, centred=False)
    assert np.isfinite(scores).all()
    assert (scores > 0).all()
    assert ifap.prune(model, x, [x, x], target=ifap.Target(macs=0.5)).proof.units_checked


def test_a_part_without_gradients_is_scored_by_what_comes_after_it():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))

        def forward(self, x):
            with torch.inference_mode():
                x = self.body(x)
            return self.head(x.clone())

    model, x = Frozen(), torch.randn(8, 6)
    pruned = ifap.prune(model, x, [x, x], target=ifap.Target(macs=0.3))
    assert pruned.proof.units_checked
    assert pruned.model.head[0].out_features < 12
