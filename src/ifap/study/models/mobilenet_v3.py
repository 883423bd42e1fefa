"""MobileNetV3-Large (Howard et al. 2019)."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import torchvision_network


@MODELS.register("mobilenet_v3_large")
def mobilenet_v3_large(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size works."""
    return torchvision_network("mobilenet_v3_large", "features.0.0", num_classes, in_channels)
