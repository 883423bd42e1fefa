"""ViT-Base with patches of 16 x 16 pixels (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network

PATCH = 16


@MODELS.register("vit_b_16")
def vit_b_16(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of that size alone: a multiple of 16 pixels."""
    check_size("vit_b_16", image_size, smallest=PATCH, multiple=PATCH)
    return torchvision_network("vit_b_16", "conv_proj", num_classes, in_channels, image_size=image_size)
