"""The networks of torchvision, for other inputs and classes."""

from __future__ import annotations

from torch import nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network

VGG_STRIDE = 32
VGG_POOLED = 7  # rows and columns that the published head reads, at 224 pixels
VGG_WIDTH, VGG_HIDDEN = 512, 4096
PATCH = 16


@MODELS.register("convnext_small")
def convnext_small(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ConvNeXt-Small (Liu et al. 2022), for images of 32 pixels or more."""
    check_size("convnext_small", image_size, smallest=32)
    return torchvision_network("convnext_small", "features.0.0", num_classes, in_channels)


@MODELS.register("densenet121")
def densenet121(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return DenseNet-121 (Huang et al. 2017), for images of 29 pixels or more."""
    check_size("densenet121", image_size, smallest=29)
    return torchvision_network("densenet121", "features.conv0", num_classes, in_channels)


@MODELS.register("efficientnet_b4")
def efficientnet_b4(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return EfficientNet-B4 (Tan and Le 2019), for images of any size; the published one is 380 pixels."""
    return torchvision_network("efficientnet_b4", "features.0.0", num_classes, in_channels)


@MODELS.register("efficientnet_v2_s")
def efficientnet_v2_s(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return EfficientNetV2-S (Tan and Le 2021), for images of any size; the published one is 384 pixels."""
    return torchvision_network("efficientnet_v2_s", "features.0.0", num_classes, in_channels)


@MODELS.register("mobilenet_v3_large")
def mobilenet_v3_large(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return MobileNetV3-Large (Howard et al. 2019), for images of any size."""
    return torchvision_network("mobilenet_v3_large", "features.0.0", num_classes, in_channels)


@MODELS.register("resnet50")
def resnet50(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ResNet-50 (He et al. 2016) with the stride in the 3x3 convolution, for images of any size."""
    return torchvision_network("resnet50", "conv1", num_classes, in_channels)


@MODELS.register("shufflenet_v2_x2_0")
def shufflenet_v2_x2_0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ShuffleNetV2 of twice the width (Ma et al. 2018), for images of any size."""
    return torchvision_network("shufflenet_v2_x2_0", "conv1.0", num_classes, in_channels)


@MODELS.register("vgg19_bn")
def vgg19_bn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return VGG-19 with batch norm (Simonyan and Zisserman 2015), for images of 32 pixels or more.

    Below 224 pixels the head reads the positions that there are, as VGG networks for small images
    do; torchvision would repeat them to 7 x 7 and spend 103 million weights on the copies.
    """
    check_size("vgg19_bn", image_size, smallest=VGG_STRIDE)
    network = torchvision_network("vgg19_bn", "features.0", num_classes, in_channels)
    side = min(VGG_POOLED, image_size // VGG_STRIDE)
    if side < VGG_POOLED:
        network.add_module("avgpool", nn.AdaptiveAvgPool2d(side))
        first = nn.Linear(VGG_WIDTH * side**2, VGG_HIDDEN)
        nn.init.normal_(first.weight, 0, 0.01)
        nn.init.zeros_(first.bias)
        network.set_submodule("classifier.0", first)
    return network


@MODELS.register("vit_b_16")
def vit_b_16(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ViT-Base (Dosovitskiy et al. 2021), for images of that size alone: a multiple of 16 pixels."""
    check_size("vit_b_16", image_size, smallest=PATCH, multiple=PATCH)
    return torchvision_network("vit_b_16", "conv_proj", num_classes, in_channels, image_size=image_size)
