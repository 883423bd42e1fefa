"""Registries: what their files register is what they offer, and a wrong name gives the nearest."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch
from torch import nn

from ifap.datasets import DATASETS
from ifap.errors import ConfigError
from ifap.methods import METHODS
from ifap.models import MODELS
from ifap.registry import Registry, entry_names
from ifap.sparse import SPARSE
from ifap.tasks import TASKS

REGISTRIES = {
    "ifap.methods": METHODS, "ifap.models": MODELS, "ifap.datasets": DATASETS, "ifap.sparse": SPARSE,
    "ifap.tasks": TASKS,
}  # fmt: skip
OPTIONS = {"normalize": "layer", "site": "output"}


@pytest.mark.parametrize("package", REGISTRIES)
def test_names_in_files_are_the_names_of_the_registry(package):
    """`params.yaml` is checked with the first, without importing anything; stages use the second."""
    names = REGISTRIES[package].names()
    assert names == sorted(entry_names(package))
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
    with pytest.raises(ConfigError, match=r"unknown method 'xyz': Valid: ifap"):
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
    registry = Registry("thing", "ifap.tasks")
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


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_scores_every_unit(network, name):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = METHODS.get(name)(network, BATCHES, **OPTIONS, seed=0)
    assert {layer: len(value) for layer, value in scores.items()} == {"0": 6, "3": 5, "6": 4}
    for value in scores.values():
        assert torch.isfinite(value).all()
        assert (value >= 0).all()
    again = METHODS.get(name)(network, BATCHES, **OPTIONS, seed=0)
    assert all(torch.equal(scores[layer], again[layer]) for layer in scores)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_documented_and_has_one_signature(name):
    method = METHODS.get(name)
    assert inspect.getdoc(method)
    assert list(inspect.signature(method).parameters) == ["model", "batches", "normalize", "site", "seed"]


def test_random_depends_on_the_seed_alone(network):
    random = METHODS.get("random")
    first = random(network, BATCHES, **OPTIONS, seed=0)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(99)
    same = random(network, [], **OPTIONS, seed=0)
    assert all(torch.equal(first[layer], same[layer]) for layer in first)
    other = random(network, BATCHES, **OPTIONS, seed=1)
    assert not any(torch.equal(first[layer], other[layer]) for layer in first)


def test_magnitude_needs_no_data_and_is_the_norm_of_the_weights(network):
    scores = METHODS.get("magnitude")(network, [], normalize="none", site="output", seed=0)
    for layer, value in scores.items():
        weight = network[int(layer)].weight
        torch.testing.assert_close(value, weight.flatten(1).norm(dim=1).detach(), check_dtype=False)


def test_flow_depends_on_the_data(network):
    ifap = METHODS.get("ifap")
    one, other = (ifap(network, [batch], **OPTIONS, seed=0) for batch in (BATCHES[0], BATCHES[0].flip(0).square()))
    assert not any(torch.equal(one[layer], other[layer]) for layer in one)
