"""A small MobileNetV3: depthwise convolutions, squeeze-and-excitation and hard-swish."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import nn

from ifap.study.models.base import MODELS

# Input channels, kernel, expanded channels, output channels, squeeze-and-excitation, activation, stride.
BLOCKS = (
    (16, 3, 16, 16, True, "RE", 1),
    (16, 3, 64, 24, False, "RE", 2),
    (24, 3, 72, 24, False, "RE", 1),
    (24, 5, 96, 40, True, "HS", 2),
    (40, 5, 120, 40, True, "HS", 1),
)
LAST = 128


@MODELS.register("mobilenet_tiny")
def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size of 8 pixels or more works."""
    # torchvision takes seconds to import, which listing the models should not.
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [InvertedResidualConfig(*row, dilation=1, width_mult=1.0) for row in BLOCKS]
    # The published momentum of 0.01 needs thousands of steps to settle; these data give hundreds.
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
    network = cast("nn.Module", MobileNetV3(blocks, LAST, num_classes=num_classes, norm_layer=norm, dropout=0.1))
    stem = network.get_submodule("features.0")
    assert isinstance(stem, nn.Sequential)
    first = nn.Conv2d(in_channels, BLOCKS[0][0], 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out")
    stem[0] = first
    return network
