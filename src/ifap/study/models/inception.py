"""Inception-v3 (Szegedy et al. 2016), with its auxiliary head while it trains."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, torchvision_network

AUXILIARY_INPUT = 17  # rows and columns that the auxiliary head reads, at 299 pixels
AUXILIARY_POOLED = 5


class AuxiliaryHead(nn.Module):
    """Torchvision's auxiliary classifier, which also works on features of small images.

    Parameters
    ----------
    in_channels, num_classes : int
        Channels of the features, and classes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        from torchvision.models.inception import BasicConv2d

        super().__init__()
        self.conv0 = BasicConv2d(in_channels, 128, kernel_size=1)
        self.conv1 = BasicConv2d(128, 768, kernel_size=AUXILIARY_POOLED)
        self.fc = nn.Linear(768, num_classes)
        self.fc.stddev = 0.001  # type: ignore[assignment]  # read by torchvision when it draws the weights

    def forward(self, x: Tensor) -> Tensor:
        """Map features (batch, in_channels, height, width) to class scores (batch, num_classes)."""
        if min(x.shape[-2:]) >= AUXILIARY_INPUT:
            x = functional.avg_pool2d(x, kernel_size=5, stride=3)
        else:
            x = functional.adaptive_avg_pool2d(x, AUXILIARY_POOLED)
        x = functional.adaptive_avg_pool2d(self.conv1(self.conv0(x)), 1)
        scores: Tensor = self.fc(x.flatten(1))
        return scores


@MODELS.register("inception_v3")
def inception_v3(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images of 75 pixels or more; the published size is 299.

    In training mode it returns a named tuple: the class scores and those of the auxiliary head.
    """
    from torchvision.models import inception

    check_size("inception_v3", image_size, smallest=75)
    blocks = [getattr(inception, name) for name in ("BasicConv2d", *(f"Inception{letter}" for letter in "ABCDE"))]
    return torchvision_network(
        "inception_v3",
        "Conv2d_1a_3x3.conv",
        num_classes,
        in_channels,
        inception_blocks=[*blocks, AuxiliaryHead],
        init_weights=True,
        # The published weights were trained on colours from -1 to 1: this undoes the usual statistics of ImageNet.
        transform_input=in_channels == 3,
    )
