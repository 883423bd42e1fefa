"""DenseNet-121 (Huang et al. 2017): every layer of a block reads all features before it."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network


@MODELS.register("densenet121")
def densenet121(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of 29 pixels or more."""
    check_size("densenet121", image_size, smallest=29)
    return torchvision_network("densenet121", "features.conv0", num_classes, in_channels)
