"""SegFormer's decoder (Xie et al. 2021) on a plain vision transformer: features of four depths, one all-MLP head.

The published SegFormer reads a pyramid of strides 4 to 32. A plain transformer has one stride, that of
its patches: its features of four depths are brought to stride 4, where the head works.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.parts import check_size, vision_transformer

STRIDE = 4
PATCH, TINY_PATCH = 16, 8


class AllMlpHead(nn.Module):
    """Project features of several depths to one width, join them, and classify every position.

    The published head joins by one layer over all projections side by side. The same product is done
    here in parts, one for each projection, and added up: each projection then has a width of its own.

    Parameters
    ----------
    widths : list of int
        Channels of the features.
    inner : int
        Channels that each is projected to.
    num_classes : int
        Classes.
    """

    def __init__(self, widths: list[int], inner: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Conv2d(width, inner, 1) for width in widths])
        self.fuse = nn.ModuleList([nn.Conv2d(inner, inner, 1, bias=False) for _ in widths])
        self.norm = nn.BatchNorm2d(inner)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(0.1)
        self.classify = nn.Conv2d(inner, num_classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Map features (batch, width, rows, columns) to class scores (batch, num_classes, *size)."""
        joined: Any = sum(
            fuse(functional.interpolate(project(x), size, mode="bilinear", align_corners=False))
            for project, fuse, x in zip(self.project, self.fuse, features, strict=True)
        )
        joined = self.act(self.norm(joined))
        return cast("Tensor", self.classify(self.dropout(joined)))


class ViTSegFormer(nn.Module):
    """A vision transformer of timm and an `AllMlpHead` over four of its depths.

    Parameters
    ----------
    image_size, patch, in_channels : int
        Side of an image and of a patch, in pixels, and channels of an image.
    width, depth, heads, inner : int
        Width, layers and heads of the transformer, and width of the head.
    num_classes : int
        Classes.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        num_classes: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        inner: int,
    ) -> None:
        super().__init__()
        self.backbone = vision_transformer(image_size, in_channels, patch=patch, width=width, depth=depth, heads=heads)
        self.backbone.norm = nn.Identity()  # features of all depths are read as they are
        self.depths = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        self.head = AllMlpHead([width] * 4, inner, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (batch, in_channels, side, side) to ``{"out": scores}`` (batch, num_classes, side, side)."""
        height, width = x.shape[-2:]
        features = self.backbone.forward_intermediates(x, indices=self.depths, intermediates_only=True)  # type: ignore[operator]
        scores = self.head(features, (height // STRIDE, width // STRIDE))
        return {"out": functional.interpolate(scores, (height, width), mode="bilinear", align_corners=False)}


@MODELS.register("segformer_vit_b_16")
def segformer_vit_b_16(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network: ViT-Base/16 and a head of width 768, for one size, a multiple of 16 pixels."""
    check_size("segformer_vit_b_16", image_size, smallest=PATCH, multiple=PATCH)
    return ViTSegFormer(image_size, in_channels, num_classes, patch=PATCH, width=768, depth=12, heads=12, inner=768)


@MODELS.register("segformer_tiny")
def segformer_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network: patches of 8 x 8 pixels, four layers of four heads, width 64."""
    check_size("segformer_tiny", image_size, smallest=TINY_PATCH, multiple=TINY_PATCH)
    return ViTSegFormer(image_size, in_channels, num_classes, patch=TINY_PATCH, width=64, depth=4, heads=4, inner=32)
