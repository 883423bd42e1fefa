"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, for small devices."""

from __future__ import annotations

from typing import cast

from torch import nn

from ifap.study.models.base import MODELS


@MODELS.register("efficientnet_lite0")
def efficientnet_lite0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return EfficientNet-Lite0 as timm builds it, for images of any size; the published one is 224 pixels."""
    # timm takes seconds to import, which listing the models should not.
    import timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, in_chans=in_channels)
    return cast("nn.Module", network)
