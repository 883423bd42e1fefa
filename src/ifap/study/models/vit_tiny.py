"""A small vision transformer: patches of 8 x 8 pixels, four layers of four heads, width 64."""

from __future__ import annotations

import math
from typing import cast

from torch import nn

from ifap.study.models.base import MODELS

PATCH = 8
WIDTH = 64


@MODELS.register("vit_tiny")
def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; the image size must be a multiple of the patch."""
    # torchvision takes seconds to import, which listing the models should not.
    from torchvision.models import VisionTransformer

    network = cast(
        "nn.Module",
        VisionTransformer(
            image_size=image_size,
            patch_size=PATCH,
            num_layers=4,
            num_heads=4,
            hidden_dim=WIDTH,
            mlp_dim=2 * WIDTH,
            num_classes=num_classes,
        ),
    )
    patches = nn.Conv2d(in_channels, WIDTH, PATCH, stride=PATCH)
    nn.init.trunc_normal_(patches.weight, std=math.sqrt(1 / (in_channels * PATCH**2)))
    assert patches.bias is not None
    nn.init.zeros_(patches.bias)
    network.add_module("conv_proj", patches)
    return network
