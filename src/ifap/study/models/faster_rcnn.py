"""Faster R-CNN (Ren et al. 2015) with a feature pyramid on ResNet-50; from torchvision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from ifap.study.models.base import MODELS
from ifap.study.models.detection import Detections, Detector, Target
from ifap.study.models.parts import check_size, fit_stem

STRIDE = 32
PROPOSALS = 1000  # boxes an image that the second stage looks at, at most: torchvision's number in evaluation
TINY_PROPOSALS = 64
TINY_WIDTHS = (16, 32, 48, 64)
TINY_NECK = 32
TINY_HIDDEN = 64


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
    """Return a small untrained network: four stages of one convolution, a pyramid of width 32; a `Detector`."""
    from torchvision.models.detection import FasterRCNN as Network
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    check_size("faster_rcnn_tiny", image_size, smallest=STRIDE, multiple=STRIDE)
    levels = [f"stage{number}" for number in range(1, len(TINY_WIDTHS))]
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        (f"stage{number}", _stage(before, width, 2))
        for number, (before, width) in enumerate(zip((in_channels, *TINY_WIDTHS), TINY_WIDTHS, strict=False))
    )
    backbone = BackboneWithFPN(nn.Sequential(stages), {name: name for name in levels}, list(TINY_WIDTHS[1:]), TINY_NECK)
    network = Network(
        backbone,
        # Strides 4, 8 and 16, and the one that the pyramid adds.
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4),
        rpn_pre_nms_top_n_train=256,
        rpn_pre_nms_top_n_test=128,
        rpn_post_nms_top_n_train=128,
        rpn_post_nms_top_n_test=TINY_PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=5, sampling_ratio=2),
        box_head=TwoMLPHead(TINY_NECK * 5**2, TINY_HIDDEN),
        box_predictor=_predictor(TINY_HIDDEN, num_classes + 1),
        box_batch_size_per_image=64,
        box_detections_per_img=20,
        **_as_given(in_channels, image_size),
    )
    return FasterRCNN(network, TINY_PROPOSALS)


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
