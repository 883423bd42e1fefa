"""ShuffleNetV2 of twice the width (Ma et al. 2018)."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import torchvision_network


@MODELS.register("shufflenet_v2_x2_0")
def shufflenet_v2_x2_0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size works."""
    return torchvision_network("shufflenet_v2_x2_0", "conv1.0", num_classes, in_channels)
