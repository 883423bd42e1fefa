"""The example of docs/extending.md is a method: taken from the page, it does what the page says."""

from __future__ import annotations

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
from ifap.methods import METHODS
from ifap.registry import entry_names


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Import the first code block of the page as a file of its own."""
    METHODS.names()  # what the package registers itself comes first
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    package = tmp_path / "page_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "fpgm.py").write_text(block[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    yield importlib.import_module("page_methods.fpgm")
    for name in [name for name in sys.modules if name.startswith("page_methods")]:
        del sys.modules[name]


def test_the_example_is_found_by_its_name_and_is_short(example):
    assert entry_names("page_methods") == {"fpgm"}
    assert METHODS.get("fpgm") is example.fpgm
    lines = [line for line in Path(example.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_example_scores_what_it_says(example):
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0], [3, 4], [0, 0]]))
    scores = example.fpgm(nn.Sequential(layer), [], normalize="none", site="output", seed=0)["0"]
    torch.testing.assert_close(scores, torch.tensor([5.0, 10.0, 5.0]) / 3)


@pytest.mark.parametrize("name", ["residual", "grouped", "self_attention_batch_first", "fused_qkv"])
def test_the_example_prunes(example, name):
    net = NETWORKS[name]
    pruned = prune(net.build(), net.inputs(), macs=0.4, method="fpgm")
    assert pruned.after.reduction(pruned.before, "macs") >= 0.4
    assert pruned.after == ifap.cost(pruned.model, net.inputs())
