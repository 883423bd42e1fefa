"""The example of docs/extending.md is a method: taken from the page, it does what the page says."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, prune
from torch import nn
from workflow_project import ROOT

import ifap
from ifap.data import Split
from ifap.methods import METHODS
from ifap.registry import entry_names
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.rivals import MaskOptions
from ifap.study.rivals import SPARSE, Context
from ifap.study.tasks import TASKS
from ifap.view import trace


def from_page(name, registry, tmp_path, monkeypatch):
    """Import the code block of the page that registers `name` as a file of its own."""
    registry.names()  # what the package registers itself comes first
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (block,) = [block for block in blocks if f'.register("{name}")' in block]
    package = tmp_path / "page_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / f"{name}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield importlib.import_module(f"page_methods.{name}")
    for name in [name for name in sys.modules if name.startswith("page_methods")]:
        del sys.modules[name]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The method that scores units."""
    yield from from_page("fpgm", METHODS, tmp_path, monkeypatch)


@pytest.fixture
def training_example(tmp_path, monkeypatch):
    """The method that trains."""
    yield from from_page("random_mask", SPARSE, tmp_path, monkeypatch)


def test_the_example_is_found_by_its_name_and_is_short(example):
    assert entry_names("page_methods") == {"fpgm"}
    assert METHODS.get("fpgm") is example.fpgm
    lines = [line for line in Path(example.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_example_scores_what_it_says(example):
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0], [3, 4], [0, 0]]))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2))
    graph = trace(model, torch.zeros(1, 2))
    scores = example.fpgm(model, [], normalize="none", site="output", seed=0, graph=graph)["0"]
    torch.testing.assert_close(scores, torch.tensor([5.0, 10.0, 5.0]) / 3)


@pytest.mark.parametrize("name", ["residual", "grouped", "self_attention_batch_first", "fused_qkv"])
def test_the_example_prunes(example, name):
    net = NETWORKS[name]
    pruned = prune(net.build(), net.inputs(), macs=0.4, method="fpgm")
    assert pruned.after.reduction(pruned.before, "macs") >= 0.4
    assert pruned.after == ifap.cost(pruned.model, net.inputs())


def test_the_example_that_trains_meets_its_target(training_example):
    assert SPARSE.get("random_mask") is not None
    lines = [line for line in Path(training_example.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) <= 30
    net = NETWORKS["residual"]
    data = Split("train", torch.cat([net.inputs()] * 8), torch.arange(16) % 4)
    recipe = TrainingOptions(
        epochs=2, batch_size=8, optimizer="sgd", lr=0.1, weight_decay=0.0, warmup_epochs=0, label_smoothing=0.0,
        augment=False,
    )  # fmt: skip
    found = SPARSE.get("random_mask")(
        Context(
            build=net.build,
            baseline=net.build,
            example_inputs=net.inputs(),
            train=data,
            validation=dataclasses.replace(data, role="validation"),
            task=TASKS.get("classification"),
            options=MaskOptions(),
            target=ifap.Target(macs=0.5),
            recipe=recipe,
            seed=0,
        )
    )
    assert 0.49 < found.events[-1].macs / ifap.cost(net.build(), net.inputs()).macs <= 0.5
    assert not any(found.model.get_parameter(name)[~mask].any() for name, mask in found.masks.items())
