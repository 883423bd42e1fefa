"""The residual networks of He et al. (2016) for CIFAR: three stages of equal depth, widths 16, 32 and 64.

A stage's first block halves the image and doubles the width; its shortcut takes every other pixel and has zeros for
the new channels, so that it has no parameters (their option A).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input, which a `shortcut` gives the shape of their output."""

    shortcut: nn.Module

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        inner = self.act1(self.norm1(self.conv1(x)))
        out: Tensor = self.act2(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


class _Padding(nn.Module):
    """Take every other pixel, and add channels of zeros."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))


class Block(BasicBlock):
    """A block whose shortcut has no parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        added = channels - in_channels
        self.shortcut = _Padding(added, stride) if added else nn.Identity()


class ResNetCifar(nn.Module):
    """A 3x3 convolution, three stages of `blocks` blocks each, global mean, linear head."""

    def __init__(self, num_classes: int, in_channels: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU()
        layers, width = [], WIDTHS[0]
        for channels in WIDTHS:
            for _ in range(blocks):
                layers.append(Block(width, channels, stride=1 if width == channels else 2))
                width = channels
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, in_channels, height, width) to class scores (batch, num_classes)."""
        features = self.pool(self.blocks(self.act1(self.norm1(self.conv1(x)))))
        scores: Tensor = self.head(features.flatten(1))
        return scores


@MODELS.register("resnet20")
def resnet20(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ResNet-20, for images of any size; the published one is 32 pixels."""
    return ResNetCifar(num_classes, in_channels, blocks=3)


@MODELS.register("resnet56")
def resnet56(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return ResNet-56, for images of any size; the published one is 32 pixels."""
    return ResNetCifar(num_classes, in_channels, blocks=9)
