"""FCN (Long et al. 2015) on VGG-19 with batch norm: the features of the classifier and torchvision's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, fit_stem

STRIDE = 32
WIDTH = 512  # channels of the last features
TINY, TINY_WIDTH = (16, "M", 32, "M", 64, "M"), 64
"""Widths of the small network's convolutions; M halves rows and columns."""


@MODELS.register("fcn_vgg19_bn")
def fcn_vgg19_bn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of 32 pixels or more, of any shape.

    It returns ``{"out": scores}`` of shape (batch, num_classes, height, width).
    """
    # torchvision takes seconds to import, which listing the models should not.
    from torchvision.models.vgg import cfgs

    check_size("fcn_vgg19_bn", image_size, smallest=STRIDE)
    return _network(cfgs["E"], WIDTH, num_classes, in_channels)


@MODELS.register("fcn_tiny")
def fcn_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network: three convolutions and the same head, of stride 8."""
    check_size("fcn_tiny", image_size, smallest=8)
    return _network(TINY, TINY_WIDTH, num_classes, in_channels)


def _network(widths: Sequence[int | str], width: int, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead
    from torchvision.models.vgg import make_layers

    features = make_layers(list(widths), batch_norm=True)
    for module in features.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision draws the weights of the classifier
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast("nn.Parameter", module.bias))
    fit_stem(features, "0", in_channels)
    backbone = IntermediateLayerGetter(features, {str(len(features) - 1): "out"})
    return cast("nn.Module", FCN(backbone, FCNHead(width, num_classes)))
