"""Registries: what their files register is what they offer, and a wrong name gives the nearest."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.costs import macs_by_module
from ifap.data import Split
from ifap.errors import ConfigError, ScoreError, SplitError
from ifap.methods import METHODS
from ifap.methods.base import EXTRAS, score
from ifap.registry import Registry, entry_names
from ifap.study.data import DATASETS
from ifap.study.models import MODELS
from ifap.study.rivals import SPARSE
from ifap.study.tasks import TASKS
from ifap.view import trace

REGISTRIES = {
    "ifap.methods": METHODS, "ifap.study.models": MODELS, "ifap.study.data": DATASETS, "ifap.study.rivals": SPARSE,
    "ifap.study.tasks": TASKS,
}  # fmt: skip
OPTIONS = {"normalize": "layer", "site": "output"}


@pytest.mark.parametrize("package", REGISTRIES)
def test_names_in_files_are_the_names_of_the_registry(package):
    """`params.yaml` is checked with the first, without importing anything; stages use the second."""
    names = REGISTRIES[package].names()
    written = entry_names(package) | (entry_names("ifap.study.methods") if package == "ifap.methods" else set())
    assert names == sorted(written)
    assert names


@pytest.mark.parametrize("package", REGISTRIES)
def test_an_unknown_name_gives_the_nearest(package):
    registry = REGISTRIES[package]
    name = registry.names()[0]
    with pytest.raises(ConfigError) as error:
        registry.get(name[:-1] + "q")
    shown = ", ".join(registry.names()[:12])  # a long list ends with how many there are
    assert str(error.value).startswith(f"unknown {registry.kind} '{name[:-1]}q': did you mean '{name}'? Valid: {shown}")


def test_a_name_far_from_all_gets_no_guess():
    with pytest.raises(ConfigError, match=r"unknown method 'xyz': Valid: activation"):
        METHODS.get("xyz")


@pytest.mark.parametrize("package", REGISTRIES)
def test_a_name_is_taken_once(package):
    registry = REGISTRIES[package]
    name = registry.names()[0]
    before = registry.get(name)
    with pytest.raises(ConfigError, match=f"{registry.kind} '{name}' is registered twice"):
        registry.register(name)(object())
    assert registry.get(name) is before


def test_an_entry_is_one_file(tmp_path, monkeypatch):
    package = tmp_path / "made_up_things"
    package.mkdir()
    (package / "__init__.py").write_text("from ifap.registry import Registry\nTHINGS = Registry('thing', __name__)\n")
    (package / "one.py").write_text(
        'from made_up_things import THINGS\n\n\n@THINGS.register("one")\ndef one():\n    return 1\n'
    )
    (package / "two.py").write_text('from made_up_things import THINGS\n\nTHINGS.register("two")(\n    lambda: 2\n)\n')
    monkeypatch.syspath_prepend(tmp_path)
    things = importlib.import_module("made_up_things").THINGS
    try:
        assert "made_up_things.one" not in sys.modules
        assert entry_names("made_up_things") == {"one", "two"}
        assert "made_up_things.one" not in sys.modules
        assert things.names() == ["one", "two"]
        assert (things.get("one")(), things.get("two")()) == (1, 2)
    finally:
        for name in [name for name in sys.modules if name.startswith("made_up_things")]:
            del sys.modules[name]


def test_a_decorator_gives_back_what_it_registers():
    registry = Registry("thing", "ifap.study.tasks")
    function = registry.register("a")(len)
    assert function is len


# --- the methods ----------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    ).eval()


BATCHES = [torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)]
LABELLED = [(BATCHES[0], torch.tensor([0, 3]))]


def scored(name, network, batches=BATCHES, **options):
    """Score as `ifap.prune` would."""
    given = {"labelled": LABELLED, "loss": nn.functional.cross_entropy, "seed": 0, **OPTIONS, **options}
    graph, macs = trace(network, BATCHES[0][:1]), macs_by_module(network, BATCHES[0][:1])
    return score(METHODS.get(name), network, batches, **given, graph=graph, macs=macs)


@pytest.mark.parametrize("name", sorted({*METHODS.names()} - {"flow"}))  # which scores units: see test_fisher.py
def test_every_method_scores_every_unit(network, name):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = scored(name, network)
    widths = {layer: len(value) for layer, value in scores.items()}
    # Methods that rank whole units give the norm that follows a layer the scores of the layer.
    assert widths in ({"0": 6, "3": 5, "6": 4}, {"0": 6, "1": 6, "3": 5, "6": 4})
    assert "1" not in scores or torch.equal(scores["1"], scores["0"])
    for value in scores.values():
        assert torch.isfinite(value).all()
        assert (value >= 0).all()
    again = scored(name, network)
    assert all(torch.equal(scores[layer], again[layer]) for layer in scores)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_documented_and_has_one_signature(name):
    method = METHODS.get(name)
    assert inspect.getdoc(method)
    own = ["model", "batches", "normalize", "site", "seed"]
    named = list(inspect.signature(method).parameters)
    assert named[: len(own)] == own
    assert set(named[len(own) :]) <= set(EXTRAS)


def test_random_depends_on_the_seed_alone(network):
    random, graph = METHODS.get("random"), trace(network, BATCHES[0])
    first = random(network, BATCHES, **OPTIONS, seed=0, graph=graph)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(99)
    same = random(network, [], **OPTIONS, seed=0, graph=graph)
    assert all(torch.equal(first[layer], same[layer]) for layer in first)
    other = random(network, BATCHES, **OPTIONS, seed=1, graph=graph)
    assert not any(torch.equal(first[layer], other[layer]) for layer in first)


def test_magnitude_needs_no_data_and_is_the_norm_of_the_weights(network):
    scores = scored("magnitude", network, [], normalize="none")
    for layer, value in scores.items():
        weight = network[int(layer)].weight
        torch.testing.assert_close(value, weight.flatten(1).norm(dim=1).detach(), check_dtype=False)


def test_flow_depends_on_the_data(network):
    ifap = METHODS.get("ifap")
    one, other = (ifap(network, [batch], **OPTIONS, seed=0) for batch in (BATCHES[0], BATCHES[0].flip(0).square()))
    assert not any(torch.equal(one[layer], other[layer]) for layer in one)


# --- the controls ---------------------------------------------------------------------------------


def test_taylor_is_what_the_loss_loses_to_first_order(network):
    """The derivative along the removal of a unit's weights, by central differences in double precision."""
    network.double()
    inputs, targets = BATCHES[0].double(), LABELLED[0][1]
    given = {"labelled": [(inputs, targets)], "loss": nn.functional.cross_entropy, "graph": trace(network, inputs)}
    scores = METHODS.get("taylor")(network, [], normalize="none", site="output", seed=0, **given)
    for layer, unit in (("0", 2), ("3", 4), ("6", 1)):
        weight = network[int(layer)].weight
        row = weight[unit].detach().clone()
        losses = []
        for scale in (1 + 1e-5, 1 - 1e-5):
            with torch.no_grad():
                weight[unit] = scale * row
                losses.append(float(nn.functional.cross_entropy(network(inputs), targets)))
                weight[unit] = row
        assert float(scores[layer][unit]) == pytest.approx(abs(losses[0] - losses[1]) / 2e-5, rel=1e-3)


def test_taylor_is_the_mean_over_batches(network):
    halves = [(BATCHES[0][i : i + 1], LABELLED[0][1][i : i + 1]) for i in range(2)]
    one, two, both = (scored("taylor", network, labelled=part, normalize="none")
                      for part in (halves[:1], halves[1:], halves))  # fmt: skip
    for layer, value in both.items():
        torch.testing.assert_close(value, (one[layer] + two[layer]) / 2)


def test_taylor_leaves_gradients_and_flags_alone(network):
    network[0].weight.requires_grad_(False)
    network[3].weight.grad = torch.full_like(network[3].weight, 7.0)
    network.train()
    assert set(scored("taylor", network)) == {"0", "3", "6"}
    assert not network[0].weight.requires_grad
    assert network[0].weight.grad is None
    assert (network[3].weight.grad == 7).all()
    assert network.training
    assert int(network[1].num_batches_tracked) == 0


@pytest.mark.parametrize("missing", ["labelled", "loss"])
def test_taylor_says_which_argument_is_missing(network, missing):
    given = {"labelled": LABELLED, "loss": nn.functional.cross_entropy} | {missing: None}
    with pytest.raises(ScoreError, match=f"'taylor' needs labels and a loss: give {missing}="):
        ifap.prune(network, BATCHES[0], BATCHES, target=ifap.Target(macs=0.3), method="taylor", steps=1, **given)


def test_any_callable_is_a_method(network):
    @dataclasses.dataclass  # compared by its values, so that it cannot be a key
    class ByNorm:
        defaults: str = "of its own"

        def __call__(self, model, batches, **options):
            layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
            return {name: layer.weight.flatten(1).norm(dim=1) for name, layer in layers}

    pruned = ifap.prune(network, BATCHES[0], BATCHES, target=ifap.Target(macs=0.3), method=ByNorm(), steps=1)
    assert pruned.after.macs < pruned.before.macs


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, r"method 'made_up' must return a dict of layer to a tensor of scores, or an array .* not None"),
        ({"0": [1.0, 2.0]}, "method 'made_up' must give layer '0' a tensor of scores, not a list"),
        (np.array(["a", "b"]), "or an array of 11 numbers, one for each unit, not a ndarray"),
    ],
)
def test_what_is_no_scores_is_named_by_its_method(network, found, said):
    def made_up(model, batches, **options):
        return found

    with pytest.raises(ScoreError, match=said) as caught:
        ifap.prune(network, BATCHES[0], BATCHES, target=ifap.Target(macs=0.3), method=made_up, steps=1)
    assert "\n" not in str(caught.value)


def test_labels_that_the_loss_does_not_take_are_named_by_their_batch(network):
    labelled = [(inputs, torch.full((len(inputs),), 99)) for inputs in BATCHES]
    given = {"method": "taylor", "labelled": labelled, "loss": nn.functional.cross_entropy}
    with pytest.raises(ScoreError, match="the network or the loss fails on batch 1 of the labelled data: IndexError"):
        ifap.prune(network, BATCHES[0], BATCHES, target=ifap.Target(macs=0.3), steps=1, **given)


def test_calibration_data_without_values_are_named_by_their_batch(network):
    batches = [BATCHES[0], BATCHES[0].to("meta")]
    for method in ("ifap", "flow"):
        with pytest.raises(ScoreError, match="fails on batch 2 of the calibration data: NotImplementedError"):
            ifap.prune(network, BATCHES[0], batches, target=ifap.Target(macs=0.3), method=method, steps=1)


def test_taylor_through_the_loop_on_labels_of_a_split(network):
    split = Split("train", torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    batches = split.calibration(5, 2, seed=0)
    given = {"target": ifap.Target(macs=0.3), "steps": 2, "method": "taylor", "loss": nn.functional.cross_entropy}
    pruned = ifap.prune(network, BATCHES[0][:1], batches, labelled=batches.labelled, **given)
    assert pruned.after.reduction(pruned.before, "macs") >= 0.3
    with pytest.raises(SplitError, match="test split"):
        ifap.prune(network, BATCHES[0][:1], batches, labelled=Split("test", split.inputs, split.targets), **given)


def test_labelled_batches_are_the_calibration_batches_with_their_targets():
    split = Split("train", torch.arange(10.0), torch.arange(10) * 3)
    batches = split.calibration(7, 3, seed=1)
    assert len(batches) == len(batches.labelled) == 3
    for inputs, (same, targets) in zip(batches, batches.labelled, strict=True):
        assert torch.equal(inputs, same)
        assert torch.equal(targets, 3 * inputs.long())


def test_bn_scale_reads_the_norm_that_follows_and_else_the_weights(network):
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -2, 3, -4, 5, -6]))
    scores = scored("bn_scale", network, normalize="none")
    assert scores["0"].tolist() == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(scores["3"], network[3].weight.detach().flatten(1).norm(dim=1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network)


def test_bn_scale_ignores_a_norm_that_reads_something_else():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x).relu())

    model = Apart()
    scores = scored("bn_scale", model, normalize="none")
    torch.testing.assert_close(scores["conv"], model.conv.weight.detach().flatten(1).norm(dim=1))


def test_flow_is_activation_times_magnitude(network):
    flow, activation, magnitude = (
        scored(name, network, normalize="none") for name in ("ifap", "activation", "magnitude")
    )
    for layer, value in flow.items():
        torch.testing.assert_close(value, activation[layer] * magnitude[layer])


def test_uniform_takes_the_same_share_of_every_width():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 80, 3), nn.ReLU(), nn.Conv2d(80, 20, 1),
                        nn.ReLU(), nn.Flatten(), nn.Linear(320, 4))  # fmt: skip
    pruned = ifap.prune(net, BATCHES[0][:1], (), target=ifap.Target(macs=0.6), method="uniform", steps=1)
    widths = pruned.receipts[-1].widths
    shares = [widths[layer] / pruned.receipts[0].widths[layer] for layer in widths]
    assert max(shares) - min(shares) <= 1 / 20
    assert max(shares) < 0.8


# --- other flows ----------------------------------------------------------------------------------


def outputs_of(network, batches):
    """Return the outputs of the scored layers over all batches, shape (samples, units, positions)."""
    found = {}
    for number, layer in enumerate(network):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            value = network[: number + 1](torch.cat(batches)).detach()
            found[str(number)] = value.reshape(*value.shape[:2], -1)
    return found


UNEVEN = [BATCHES[0][:1] * 3 + 5, torch.cat([BATCHES[0].flip(0).square(), BATCHES[0]])]


def test_rms_flow_is_the_root_of_the_mean_squared_norm(network):
    scores = scored("ifap_rms", network, UNEVEN, normalize="none")
    for layer, value in outputs_of(network, UNEVEN).items():
        expected = value.square().sum(2).mean(0).sqrt() * network[int(layer)].weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(scores[layer], expected)


def test_centered_flow_takes_the_mean_off_over_all_batches(network):
    scores = scored("ifap_centered", network, UNEVEN, normalize="none")
    for layer, value in outputs_of(network, UNEVEN).items():
        spread = value - value.mean(dim=(0, 2), keepdim=True)
        expected = spread.square().sum(2).mean(0).sqrt() * network[int(layer)].weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(scores[layer], expected)


def test_centered_flow_does_not_see_a_bias_and_flow_does(network):
    layer = network[3]
    before = {name: scored(name, network, normalize="none")["3"] for name in ("ifap", "ifap_centered")}
    with torch.no_grad():
        layer.bias += 100.0
    torch.testing.assert_close(
        scored("ifap_centered", network, normalize="none")["3"], before["ifap_centered"], rtol=1e-3, atol=1e-4
    )
    assert (scored("ifap", network, normalize="none")["3"] > 10 * before["ifap"]).all()


def test_a_head_that_looks_everywhere_alike_has_no_centered_flow():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.Sequential()
    model.attention = attention
    model.forward = lambda x: attention(x, x, x)[0]
    with torch.no_grad():
        attention.in_proj_weight[:4] = 0  # the queries of head 0: its logits are all 0
        attention.in_proj_bias.zero_()
        attention.in_proj_weight[4:8] *= 5
    x = torch.randn(3, 6, 8)
    found = ifap.flow_scores(model, [x], normalize="none", statistic="centered", graph=trace(model, x))
    scores = found["attention.in_proj_weight"].reshape(3, 2, 4)  # queries, keys and values; heads; their width
    assert (scores[:, 0].abs() < 1e-6).all()
    assert (scores[:, 1] > 1e-3).all()
    assert (scores[:, 1] == scores[0, 1, 0]).all()


def test_flow_per_cost_divides_by_what_goes_with_a_unit(network):
    flow, per_cost = scored("ifap", network), scored("ifap_cost", network)
    # A channel of the first convolution: 27 weights at 36 positions, and 9 x 5 at 16 in the second.
    first, second = 27 * 36 + 9 * 5 * 16, 9 * 6 * 16 + 16 * 4
    mean = (6 * first + 5 * second) / 11
    torch.testing.assert_close(per_cost["0"], flow["0"] * mean / first)
    torch.testing.assert_close(per_cost["3"], flow["3"] * mean / second)
    assert torch.equal(per_cost["6"], flow["6"])  # what the network returns belongs to no unit


def test_an_unknown_statistic_gives_the_nearest(network):
    with pytest.raises(ifap.IfapError, match=r"statistic must be one of .*did you mean .rms."):
        ifap.flow_scores(network, BATCHES, statistic="rsm")


def test_units_inside_of_a_transformed_function_are_scored():
    """`torch.func` hands hooks tensors of its own, here of a gradient that is taken for each sample."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda each: self.energy(each).squeeze(-1)))(x)

    torch.manual_seed(0)
    x = torch.randn(4, 6)
    found = ifap.prune(Field(), x, [x], target=ifap.Target(macs=0.5), steps=1, method="ifap")
    assert found.model.energy[0].out_features <= 16
    assert found.proof.difference < 1e-6
