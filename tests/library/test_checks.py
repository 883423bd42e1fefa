"""A cut network must run in training as well, where a forward may make other calls than the traced one."""

import copy

import pytest
import torch
from torch import nn

import ifap
from ifap.axes.training import asks_for_mode
from ifap.axes.units import last_units, trial_counts
from ifap.checks import Checks, TrainingModeError, cut_for_trial
from ifap.costs import shapes_in_training
from ifap.view import trace


class Repeats(nn.Module):
    """Repeats a vector to a width that its forward takes from a tensor; in training it makes a call before."""

    def __init__(self, *, by_values: bool = False) -> None:
        super().__init__()
        self.by_values = by_values
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 16, 3, padding=1)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        if self.training:
            turns = int(x.mean().sign().abs()) if self.by_values else 1
            x = x + x.new_zeros(1, turns, 1, 1).repeat(2, 1, 1, 1).sum(0, keepdim=True)
        x = x * x.mean((0, 1, 2, 3)).reshape(1, 1, 1, 1).repeat(x.shape[0], 32, 1, 1)
        return self.last(torch.relu(self.head(x)).mean((2, 3)))


class Counts(nn.Module):
    """Counts its forwards in training, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if self.training:
            self.seen += 1
            assert float(self.seen) > 0
        return self.layer(x)


class WritesItsWidth(Repeats):
    """Writes a width in training alone."""

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        if self.training:
            x = x.view(x.shape[0], 2, 16, *x.shape[2:]).flatten(1, 2)
        return self.last(torch.relu(self.head(x)).mean((2, 3)))


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("net", [Repeats(), Repeats(by_values=True), WritesItsWidth()])
def test_an_axis_stays_where_training_needs_its_size(net, image):
    pruned = ifap.prune(net.eval(), image, [image], target=ifap.Target(macs=0.2), method="magnitude", steps=1)
    assert pruned.model.middle.out_channels == 32
    assert pruned.model.head.out_channels < 16
    assert "in training" in pruned.receipts[-1].pinned["middle"]
    pruned.model.train()(image).sum().backward()


def test_calls_that_training_makes_otherwise_are_seen_before_any_cut(image):
    assert "other sizes in training" in trace(Repeats().eval(), image).pinned["middle"]
    assert "middle" not in trace(WritesItsWidth().eval(), image).pinned


def test_a_check_that_fails_leaves_the_network_as_it_was(image):
    net = WritesItsWidth().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph, checks = trace(net, image), Checks(image)
    units = last_units(graph, trial_counts(graph, 0.5))
    with pytest.raises(TrainingModeError, match="in training"):
        cut_for_trial(net, graph, units, checks)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_forward_in_training_that_looks_at_values_learns_nothing():
    net, x = Counts().eval(), torch.randn(2, 4)
    state = torch.random.get_rng_state()
    assert shapes_in_training(net, x) == [(2, 4)]
    assert float(net.seen) == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_kinds_that_read_their_mode_are_run_in_training():
    assert asks_for_mode(Repeats)
    assert not asks_for_mode(nn.Dropout)
    assert not asks_for_mode(nn.Sequential)


class TakesAShortcut(nn.Module):
    """Takes another way if one head is left, which it asks an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key = nn.Linear(8, 16), nn.Linear(8, 4)
        self.out, self.hidden, self.last = nn.Linear(16, 8), nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x):
        key = self.key(x).unsqueeze(1)
        key = key if self.heads == 1 else key.expand(-1, self.heads, -1)
        x = self.out((self.query(x).view(-1, self.heads, 4) * key).flatten(1))
        return self.last(torch.relu(self.hidden(x)))


def test_only_the_axis_that_an_attribute_counts_stays_where_its_size_cannot_follow():
    def heads_first(model, _batches, **_):
        scores = {name: torch.ones(layer.weight.shape[0]) for name, layer in model.named_children()}
        return {**scores, "query": torch.arange(len(scores["query"])) * 1e-3}

    torch.manual_seed(0)
    network, x = TakesAShortcut(), torch.randn(4, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.7), method=heads_first, steps=1, min_units=1)
    assert pruned.model.query.weight.shape[0] == 16
    assert pruned.model.hidden.weight.shape[0] < 16
    assert pruned.receipts[-1].pinned["query"] == "its size is compared with another number (in '')"
    assert pruned.model(x).shape == (4, 5)


class Teacher(nn.Module):
    """A teacher whose weights follow those of the other network in training, as in self-supervised methods."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def follow(self):
        for mine, its in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            its.data.mul_(0.9).add_(mine.data, alpha=0.1)

    def forward(self, x):
        if self.training:
            self.follow()
        return self.student(x).mean((2, 3)), self.teacher(x).mean((2, 3))


@pytest.mark.parametrize("method", ["flow", "magnitude"])
def test_a_teacher_that_follows_in_training_loses_the_same_units(method):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    pruned = ifap.prune(Teacher(), x, [x], target=ifap.Target(macs=0.5), method=method, steps=3)
    kept = pruned.plan.kept
    assert kept["student.0"]["out"] == kept["teacher.0"]["out"]
    assert len(kept["student.0"]["out"]) < 24
    pruned.model.train()(x)
