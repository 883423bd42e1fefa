"""A small residual network: three stages of two basic blocks, widths 16, 32 and 64."""

from __future__ import annotations

from torch import Tensor, nn

from ifap.study.models.base import MODELS
from ifap.study.models.resnet import WIDTHS, BasicBlock

BLOCKS = 2


class Block(BasicBlock):
    """A block whose shortcut is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )


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
