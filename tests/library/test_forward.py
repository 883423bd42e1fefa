"""What counts as an output of a network, copies of its inputs, and copies whose weights lie as in a loaded network."""

from __future__ import annotations

import copy
import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch
from networks import conv, head, unit
from torch import nn
from torch.distributions import Categorical, Independent, Normal

import ifap
from ifap.errors import GraphError
from ifap.forward import call

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Held:
    """What holds outputs and is no container; `_fields` is as in detectors."""

    def __init__(self, logits, maps):
        self.logits, self._fields = logits, {"maps": [maps]}


class Returning(nn.Module):
    """Two outputs, in whatever `wrap` makes of them."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.maps, self.head, self.wrap = unit(3, 24), conv(24, 8), head(24, 8), wrap

    def forward(self, x, state=None):
        x = self.body(x)
        return self.wrap(self.head(x), self.maps(x))


def in_dict(logits, maps):
    return {"loss": logits.logsumexp(1).mean(), "found": [Held(logits, maps)]}


def pruned(network, x=X):
    return ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.3), method="magnitude", steps=1, min_units=1)


@pytest.mark.parametrize("wrap", [lambda a, b: SimpleNamespace(a=a, b=[b]), Held, lambda a, b: (Held(a, b),), in_dict])
def test_outputs_inside_of_objects_keep_their_shape(wrap):
    torch.manual_seed(0)
    found = pruned(Returning(wrap))
    assert found.model.maps.out_channels == 8
    assert found.model.head[-1].out_features == 8
    assert found.proof.holds
    assert found.after.macs < found.before.macs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: Categorical(logits=a, validate_args=False),
        lambda a, b: Independent(Normal(a, a.exp(), validate_args=False), 1, validate_args=False),
    ],
)
def test_a_distribution_is_an_output(wrap, tmp_path):
    torch.manual_seed(0)
    found = pruned(Returning(wrap))
    assert found.model.head[-1].out_features == 8
    ifap.save(found, tmp_path)
    ifap.load(tmp_path, lambda: Returning(wrap))


def test_what_a_network_takes_back_is_no_output():
    torch.manual_seed(0)
    found = pruned(Returning(lambda a, b: {"logits": a, "state": Held(a, b)}))
    assert found.model.head[-1].out_features == 8
    assert found.model.maps.out_channels < 8


def test_a_proof_without_outputs_says_so():
    torch.manual_seed(0)
    found = pruned(Returning(lambda a, b: "done"))
    assert found.proof.difference is None
    assert "the network returns no tensor" in found.proof.does_not_apply


@pytest.mark.parametrize("call", [lambda m: pruned(m), lambda m: ifap.inspect(m, X)])
def test_a_lazy_layer_without_weights_is_named(call):
    with pytest.raises(GraphError, match=r"'1'.*has not made its weights yet"):
        call(nn.Sequential(conv(3, 8), nn.LazyConv2d(8, 3)))


def test_a_network_that_cannot_be_copied_is_refused_in_one_line():
    network = nn.Sequential(conv(3, 8), head(8))
    network.lock = threading.Lock()
    with pytest.raises(GraphError, match=r"cannot be copied by copy\.deepcopy \(.*lock.*\): attribute 'lock'"):
        pruned(network)


def test_layers_in_a_plain_list_are_named():
    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.head = [conv(3, 8), conv(8, 8)], head(8)

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return self.head(x)

    with pytest.raises(GraphError, match=r"the layers in 'steps' are not registered: put them into an nn\.ModuleList"):
        pruned(Listing())


def test_what_a_scripted_network_takes_is_not_asked():
    with pytest.raises(GraphError, match="nothing in this network can be pruned"):
        pruned(torch.jit.script(nn.Sequential(conv(3, 8), head(8))))


class Turned(nn.Module):
    """A weight that lies column by column, which torch multiplies in another order."""

    def __init__(self):
        super().__init__()
        self.body, self.head = unit(3, 24), nn.Linear(24, 5)
        self.weight = nn.Parameter(torch.randn(5, 5).t())

    def forward(self, x):
        return torch.linalg.inv(self.weight) @ self.head(self.body(x).mean((2, 3))).unsqueeze(2)


def test_weights_lie_in_memory_as_those_of_a_loaded_network(tmp_path):
    torch.manual_seed(0)
    found = pruned(Turned())
    assert found.model.weight.is_contiguous()
    ifap.save(found, tmp_path)
    assert torch.equal(ifap.load(tmp_path, Turned).eval()(X), found.model.eval()(X))


class Steps(nn.Module):
    """A cell written by hand, with its width as a number in a loop over the steps of the input."""

    def __init__(self):
        super().__init__()
        self.gates, self.read, self.head = nn.Linear(6, 48), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x):
        hidden = x.new_zeros(x.shape[0], 16)
        for step in x.unbind(1):
            new, old, gate = torch.split(self.gates(step) + self.read(hidden), 16, dim=1)
            hidden = torch.lerp(new.tanh(), hidden + old.sigmoid(), gate.sigmoid())
        return self.head(hidden)


def test_sizes_in_a_loop_follow_for_more_steps_than_the_sample_has(tmp_path):
    torch.manual_seed(0)
    network, x = Steps(), torch.randn(4, 5, 6)
    found = pruned(network, x)
    assert found.after.macs < found.before.macs
    ifap.save(found, tmp_path)
    longer = torch.randn(2, 9, 6)
    assert torch.equal(ifap.load(tmp_path, Steps).eval()(longer), found.model.eval()(longer))
    assert all(call.ordinal == 0 for call in found.plan.calls if call.function == "split")  # each step as the first
    assert {each.function: each.again for each in found.plan.sequences if each.module == ""}["split"] == 0


class Shortened(nn.Module):
    """Long sequences are shortened first, which is one more call, and the halves of a layer are taken by number."""

    def __init__(self):
        super().__init__()
        self.both, self.read, self.head = nn.Linear(6, 24), nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x, mask=None):
        if x.shape[1] > 8:
            x = x[:, :8]
        if mask is not None:
            x = x * mask.view(x.shape[0], x.shape[1], 1)
        both = self.both(x).view(x.shape[0], x.shape[1], 24)
        gate, value = both[..., :12], both[..., 12:]
        return self.head(self.read(gate.sigmoid() * value).relu()).mean(1)


class Sum(nn.Module):
    """No size tells whether the right part was taken: the sum of some units scales all."""

    def __init__(self):
        super().__init__()
        self.both, self.read, self.head = nn.Linear(6, 24), nn.Linear(24, 20), nn.Linear(20, 3)

    def forward(self, x):
        if x.shape[1] > 8:
            x = x[:, :8]
        both = self.both(x)
        return self.head(self.read(both / (1 + both[..., :12].square().sum(-1, keepdim=True))).relu()).mean(1)


class Prefix(nn.Module):
    """Halves are taken once before the loop, and then in each of its steps."""

    def __init__(self):
        super().__init__()
        self.first, self.gates, self.read, self.head = (
            nn.Linear(6, 32),
            nn.Linear(6, 32),
            nn.Linear(16, 32),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        start = self.first(x[:, 0])
        hidden, memory = start[:, :16], start[:, 16:]
        for step in range(x.shape[1]):
            gates = self.gates(x[:, step]) + self.read(hidden)
            memory = memory + gates[:, :16].tanh()
            hidden = gates[:, 16:].sigmoid() * memory
        return self.head(hidden)


@pytest.mark.parametrize("kind", [Shortened, Sum, Prefix])
@pytest.mark.parametrize("length", [1, 3, 6, 11])
def test_calls_that_only_other_inputs_make_shift_no_correction(tmp_path, kind, length):
    """Another length gives what the network gives whose removed units are zero, loaded or not."""
    torch.manual_seed(0)
    network = kind().double()
    found = pruned(network, torch.randn(4, 5, 6, dtype=torch.float64))
    assert found.after.macs < found.before.macs
    zeroed = copy.deepcopy(network)
    for name, sides in found.plan.kept.items():
        layer = zeroed.get_submodule(name)
        gone = [unit for unit in range(len(layer.weight)) if unit not in sides.get("out", range(len(layer.weight)))]
        with torch.no_grad():
            layer.weight[gone], layer.bias[gone] = 0, 0
    other = torch.randn(2, length, 6, dtype=torch.float64)
    torch.testing.assert_close(found.model(other), zeroed(other))
    ifap.save(found, tmp_path)
    assert torch.equal(ifap.load(tmp_path, lambda: kind().double()).eval()(other), found.model.eval()(other))
    if kind is Shortened:
        mask = torch.ones(2, length, dtype=torch.float64)
        torch.testing.assert_close(found.model(other[:, :8], mask[:, :8]), zeroed(other[:, :8], mask[:, :8]))


class Hooked(nn.Module):
    """A network that holds functions of its own: a hook that keeps a feature, and a lambda that calls a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head, self.features = conv(3, 24), conv(24, 24), conv(24, 24), head(24), {}
        self.post = lambda x: self.b(x).relu()
        self.keep("a")

    def keep(self, name, times=2.0):
        def hook(_module, _args, output):
            self.features[name] = output * times

        self.get_submodule(name).register_forward_hook(hook)

    def forward(self, x):
        return self.head(self.c(self.post(self.a(x).relu()) + self.features["a"]))


def test_functions_that_a_network_holds_belong_to_its_copy():
    torch.manual_seed(0)
    model = Hooked().eval()
    before = model(X)
    pruned = ifap.prune(model, X, [X], target=ifap.Target(macs=0.5))
    assert pruned.proof.holds
    assert pruned.model.b.out_channels < 24
    after = pruned.model(X)
    with torch.no_grad():
        pruned.model.b.weight.zero_()
    assert torch.equal(model(X), before)  # and the original still calls its own
    assert not torch.equal(pruned.model(X), after)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("written", ["parameter", "buffer", "attribute"])
def test_what_a_forward_in_training_writes_is_put_back(looks, written):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head, self.plain = conv(3, 24), conv(24, 24), head(24), torch.ones(2)
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            if self.training and (not looks or bool(x.isfinite().all())):
                kind = {"parameter": self.b.weight.data, "buffer": self.count, "attribute": self.plain}
                kind[written].add_(1)
            return self.head(self.b(self.a(x).relu()).relu())

    model = Writing().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ifap.inspect(model, X)
    pruned = ifap.prune(model, X, [X], target=ifap.Target(macs=0.4), method="magnitude", steps=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.plain, torch.ones(2))
    kept = pruned.plan.kept["b"]
    assert torch.equal(pruned.model.b.weight, before["b.weight"][kept["out"]][:, kept["in"]])
    assert not pruned.model.count.any()


@dataclasses.dataclass
class Guarded:
    """A configuration that refuses to be asked for a value, as one whose value differs between layers does."""

    width: int = 24

    def __getattribute__(self, name):
        if name == "width":
            raise RuntimeError("ask each layer")
        return super().__getattribute__(name)


def test_objects_that_a_network_holds_are_not_asked_for_what_they_are():
    model = nn.Sequential(conv(3, 24), nn.ReLU(), head(24))
    model.config, model.held = Guarded(), [{"config": Guarded()}]
    assert ifap.prune(model, X, [X], target=ifap.Target(macs=0.5)).proof.holds


class Popping(nn.Module):
    """Takes an item out of its argument, and changes it in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 4)

    def forward(self, batch):
        images = batch.pop("images")
        images.sub_(0.5)
        return self.head(self.b(self.a(images).relu()).relu().mean((2, 3)))


def test_a_forward_that_changes_its_inputs_is_given_copies(tmp_path):
    images = torch.rand(4, 3, 10, 10)
    given, before = ({"images": images},), images.clone()
    pruned = ifap.prune(Popping().eval(), given, [given, given], target=ifap.Target(macs=0.4))
    assert pruned.proof.difference < 1e-6
    assert torch.equal(given[0]["images"], before)
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: Popping().eval())
    wanted = pruned.model.eval()({"images": images.clone()})
    assert torch.equal(loaded({"images": images.clone()}), wanted)


def test_an_input_keeps_its_class_where_it_is_copied():
    class Marked(torch.Tensor):
        pass

    class Reading(nn.Module):
        def forward(self, x):
            return type(x)

    assert call(Reading(), torch.ones(2).as_subclass(Marked)) is Marked
