"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, for small devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ifap.study.models.base import MODELS

STRIDES = (2, 4, 8, 16, 32)  # of the features that the network has in between


@MODELS.register("efficientnet_lite0")
def efficientnet_lite0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return EfficientNet-Lite0 as timm builds it, for images of any size; the published one is 224 pixels."""
    # timm takes seconds to import, which listing the models should not.
    import timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, in_chans=in_channels)
    return cast("nn.Module", network)


def features(in_channels: int, strides: Sequence[int]) -> tuple[nn.Module, list[int]]:
    """Return the network without its head, untrained, as the backbone of a detector.

    Parameters
    ----------
    in_channels : int
        Channels of an image.
    strides : sequence of int
        Of the features that it returns, in rising order; each one of `STRIDES`.

    Returns
    -------
    backbone : nn.Module
        Maps images to a list of features. Its tensors have the names that they have in the whole network.
    widths : list of int
        Channels of the features.
    """
    import timm

    network: Any = timm.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        in_chans=in_channels,
        out_indices=tuple(STRIDES.index(stride) for stride in strides),
    )
    return network, list(network.feature_info.channels())
