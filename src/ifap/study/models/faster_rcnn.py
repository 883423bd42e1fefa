"""Faster R-CNN (Ren et al. 2015) with a feature pyramid; from torchvision, small ones on other backbones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ifap.study.models.base import MODELS
from ifap.study.models.detection import Detections, Detector, Target
from ifap.study.models.efficientnet_lite0 import features
from ifap.study.models.parts import check_size, fit_stem

STRIDE = 32
PROPOSALS = 1000  # boxes an image that the second stage looks at, at most: torchvision's number in evaluation
TINY_WIDTHS = (16, 32, 48, 64)


@dataclass(frozen=True)
class Sizes:
    """What small networks differ in."""

    neck: int  # Width of the pyramid.
    hidden: int  # Width of the second stage.
    proposals: int  # Boxes an image that the second stage looks at in evaluation; twice as many in training.
    detections: int  # Boxes an image that are returned at most.
    anchors: tuple[tuple[int, ...], ...]  # Sides of the anchors in pixels, at each level of the pyramid.


# Strides 4, 8 and 16, and the one that the pyramid adds.
TINY = Sizes(neck=32, hidden=64, proposals=64, detections=20, anchors=((8,), (16,), (32,), (64,)))
# Strides 8, 16 and 32, and the one that the pyramid adds.
LITE0 = Sizes(neck=64, hidden=256, proposals=128, detections=100, anchors=((16, 24), (32, 48), (64, 96), (128, 192)))


class FasterRCNN(Detector):
    """Torchvision's Faster R-CNN, called as the other detectors are.

    Parameters
    ----------
    network : nn.Module
        ``torchvision.models.detection.FasterRCNN``, which counts "nothing" as class 0.
    proposals : int
        Boxes an image for which the second stage is counted.
    """

    def __init__(self, network: nn.Module, proposals: int) -> None:
        super().__init__()
        self.network: Any = network
        self.proposals = proposals

    def dense(self, images: Tensor) -> list[Tensor]:
        """Return both stages' scores and offsets, the second's for `proposals` boxes, each the whole image.

        Every level of the pyramid is pooled for every box, as any of them may be: what the levels
        have in common with each other and with the second stage is then seen in the trace.
        """
        from torchvision.ops import roi_align

        levels = list(self.network.backbone(images).values())
        scores, offsets = self.network.rpn.head(levels)
        pool = self.network.roi_heads.box_roi_pool
        height, width = images.shape[-2:]
        boxes = torch.tensor([0.0, 0, 0, width, height], device=images.device, dtype=images.dtype)
        boxes = boxes.repeat(len(images) * self.proposals, 1)
        boxes[:, 0] = torch.arange(len(images), device=images.device).repeat_interleave(self.proposals)
        # The coarsest level stands for no box: the pyramid adds it for the first stage alone.
        pooled = sum(
            roi_align(level, boxes, pool.output_size, level.shape[-1] / width, pool.sampling_ratio)
            for level in levels[: len(pool.featmap_names)]
        )
        heads = self.network.roi_heads
        return [*scores, *offsets, *heads.box_predictor(heads.box_head(pooled))]

    def detect(self, images: Tensor) -> list[Detections]:
        """See `Detector`."""
        return [{**found, "labels": found["labels"] - 1} for found in self.network(list(images))]

    def compare(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the four losses of torchvision."""
        shifted = [{"boxes": target["boxes"].to(images), "labels": target["labels"] + 1} for target in targets]
        stages = (self.network, self.network.rpn, self.network.roi_heads, self.network.transform)
        before = [stage.training for stage in stages]
        # Only what chooses samples and losses trains; norms and dropout keep their mode.
        for stage in stages:
            stage.training = True
        try:
            return cast("dict[str, Tensor]", self.network(list(images), shifted))
        finally:
            for stage, mode in zip(stages, before, strict=True):
                stage.training = mode


@MODELS.register("faster_rcnn_resnet50")
def faster_rcnn_resnet50(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network, for images whose sides are multiples of 32 pixels; a `Detector`."""
    # torchvision takes seconds to import, which listing the models should not.
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    check_size("faster_rcnn_resnet50", image_size, smallest=STRIDE, multiple=STRIDE)
    network = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, **_as_given(in_channels, image_size)
    )
    fit_stem(network, "backbone.body.conv1", in_channels)
    return FasterRCNN(network, PROPOSALS)


@MODELS.register("faster_rcnn_tiny")
def faster_rcnn_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network: four stages of two convolutions, a pyramid of width 32; a `Detector`."""
    check_size("faster_rcnn_tiny", image_size, smallest=STRIDE, multiple=STRIDE)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        (f"stage{number}", _stage(before, width, 2))
        for number, (before, width) in enumerate(zip((in_channels, *TINY_WIDTHS), TINY_WIDTHS, strict=False))
    )
    return _small(Stages(stages), TINY_WIDTHS[1:], TINY, num_classes, in_channels, image_size)


@MODELS.register("faster_rcnn_lite0")
def faster_rcnn_lite0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a network on EfficientNet-Lite0 with a pyramid of width 64, for pretrained weights."""
    check_size("faster_rcnn_lite0", image_size, smallest=STRIDE, multiple=STRIDE)
    network = _small(*features(in_channels, (8, 16, 32)), LITE0, num_classes, in_channels, image_size)
    network.pretrained_part = "network.backbone.body"
    return network


def _small(
    body: nn.Module, widths: Sequence[int], sizes: Sizes, num_classes: int, in_channels: int, image_size: int
) -> FasterRCNN:
    """Return a network on a backbone that gives a list of features, for images with small objects."""
    from torchvision.models.detection import FasterRCNN as Network
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    backbone = Pyramid(body, widths, sizes.neck)
    network = Network(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes.anchors, ((0.5, 1.0, 2.0),) * len(sizes.anchors)),
        rpn_pre_nms_top_n_train=4 * sizes.proposals,
        rpn_pre_nms_top_n_test=2 * sizes.proposals,
        rpn_post_nms_top_n_train=2 * sizes.proposals,
        rpn_post_nms_top_n_test=sizes.proposals,
        box_roi_pool=MultiScaleRoIAlign(backbone.levels, output_size=5, sampling_ratio=2),
        box_head=TwoMLPHead(sizes.neck * 5**2, sizes.hidden),
        box_predictor=_predictor(sizes.hidden, num_classes + 1),
        box_batch_size_per_image=64,
        box_detections_per_img=sizes.detections,
        **_as_given(in_channels, image_size),
    )
    return FasterRCNN(network, sizes.proposals)


class Stages(nn.Sequential):
    """Modules in a row, of which the outputs of all but the first are returned."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images to features, the finest first."""
        found = [images]
        for stage in self:
            found.append(stage(found[-1]))
        return found[2:]


class Pyramid(nn.Module):
    """A backbone and a feature pyramid on it, which adds one level.

    Parameters
    ----------
    body : nn.Module
        Maps images to a list of features, the finest first.
    widths : sequence of int
        Their channels.
    width : int
        Channels of the pyramid.
    """

    def __init__(self, body: nn.Module, widths: Sequence[int], width: int) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.body, self.out_channels = body, width
        self.levels = [f"level{number}" for number in range(1, 1 + len(widths))]
        self.fpn = FeaturePyramidNetwork(list(widths), width, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to the levels of the pyramid, by name."""
        found: dict[str, Tensor] = self.fpn(OrderedDict(zip(self.levels, self.body(images), strict=True)))
        return found


def _as_given(in_channels: int, image_size: int) -> dict[str, Any]:
    """Return what lets torchvision take images as they are: they come normalised, and in one size."""
    return {
        "image_mean": [0.0] * in_channels,
        "image_std": [1.0] * in_channels,
        "min_size": image_size,
        "max_size": image_size,
        "_skip_resize": True,
    }


def _predictor(width: int, classes: int) -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return cast("nn.Module", FastRCNNPredictor(width, classes))


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
