"""Well-known networks lose 65 % of their multiply-accumulates, run, learn and come back from disk."""

from __future__ import annotations

import pytest
import torch
from networks import prune

import ifap

models = pytest.importorskip("torchvision.models")

STEPS = {
    "resnet18": 10,
    "densenet121": 3,
    "mobilenet_v3_large": 10,
    "shufflenet_v2_x1_0": 10,
    "convnext_tiny": 3,
    "vit_b_16": 3,
    "resnext50_32x4d": 3,
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name):
    torch.manual_seed(0)
    if name == "vit_b_16":  # its shape at a quarter of its width
        return models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=12, num_heads=12, hidden_dim=192, mlp_dim=768, num_classes=10
        )
    return models.get_model(name, weights=None, num_classes=10)


@pytest.mark.parametrize("name", STEPS)
def test_architecture(name, tmp_path):
    model = build(name)
    pruned = prune(model, X[:1], [X], macs=0.65, steps=STEPS[name], min_units=2)
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
