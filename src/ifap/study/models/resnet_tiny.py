"""A small residual network: three stages of two basic blocks, widths 16, 32 and 64."""

from __future__ import annotations

from torch import Tensor, nn

from ifap.study.models.base import MODELS

WIDTHS = (16, 32, 64)
BLOCKS = 2


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        inner = self.act1(self.norm1(self.conv1(x)))
        out: Tensor = self.act2(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


class ResNetTiny(nn.Module):
    """Stem of stride 2, residual stages, global mean, linear head."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, WIDTHS[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        width = WIDTHS[0]
        for stage, channels in enumerate(WIDTHS):
            for block in range(BLOCKS):
                blocks.append(Block(width, channels, stride=2 if stage > 0 and block == 0 else 1))
                width = channels
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, in_channels, height, width) to class scores (batch, num_classes)."""
        scores: Tensor = self.head(self.flatten(self.pool(self.stages(self.stem(x)))))
        return scores


@MODELS.register("resnet_tiny")
def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; any image size of 8 pixels or more works."""
    return ResNetTiny(num_classes, in_channels)
