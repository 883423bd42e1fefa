"""ResNet-50 (He et al. 2016): bottleneck blocks, as in torchvision with the stride in the 3x3 convolution."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import torchvision_network


@MODELS.register("resnet50")
def resnet50(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size works."""
    return torchvision_network("resnet50", "conv1", num_classes, in_channels)
