"""A network that was pruned is pruned again; the plan of the second cut begins with the unpruned network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ifap
from ifap.errors import PlanError
from ifap.plan import noted_plan
from ifap.saving.plans import joined


class Block(nn.Module):
    """Attention whose forward writes down the number of heads and three projections in one layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(12, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down, self.head = nn.Linear(24, 64), nn.Linear(64, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        samples, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(samples, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(samples, tokens, width)
        x = x + self.out(mixed)
        return self.head(x + self.down(torch.relu(self.up(x))))


class Towers(nn.Module):
    """Torch's attention, and a layer whose number of heads is an attribute."""

    def __init__(self):
        super().__init__()
        self.attention, self.heads = nn.MultiheadAttention(16, 4, batch_first=True), 4
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 16, bias=False), nn.Linear(16, 3)
        self.register_buffer("scale", torch.linspace(1, 2, 32), persistent=False)

    def forward(self, x):
        x = x + self.attention(x, x, x)[0]
        y = torch.relu(self.first(x)) * self.scale
        y = self.second(y)
        y = y.reshape(*y.shape[:2], self.heads, -1).flatten(2)
        return self.head(y)


NETWORKS = {"calls": (Block, (2, 6, 12)), "attributes": (Towers, (2, 5, 16))}


@pytest.fixture(params=NETWORKS)
def pruned_twice(request):
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    x = torch.randn(shape)
    first = ifap.prune(build().eval(), x, [x], target=ifap.Target(macs=0.3), steps=1)
    second = ifap.prune(first.model, x, [x], target=ifap.Target(macs=0.25), steps=2)
    return build, x, first, second


def test_a_second_cut_takes_more(pruned_twice):
    _, x, first, second = pruned_twice
    assert second.before == first.after
    assert second.after.macs < 0.8 * first.after.macs
    assert second.proof.difference < 1e-6
    assert second.model(torch.cat([x, x])).shape[0] == 2 * len(x)


def test_it_is_loaded_with_the_builder_of_either_network(pruned_twice, tmp_path):
    build, x, first, second = pruned_twice
    ifap.save(first, tmp_path / "first")
    ifap.save(second, tmp_path / "second")
    wanted = second.model.eval()(x)
    for builder in (build, lambda: ifap.load(tmp_path / "first", build), lambda: copy.deepcopy(first.model)):
        assert torch.equal(ifap.load(tmp_path / "second", builder)(x), wanted)


def test_its_plan_counts_from_the_unpruned_network_on(pruned_twice):
    build, _, first, second = pruned_twice
    assert second.plan.costs.params_before == sum(p.numel() for p in build().parameters())
    assert noted_plan(second.model) is second.plan
    for name, sides in second.plan.kept.items():
        for side, left in sides.items():
            assert set(left) <= set(first.plan.kept.get(name, {}).get(side, left))


def test_a_run_that_was_stopped_goes_on(pruned_twice, tmp_path):
    build, x, first, _ = pruned_twice

    def run(fails):
        def recover(model, teacher, step):
            if fails and step == 2:
                raise KeyboardInterrupt

        return ifap.prune(
            first.model, x, [x], target=ifap.Target(macs=0.25), steps=2, recover=recover, resume=tmp_path / "state"
        )

    with pytest.raises(KeyboardInterrupt):
        run(fails=True)
    second = run(fails=False)
    ifap.save(second, tmp_path / "second")
    assert torch.equal(ifap.load(tmp_path / "second", build)(x), second.model.eval()(x))


def test_another_builder_that_was_pruned_is_named(pruned_twice, tmp_path):
    build, x, _, second = pruned_twice
    ifap.save(second, tmp_path / "second")
    other = ifap.prune(build().eval(), x, [x], target=ifap.Target(macs=0.4), steps=1, method="random")
    with pytest.raises(PlanError):
        ifap.load(tmp_path / "second", lambda: copy.deepcopy(other.model))


def test_nothing_is_joined_to_a_network_that_was_not_pruned(pruned_twice):
    _, _, first, _ = pruned_twice
    assert joined(None, first.plan) is first.plan


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3, groups=2)
        self.third, self.head = nn.Conv2d(24, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))


def test_a_network_that_lost_its_groups_is_cut_inside_of_the_last_one(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12)
    found = ifap.prune(Grouped().eval(), x, [x], target=ifap.Target(macs=0.5), steps=1, method="magnitude")
    for _ in range(2):
        found = ifap.prune(found.model, x, [x], target=ifap.Target(macs=0.3), steps=1, method="magnitude")
    assert found.model.second.groups == 1
    assert found.model.second.weight.shape[1] < 12
    ifap.save(found, tmp_path)
    assert torch.equal(ifap.load(tmp_path, Grouped)(x), found.model(x))


def test_a_pickled_network_keeps_its_corrected_calls(pruned_twice, tmp_path):
    _, x, first, _ = pruned_twice
    torch.save(first.model, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(loaded(x), first.model(x))
    again = ifap.prune(loaded, x, [x], target=ifap.Target(macs=0.2), steps=1)
    assert again.proof.difference < 1e-6
