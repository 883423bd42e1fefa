"""U-Net (Ronneberger et al. 2015) with a ResNet-50 as its encoder; from segmentation-models-pytorch."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size

STRIDE = 32


@MODELS.register("unet_resnet50")
def unet_resnet50(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; sides of an image are multiples of 32 pixels.

    It returns ``{"out": scores}`` of shape (batch, num_classes, height, width).
    """
    check_size("unet_resnet50", image_size, smallest=STRIDE, multiple=STRIDE)
    return cast("nn.Module", _unet()("resnet50", encoder_weights=None, in_channels=in_channels, classes=num_classes))


@MODELS.register("unet_tiny")
def unet_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network: two stages of ResNet-18, of stride 8, and decoder widths 32, 16 and 16."""
    check_size("unet_tiny", image_size, smallest=8, multiple=8)
    network = _unet()(
        "resnet18",
        encoder_depth=3,
        encoder_weights=None,
        decoder_channels=(32, 16, 16),
        in_channels=in_channels,
        classes=num_classes,
    )
    # The library keeps the stages that such an encoder never runs.
    del network.encoder.layer3, network.encoder.layer4
    return cast("nn.Module", network)


@cache
def _unet() -> Any:
    # segmentation-models-pytorch takes seconds to import, which listing the models should not.
    from segmentation_models_pytorch import Unet

    class NamedUnet(Unet):  # type: ignore[misc]
        """The library's U-Net, whose output has a name, as that of torchvision's segmentation networks."""

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(x)}

    return NamedUnet
