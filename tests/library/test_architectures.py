"""Networks of well-known families lose 65 % of their multiply-accumulates, run, learn and come back from disk."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, build
from networks import prune

import ifap

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name, tmp_path):
    model = build(name)
    pruned = prune(model, X[:1], [X], macs=0.65, steps=3, min_units=2)
    assert 0.65 <= pruned.after.reduction(pruned.before, "macs") <= 0.66
    assert pruned.after == ifap.cost(pruned.model, X[:1])
    assert pruned.before == ifap.cost(model, X[:1])
    outputs = pruned.model.train()(X)
    assert outputs.shape == (2, 10)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.model.parameters())
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: build(name))
    with torch.no_grad():
        assert torch.equal(loaded(X), pruned.model.eval()(X))
