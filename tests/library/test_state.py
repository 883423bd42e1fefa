"""Networks that keep something between two forwards: each forward of the library begins from their own state."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import ifap
from ifap.axes.state import kept_notes, kept_state
from ifap.errors import PlanError
from ifap.scores.flow import forwards


class Cell(nn.Module):
    """A recurrent cell that goes on where the last forward stopped."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(16, width), nn.GRUCell(width, width), nn.Linear(width, 5)
        self.hidden = None

    def forward(self, x):
        if self.hidden is None or len(self.hidden) != len(x):
            self.hidden = torch.zeros(len(x), self.cell.hidden_size)
        self.hidden = self.cell(functional.relu(self.embed(x)), self.hidden)
        return self.head(self.hidden)


class Average(nn.Module):
    """A buffer that follows what is seen, put in place of the last one or written into, also by way of its data."""

    def __init__(self, *, writes: bool, data: bool = False, width: int = 32):
        super().__init__()
        self.embed, self.head, self.writes = nn.Linear(16, width), nn.Linear(width, 5), writes
        self.data = data
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x):
        seen = functional.relu(self.embed(x))
        if self.writes:
            written = self.mean.data if self.data else self.mean  # a write by way of the data raises no version
            written.mul_(0.9).add_(0.1 * seen.mean(0).detach())
        else:
            self.mean = 0.9 * self.mean + 0.1 * seen.mean(0).detach()
        return self.head(seen - self.mean)


class Queue(nn.Module):
    """A queue of features, and the place of the next."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed, self.head = nn.Linear(16, width), nn.Linear(64, 5)
        self.register_buffer("queue", torch.linspace(-1, 1, 64 * width).view(64, width))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        seen, place = functional.relu(self.embed(x)), int(self.place)
        self.queue[place : place + len(x)] = seen.detach()[: 64 - place]
        self.place[0] = (place + len(x)) % 64
        return self.head(seen @ self.queue.t())


class Stream(nn.Module):
    """Causal convolutions that keep the last samples of each call in a list."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(4, width, 3), nn.Conv1d(width, width, 3)])
        self.head, self.last = nn.Conv1d(width, 5, 1), [None, None]

    def forward(self, x):
        for place, layer in enumerate(self.layers):
            last = self.last[place]
            if last is None or len(last) != len(x):
                last = x.new_zeros(len(x), x.shape[1], 2)
            x = torch.cat([last, x], dim=2)
            self.last[place] = x[:, :, -2:]
            x = functional.relu(layer(x))
        return self.head(x)


NETWORKS = {
    "cell": (Cell, (4, 16)),
    "replaced buffer": (lambda: Average(writes=False), (4, 16)),
    "written buffer": (lambda: Average(writes=True), (4, 16)),
    "written data": (lambda: Average(writes=True, data=True), (4, 16)),
    "queue": (Queue, (4, 16)),
    "list": (Stream, (2, 4, 20)),
}


@pytest.fixture(params=NETWORKS)
def built(request):
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    return build, build().eval(), torch.randn(4, *shape)


def test_a_network_with_a_state_is_cut_saved_and_loaded(built, tmp_path):
    build, network, batches = built
    pruned = ifap.prune(network, batches[0], list(batches), target=ifap.Target(macs=0.5))
    assert pruned.after.macs <= 0.51 * pruned.before.macs
    assert pruned.proof.difference < 1e-6
    ifap.save(pruned, tmp_path / "small")
    loaded = ifap.load(tmp_path / "small", build)
    for batch in batches:  # the states go the same way
        assert torch.equal(loaded(batch), pruned.model.eval()(batch))


def test_each_calibration_batch_begins_from_the_state_of_the_network(built):
    _, network, batches = built
    before, seen = copy.deepcopy(network.state_dict()), []
    with torch.no_grad(), hooked(network, lambda _module, _inputs, output: seen.append(output.clone())):
        for _ in forwards(network, [batches[0], batches[1], batches[0]]):
            pass
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@contextmanager
def hooked(network, hook):
    handle = network.register_forward_hook(hook)
    yield
    handle.remove()


def test_recovery_leaves_no_tensor_of_a_batch_behind():
    torch.manual_seed(0)
    network, x = Cell().eval(), torch.randn(8, 16)

    def recover(student, teacher, step):
        student(x).sum().backward()
        teacher(x)

    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.5), recover=recover)
    assert pruned.model.hidden is None


def test_a_state_of_an_earlier_forward_is_named_when_the_network_is_loaded(tmp_path):
    torch.manual_seed(0)
    network, x = Cell().eval(), torch.randn(4, 16)
    network(x)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5))
    ifap.save(pruned, tmp_path / "kept")
    with pytest.raises(PlanError, match="'hidden' held a tensor of an earlier forward: reset it"):
        ifap.load(tmp_path / "kept", Cell)
    pruned.model.hidden = None
    ifap.save(pruned, tmp_path / "reset")
    assert torch.equal(ifap.load(tmp_path / "reset", Cell)(x), pruned.model.eval()(x))


class Memory(nn.Module):
    """Keep features of earlier forwards in a container, or in an object, of any depth."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.head, self.kind = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 3), kind
        self.kept = MEMORIES[kind]()

    def place(self):
        found = self.kept
        return {
            "deque": lambda: found, "defaultdict": lambda: found["h"], "nested": lambda: found["a"][0],
            "namespace": lambda: found.held, "dataclass": lambda: found.held, "slots": lambda: found.held,
        }[self.kind]()  # fmt: skip

    def forward(self, x):
        seen = torch.relu(self.first(x))
        kept = self.place()
        mean = sum(kept) / len(kept) if kept else torch.zeros_like(seen)
        kept.append(seen.detach())
        return self.head(torch.relu(self.second(seen + mean)))


@dataclass
class Held:
    held: list = field(default_factory=list)


class Slots:
    __slots__ = ("held",)

    def __init__(self):
        self.held = []


MEMORIES = {
    "deque": lambda: deque(maxlen=3), "defaultdict": lambda: defaultdict(list), "nested": lambda: {"a": [[]]},
    "namespace": lambda: SimpleNamespace(held=[]), "dataclass": Held, "slots": Slots,
}  # fmt: skip


@pytest.mark.parametrize("method", ["flow", "magnitude"])
@pytest.mark.parametrize("kind", MEMORIES)
def test_what_containers_and_objects_hold_is_put_back(kind, method):
    torch.manual_seed(0)
    network, x = Memory(kind).eval(), torch.randn(4, 8)
    ifap.inspect(network, x)
    assert not network.place()
    pruned = ifap.prune(network, x, [x, x], target=ifap.Target(macs=0.4), method=method)
    assert not network.place()
    assert not pruned.model.place()
    assert pruned.after.macs < 0.61 * pruned.before.macs
    assert pruned.proof.difference < 1e-6


class Table(nn.Module):
    """A table of positions that grows with the longest input seen."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head, self.table = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3), None

    def forward(self, x):
        seen = self.first(x)
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.ones(x.shape[1], 1) * self.second.bias.detach().cos()
        return self.head(torch.relu(self.second(seen + self.table[: x.shape[1]])))


@pytest.mark.parametrize("before", [None, 3, 9])
def test_a_table_of_an_earlier_forward_follows_the_cut(before):
    torch.manual_seed(0)
    network = Table().eval()
    if before:
        network(torch.randn(1, before, 8))
    x = torch.randn(1, 5, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.4), method="magnitude")
    assert set(pruned.receipts[-1].pinned) == {"head"}
    for length in (2, 5, 12) if before != 9 else (2, 5, 9):  # the sample did not show how a longer one is made
        assert pruned.model(torch.randn(2, length, 8)).shape == (2, length, 3)


def test_weights_that_hooks_make_are_no_state():
    network, x = nn.Sequential(nn.utils.spectral_norm(nn.Linear(16, 16)), Cell()).eval(), torch.randn(2, 16)
    network(x)
    before = network[0].weight.clone()
    with torch.no_grad():
        network[0].weight_orig[0].mul_(3)
        with kept_state(network):
            network(x)
    assert not torch.equal(network[0].weight, before)


class Capturing(nn.Module):
    """Register hooks in the first forward that collect what layers return, and note that it did."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 24), Wrapped(), nn.Linear(24, 3)

    def forward(self, x):
        if not hasattr(self, "captures"):
            self.captures = True
            self.second.register_forward_hook(lambda _module, _inputs, output: CAPTURED.append(output))
        CAPTURED.clear()
        self.second(torch.relu(self.first(x)))
        return self.head(sum(CAPTURED))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(24, 24)

    def forward(self, x):
        return torch.relu(self.inner(x))


CAPTURED = []


def test_hooks_of_a_first_forward_are_not_registered_twice(tmp_path):
    torch.manual_seed(0)
    network, x = Capturing().eval(), torch.randn(4, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.4))
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, Capturing)
    for each in (network, pruned.model, loaded):
        each(x)
        assert len(CAPTURED) == 1
    assert torch.equal(loaded(x), pruned.model(x))


def test_what_learns_stays_while_notes_are_put_back():
    network = Average(writes=False)
    network.seen = 0
    with kept_notes(network):
        network(torch.ones(2, 16))
        network.seen += 1
    assert network.seen == 0
    assert network.mean.abs().sum() > 0
