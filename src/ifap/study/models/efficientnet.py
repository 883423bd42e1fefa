"""EfficientNet-B4 and EfficientNetV2-S (Tan and Le 2019, 2021); their published sizes are 380 and 384 pixels."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import torchvision_network

STEM = "features.0.0"


@MODELS.register("efficientnet_b4")
def efficientnet_b4(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size works."""
    return torchvision_network("efficientnet_b4", STEM, num_classes, in_channels)


@MODELS.register("efficientnet_v2_s")
def efficientnet_v2_s(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size works."""
    return torchvision_network("efficientnet_v2_s", STEM, num_classes, in_channels)
