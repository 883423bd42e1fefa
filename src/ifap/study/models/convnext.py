"""ConvNeXt-Small (Liu et al. 2022)."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network


@MODELS.register("convnext_small")
def convnext_small(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of 32 pixels or more."""
    check_size("convnext_small", image_size, smallest=32)
    return torchvision_network("convnext_small", "features.0.0", num_classes, in_channels)
