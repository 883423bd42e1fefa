"""VGG-19 with batch norm (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network

STRIDE = 32
POOLED = 7  # rows and columns that the published head reads, at 224 pixels
WIDTH, HIDDEN = 512, 4096


@MODELS.register("vgg19_bn")
def vgg19_bn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of 32 pixels or more.

    Below 224 pixels the head reads the positions that there are, as VGG networks for small images
    do; torchvision would repeat them to 7 x 7 and spend 103 million weights on the copies.
    """
    check_size("vgg19_bn", image_size, smallest=STRIDE)
    network = torchvision_network("vgg19_bn", "features.0", num_classes, in_channels)
    side = min(POOLED, image_size // STRIDE)
    if side < POOLED:
        network.add_module("avgpool", nn.AdaptiveAvgPool2d(side))
        first = nn.Linear(WIDTH * side**2, HIDDEN)
        nn.init.normal_(first.weight, 0, 0.01)
        nn.init.zeros_(first.bias)
        network.set_submodule("classifier.0", first)
    return network
