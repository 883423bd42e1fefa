"""Small networks of the families that torchvision brings."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

# What their layers do to one another does not depend on depth or width.
NAMES = ["resnet18", "densenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext", "vit", "resnext"]


def build(name):
    models = pytest.importorskip("torchvision.models")
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
