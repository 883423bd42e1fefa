"""Networks of well-known families lose 65 % of their multiply-accumulates, run, learn and come back from disk."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from networks import prune

import ifap

models = pytest.importorskip("torchvision.models")

# Small ones of each family: what their layers do to one another does not depend on depth or width.
NAMES = ["resnet18", "densenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext", "vit", "resnext"]
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name):
    torch.manual_seed(0)
    if name == "densenet":
        return models.DenseNet(growth_rate=16, block_config=(3, 6, 4), num_init_features=32, num_classes=10)
    if name == "convnext":
        widths = [48, 96, 192, 384]
        settings = [models.convnext.CNBlockConfig(*pair, 2) for pair in pairwise([*widths, None])]
        return models.ConvNeXt(settings, num_classes=10)
    if name == "vit":
        return models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=4, num_heads=12, hidden_dim=192, mlp_dim=768, num_classes=10
        )
    if name == "resnext":
        return models.ResNet(models.resnet.Bottleneck, [2, 2, 2, 2], num_classes=10, groups=32, width_per_group=4)
    return models.get_model(name, weights=None, num_classes=10)


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
