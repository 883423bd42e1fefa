"""The proof: it sees a wrong cut, and computes in double precision what a network computes in single precision."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.axes import proof as proofs
from ifap.axes.cut import cut_units
from ifap.axes.double import kept_double
from ifap.errors import GraphError, TargetError
from ifap.view import trace


class SingleNorm(nn.Module):
    """Divide by the root mean square in single precision, as many language models do."""

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6)).type_as(x) * 1.7


class InsistsOnSingle(nn.Module):
    """Refuse other types than single precision: the casts must stay."""

    def forward(self, x):
        y = x.float()
        if y.dtype != torch.float32:
            raise TypeError("single precision is needed")
        return (y * 1.7).to(x.dtype)


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 8), *between, nn.Linear(8, 16), nn.Linear(16, 3))


def halved(model, **options):
    inputs = torch.randn(4, 6)
    return ifap.prune(model.eval(), inputs, [inputs], target=ifap.Target(macs=0.5), steps=2, **options)


def test_casts_to_single_precision_are_computed_in_double():
    pruned = halved(network(SingleNorm()))
    assert pruned.proof.units_checked > 0
    assert pruned.proof.difference < 1e-13


def test_casts_stay_where_the_forward_needs_them():
    pruned = halved(network(InsistsOnSingle()))
    assert pruned.proof.units_checked > 0
    assert pruned.proof.difference < 1e-6


def test_a_wrong_cut_ends_without_a_network(monkeypatch):
    def cut_neighbours(model, graph, units):
        return cut_units(model, graph, (units + 1) % graph.num_units)

    monkeypatch.setattr(proofs, "cut_units", cut_neighbours)
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TargetError, match="without it does not compute what the masked one does"):
        halved(model)
    with pytest.raises(GraphError, match=r"the proof fails where '.*' is cut: the cut network differs from the masked"):
        halved(model, recover=lambda *_: None)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Streams(nn.Module):
    """Norms, means and variances over the units that the first layer makes."""

    def __init__(self, over, scale=lambda norm, x: 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.over, self.head = nn.Linear(6, 24), over, nn.Linear(24, 3)
        self.inner, self.back, self.scale = nn.Linear(24, 40), nn.Linear(40, 24), scale

    def forward(self, x):
        x = self.read(x)
        x = x + self.back(torch.relu(self.inner(self.over(x))))
        return self.head(self.over(x) * self.scale(self.over, x))


class Over(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class NormByHand(nn.Module):
    """Divides by the root mean square, as many language models do."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class NormOfColumns(nn.LayerNorm):
    """Takes what does not lie row by row in memory, and relies on a norm to return what does."""

    def forward(self, x):
        return super().forward(x.t().contiguous().t()).view(-1).view(x.shape)


class WithSigmoid(nn.Module):
    def forward(self, x):
        return x - torch.sigmoid(x).mean(-1, keepdim=True)


AVERAGES = {
    "layer norm": lambda: nn.LayerNorm(24),
    "layer norm without a weight": lambda: nn.LayerNorm(24, elementwise_affine=False),
    "layer norm of columns": lambda: NormOfColumns(24),
    "root mean square": lambda: nn.RMSNorm(24),
    "group norm": lambda: nn.GroupNorm(4, 24),
    "one group": lambda: nn.GroupNorm(1, 24),
    "mean": lambda: Over(lambda x: x - x.mean(-1, keepdim=True)),
    "variance": lambda: Over(lambda x: x / (x.var(dim=-1, keepdim=True) + 1e-3).sqrt()),
    "both": lambda: Over(lambda x: x / torch.var_mean(x, -1, keepdim=True)[0]),
}


@pytest.mark.parametrize("over", AVERAGES)
def test_units_that_something_averages_over_are_compared(over):
    pruned = halved(Streams(AVERAGES[over]()), method="ifap")
    assert pruned.model.read.out_features < 24
    assert pruned.proof.does_not_apply == {}
    assert pruned.proof.units_checked > 24 - pruned.model.read.out_features
    assert pruned.proof.difference < 1e-12
    counts_zeros = over in ("layer norm without a weight", "root mean square", "mean", "variance", "both")
    assert sum(pruned.proof.averaged.values()) == counts_zeros * (24 - pruned.model.read.out_features)


def test_a_masked_unit_that_is_not_zero_in_an_average_is_left_out():
    pruned = halved(Streams(WithSigmoid()), method="ifap")
    assert pruned.model.read.out_features < 24
    assert pruned.proof.does_not_apply == {"mean averages over it": 24 - pruned.model.read.out_features}
    assert pruned.proof.units_checked > 0
    assert pruned.proof.holds


@pytest.mark.parametrize(
    "scale",
    [
        lambda norm, x: math.log(x.shape[-1]),
        lambda norm, x: len(norm.weight) / 24,
        lambda norm, x: torch.arange(x.shape[-1]) / x.shape[-1],
    ],
)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, NormByHand])
def test_a_number_that_changes_with_a_width_under_a_norm_is_no_wrong_cut(norm, scale):
    model = Streams(norm(24), scale)
    pruned = halved(model, method="ifap")
    assert pruned.model.read.out_features == 24
    assert pruned.model.inner.out_features < 40
    assert pruned.proof.holds


class SoftmaxByHand(nn.Module):
    """Divides by a sum of units, each of which is one when nothing comes in."""

    def forward(self, x):
        x = torch.exp(x)
        return x / x.sum(-1, keepdim=True)


def test_what_makes_a_proof_fail_stays_and_the_rest_is_cut():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 24), SoftmaxByHand(), nn.Linear(24, 4))
    pruned = halved(model)
    assert pruned.model[2].out_features == 24
    assert pruned.model[0].out_features < 16
    assert pruned.receipts[-1].pinned["2"] == "the network without it does not compute what the masked one does"
    assert pruned.proof.units_checked > 0
    assert pruned.proof.holds


def test_a_wrong_cut_goes_unseen_only_without_the_proof(monkeypatch):
    monkeypatch.setattr(proofs, "cut_units", lambda model, graph, units: None)
    pruned = halved(network(), prove=False)
    assert pruned.proof is None


class Infinite(nn.Module):
    """Divides by zero."""

    def forward(self, x):
        return x / 0.0


@pytest.mark.parametrize(
    ("between", "device", "reason"),
    [
        ((), "meta", "the network has no data"),
        ((Infinite(),), "cpu", "the outputs are not finite with random vectors"),
    ],
)
def test_units_that_cannot_be_compared_are_counted(between, device, reason):
    model, x = network(*between), torch.randn(4, 6)
    graph = trace(model, x)
    found = proofs.prove(model.to(device), graph, np.arange(5), x, lambda model, inputs: [model(inputs)])
    assert (found.difference, found.units_checked) == (None, 0)
    assert found.does_not_apply == {reason: 5}


def test_casts_to_single_precision_are_kept_double():
    single = torch.ones(2, dtype=torch.float64)
    with kept_double():
        assert torch.softmax(single, 0, dtype=torch.float32).dtype == torch.float64
        assert single.to(torch.float32).dtype == torch.float64


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this version of torch has no grouped product")
@pytest.mark.parametrize(
    ("a", "b"), [((12, 16), (3, 16, 8)), ((8, 16), (16, 24)), ((3, 8, 16), (16, 24)), ((3, 8, 16), (3, 16, 8))]
)
def test_groups_of_matrices_are_multiplied_in_double(a, b):
    torch.manual_seed(0)
    left, right = torch.randn(a), torch.randn(b)
    flat = left.shape[0] if left.dim() == 2 and right.dim() == 3 else right.shape[-1] if left.dim() == 3 else 16
    ends = torch.tensor([flat // 4, flat // 4, flat], dtype=torch.int32) if min(left.dim(), right.dim()) == 2 else None
    wanted = torch._grouped_mm(left, right, offs=ends)
    with kept_double():
        found = torch._grouped_mm(left.double(), right.double(), offs=ends)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=1e-5)


def test_what_a_network_remembers_from_forward_to_forward_does_not_disturb_its_proof():
    """A running mean that evaluation updates as well, in place or not."""

    class Remembering(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.read, self.head, self.in_place = nn.Linear(6, 24), nn.Linear(24, 3), in_place
            self.register_buffer("mean", torch.zeros(24))

        def forward(self, x):
            y = self.read(x).relu()
            if self.in_place:
                self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
            else:
                self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            return self.head(y - self.mean)

    torch.manual_seed(0)
    x = torch.randn(4, 6)
    for in_place in (False, True):
        found = ifap.prune(Remembering(in_place), x, [x], target=ifap.Target(macs=0.5), steps=1, method="ifap")
        assert found.model.read.out_features <= 12
        assert found.proof.units_checked > 0
        assert found.proof.difference < 1e-12


def test_decisions_alone_are_proven_and_saved(tmp_path):
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 4))

        def forward(self, x):
            return self.values(x).argmax(-1)

    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    pruned = ifap.prune(Policy(), x, [x], target=ifap.Target(macs=0.5), steps=2, method="magnitude")
    assert pruned.proof.units_checked >= 24
    assert pruned.proof.holds
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, Policy)(x), pruned.model(x))
