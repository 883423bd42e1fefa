"""YOLOv4 (Bochkovskiy et al. 2020): a backbone, spatial pyramid pooling, path aggregation, three heads.

Backbones are ShuffleNetV2 of torchvision and EfficientNet-Lite0 of timm. On the largest, neck and heads have the
published widths. The loss is the published one with complete IoU, without the tricks that augment or smooth what it is
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.detection import Detections, Detector, Target
from ifap.study.models.efficientnet_lite0 import features
from ifap.study.models.parts import check_size, fit_stem

STRIDES = (8, 16, 32)
# Widths and heights of the published anchors at 608 pixels, three a stride.
ANCHORS = (((12, 16), (19, 36), (40, 28)), ((36, 75), (76, 55), (72, 146)), ((142, 110), (192, 243), (459, 401)))
ANCHOR_SIZE = 608
NECK, SMALL_NECK, TINY_NECK = 128, 32, 16  # width at the finest stride; doubled at each coarser one
CELL_SCALES = (1.2, 1.1, 1.05)  # how far a centre may leave its cell, so that edges can be reached
MATCH_IOU = 0.213  # an anchor of this shape overlap with a target is to find it
IGNORE_IOU = 0.7  # what overlaps a target this much without being its cell is not called nothing
SCORE, OVERLAP, KEPT = 0.01, 0.6, 100
"""Detections score at least this, overlap at most this within a class, and are at most so many an image."""
BOX, OBJECT, CLASS = 5.0, 1.0, 1.0
BALANCE = (4.0, 1.0, 0.4)
"""Weights of the losses, and of the object loss at each stride: fine ones have more cells."""


class ConvBlock(nn.Sequential):
    """A convolution with batch norm and a leaky ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.1),
        )


class FiveBlocks(nn.Sequential):
    """Five convolutions, 1x1 and 3x3 in turns, between two strides of the neck."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            ConvBlock(in_channels, channels),
            ConvBlock(channels, 2 * channels, 3),
            ConvBlock(2 * channels, channels),
            ConvBlock(channels, 2 * channels, 3),
            ConvBlock(2 * channels, channels),
        )


class PyramidPooling(nn.Module):
    """Features of the coarsest stride beside their maxima over 5, 9 and 13 positions each way."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(
            ConvBlock(in_channels, channels), ConvBlock(channels, 2 * channels, 3), ConvBlock(2 * channels, channels)
        )
        self.pools = nn.ModuleList([nn.MaxPool2d(size, stride=1, padding=size // 2) for size in (5, 9, 13)])
        self.after = nn.Sequential(
            ConvBlock(4 * channels, channels), ConvBlock(channels, 2 * channels, 3), ConvBlock(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, channels, height, width)."""
        x = self.before(x)
        pooled: Tensor = self.after(torch.cat([*(pool(x) for pool in self.pools), x], dim=1))
        return pooled


class PathAggregation(nn.Module):
    """The neck: features of three strides, each told of the other two.

    Parameters
    ----------
    widths : sequence of int
        Channels of the features, from the finest stride.
    neck : int
        Channels at the finest stride of what is returned; doubled at each coarser one.
    """

    def __init__(self, widths: Sequence[int], neck: int) -> None:
        super().__init__()
        fine, middle, coarse = neck, 2 * neck, 4 * neck
        self.pool = PyramidPooling(widths[2], coarse)
        self.up_middle, self.side_middle = ConvBlock(coarse, middle), ConvBlock(widths[1], middle)
        self.join_middle = FiveBlocks(2 * middle, middle)
        self.up_fine, self.side_fine = ConvBlock(middle, fine), ConvBlock(widths[0], fine)
        self.join_fine = FiveBlocks(2 * fine, fine)
        self.down_middle = ConvBlock(fine, middle, 3, stride=2)
        self.back_middle = FiveBlocks(2 * middle, middle)
        self.down_coarse = ConvBlock(middle, coarse, 3, stride=2)
        self.back_coarse = FiveBlocks(2 * coarse, coarse)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map features of three strides to as many of `neck` times 1, 2 and 4 channels."""
        coarse = self.pool(features[2])
        middle = self.join_middle(torch.cat([self.side_middle(features[1]), _twice(self.up_middle(coarse))], dim=1))
        fine = self.join_fine(torch.cat([self.side_fine(features[0]), _twice(self.up_fine(middle))], dim=1))
        middle = self.back_middle(torch.cat([self.down_middle(fine), middle], dim=1))
        coarse = self.back_coarse(torch.cat([self.down_coarse(middle), coarse], dim=1))
        return [fine, middle, coarse]


class Backbone(nn.Module):
    """Torchvision's ShuffleNetV2 without its head: features of strides 8, 16 and 32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name in ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"):
            self.add_module(name, network.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images to the features of three strides."""
        modules: Any = self
        fine = modules.stage2(modules.maxpool(modules.conv1(x)))
        middle = modules.stage3(fine)
        return [fine, middle, modules.conv5(modules.stage4(middle))]


class YoloV4(Detector):
    """Backbone, neck and one head a stride, each cell of which looks for objects of three shapes.

    Parameters
    ----------
    backbone : nn.Module
        Gives features of strides 8, 16 and 32.
    widths : sequence of int
        Their channels.
    neck : int
        Width of the neck at the finest stride.
    num_classes, image_size : int
        Classes, and the side of an image in pixels that the anchors are scaled for.
    """

    def __init__(
        self, backbone: nn.Module, widths: Sequence[int], neck: int, num_classes: int, image_size: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = PathAggregation(widths, neck)
        self.heads = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(width, 2 * width, 3), nn.Conv2d(2 * width, 3 * (5 + num_classes), 1))
                for width in (neck, 2 * neck, 4 * neck)
            ]
        )
        self.num_classes = num_classes
        self.anchor_scale = image_size / ANCHOR_SIZE

    def dense(self, images: Tensor) -> list[Tensor]:
        """Return raw values of each stride, (batch, 3 * (5 + num_classes), rows, columns).

        A cell holds, for each of its three anchors, the offsets of a box (x, y, width, height), the
        score of an object, and one of each class.
        """
        return [head(x) for head, x in zip(self.heads, self.neck(self.backbone(images)), strict=True)]

    def detect(self, images: Tensor) -> list[Detections]:
        """Return what scores enough and is not a second box of the same object."""
        from torchvision.ops import clip_boxes_to_image

        grids = self._decoded(images)
        boxes = clip_boxes_to_image(torch.cat([grid.boxes.flatten(1, 3) for grid in grids], dim=1), images.shape[-2:])
        scores = torch.cat(
            [(grid.object.sigmoid().unsqueeze(-1) * grid.classes.sigmoid()).flatten(1, 3) for grid in grids], dim=1
        )
        return [_choose(box, score) for box, score in zip(boxes, scores, strict=True)]

    def compare(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of boxes, of objects and of classes."""
        grids = self._decoded(images)
        owners = [_owners(grid, targets, images) for grid in self._with_shapes(grids)]
        losses = {"box": images.new_zeros(()), "object": images.new_zeros(()), "class": images.new_zeros(())}
        number = max(1, sum(len(owner.boxes) for owner in owners))
        for grid, owner, weight in zip(grids, owners, BALANCE, strict=True):
            box, found, kind = _grid_losses(grid, owner, targets)
            losses["box"] = losses["box"] + BOX * box / number
            losses["object"] = losses["object"] + OBJECT * weight * found
            losses["class"] = losses["class"] + CLASS * kind / number
        return losses

    def _decoded(self, images: Tensor) -> list[Grid]:
        return [
            _decode(raw, stride, self._anchors(level, raw), scale)
            for level, (raw, stride, scale) in enumerate(zip(self.dense(images), STRIDES, CELL_SCALES, strict=True))
        ]

    def _anchors(self, level: int, like: Tensor) -> Tensor:
        return like.new_tensor(ANCHORS[level]) * self.anchor_scale

    def _with_shapes(self, grids: list[Grid]) -> list[Grid]:
        """Give every grid the anchors of all: which of them fits a target best is decided over all strides."""
        every = torch.cat([grid.anchors for grid in grids])
        return [grid._replace(every=every, first=3 * level) for level, grid in enumerate(grids)]


class Grid(NamedTuple):
    """The values of one stride, decoded: dimensions are (batch, anchors, rows, columns)."""

    boxes: Tensor  # (..., 4), corners in pixels
    object: Tensor  # scores before the sigmoid
    classes: Tensor  # (..., classes), before the sigmoid
    anchors: Tensor  # (3, 2), pixels
    stride: int
    every: Tensor | None = None  # the anchors of all strides
    first: int = 0  # which of them is the first here


class Owner(NamedTuple):
    """Which cells of a grid are to find which targets: four indices a pair, and boxes and labels."""

    cells: tuple[Tensor, Tensor, Tensor, Tensor]
    boxes: Tensor
    labels: Tensor


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _decode(raw: Tensor, stride: int, anchors: Tensor, scale: float) -> Grid:
    rows, columns = raw.shape[-2:]
    values = raw.unflatten(1, (len(anchors), -1)).movedim(2, -1)  # (batch, anchors, rows, columns, 5 + classes)
    y, x = torch.meshgrid(torch.arange(rows).to(raw), torch.arange(columns).to(raw), indexing="ij")
    centre = (values[..., :2].sigmoid() * scale - (scale - 1) / 2 + torch.stack([x, y], dim=-1)) * stride
    # A wild value of an untrained network must not become an infinite box.
    half = values[..., 2:4].clamp(max=4.0).exp() * anchors[:, None, None] / 2
    return Grid(torch.cat([centre - half, centre + half], dim=-1), values[..., 4], values[..., 5:], anchors, stride)


def _owners(grid: Grid, targets: list[Target], images: Tensor) -> Owner:
    """Return the cells of a grid that hold the centre of a target of a fitting shape."""
    assert grid.every is not None
    _, shapes, rows, columns = grid.object.shape
    parts: list[tuple[Tensor, ...]] = []
    for number, target in enumerate(targets):
        boxes, labels = target["boxes"].to(images), target["labels"].to(images.device)
        overlap = _shape_iou(boxes[:, 2:] - boxes[:, :2], grid.every)
        fits = overlap > MATCH_IOU
        if len(boxes):
            fits[torch.arange(len(boxes), device=boxes.device), overlap.argmax(dim=1)] = True
        which, shape = fits[:, grid.first : grid.first + shapes].nonzero(as_tuple=True)
        centre = ((boxes[which, :2] + boxes[which, 2:]) / 2 / grid.stride).long()
        row, column = centre[:, 1].clamp(0, rows - 1), centre[:, 0].clamp(0, columns - 1)
        parts.append((torch.full_like(which, number), shape, row, column, boxes[which], labels[which]))
    image, shape, row, column, boxes, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    return Owner((image, shape, row, column), boxes, labels)


def _shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU of boxes (k, 2) with anchors (a, 2) that share their centre: shape (k, a)."""
    shared = torch.minimum(sizes[:, None], anchors[None]).prod(dim=-1)
    return shared / (sizes.prod(dim=-1)[:, None] + anchors.prod(dim=-1)[None] - shared)


def _grid_losses(grid: Grid, owner: Owner, targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed box loss, the mean object loss and the summed class loss of a grid."""
    from torchvision.ops import complete_box_iou_loss

    box = complete_box_iou_loss(grid.boxes[owner.cells], owner.boxes, reduction="sum")
    wanted = torch.zeros_like(grid.object)
    wanted[owner.cells] = 1.0
    counts = ~_overlaps(grid, targets) | (wanted > 0)
    found = functional.binary_cross_entropy_with_logits(grid.object, wanted, reduction="none")
    one_hot = functional.one_hot(owner.labels, grid.classes.shape[-1]).to(grid.classes)
    kind = functional.binary_cross_entropy_with_logits(grid.classes[owner.cells], one_hot, reduction="sum")
    return box, (found * counts).sum() / counts.sum().clamp(min=1), kind


@torch.no_grad()
def _overlaps(grid: Grid, targets: list[Target]) -> Tensor:
    """Return which cells see a target well enough not to be called nothing."""
    from torchvision.ops import box_iou

    found = torch.zeros_like(grid.object, dtype=torch.bool)
    for number, target in enumerate(targets):
        if len(target["boxes"]):
            overlap = box_iou(grid.boxes[number].flatten(0, 2), target["boxes"].to(grid.boxes))
            found[number] = (overlap.amax(dim=1) > IGNORE_IOU).view_as(found[number])
    return found


def _choose(boxes: Tensor, scores: Tensor) -> Detections:
    from torchvision.ops import batched_nms

    best, labels = scores.max(dim=-1)
    likely = best > SCORE
    boxes, best, labels = boxes[likely], best[likely], labels[likely]
    kept = batched_nms(boxes, best, labels, OVERLAP)[:KEPT]
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": best[kept]}


@MODELS.register("yolov4_shufflenet_v2")
def yolov4_shufflenet_v2(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network on ShuffleNetV2 x2.0; sides are multiples of 32 pixels; a `Detector`."""
    check_size("yolov4_shufflenet_v2", image_size, smallest=STRIDES[-1], multiple=STRIDES[-1])
    return YoloV4(*_shufflenet("shufflenet_v2_x2_0", in_channels), NECK, num_classes, image_size)


@MODELS.register("yolov4_shufflenet_tiny")
def yolov4_shufflenet_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network on ShuffleNetV2 x0.5 with a neck of an eighth of the width; a `Detector`."""
    check_size("yolov4_shufflenet_tiny", image_size, smallest=STRIDES[-1], multiple=STRIDES[-1])
    return YoloV4(*_shufflenet("shufflenet_v2_x0_5", in_channels), TINY_NECK, num_classes, image_size)


@MODELS.register("yolov4_lite0")
def yolov4_lite0(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a network on EfficientNet-Lite0 with a neck of a quarter of the width, for pretrained weights."""
    check_size("yolov4_lite0", image_size, smallest=STRIDES[-1], multiple=STRIDES[-1])
    network = YoloV4(*features(in_channels, STRIDES), SMALL_NECK, num_classes, image_size)
    network.pretrained_part = "backbone"
    return network


def _shufflenet(name: str, in_channels: int) -> tuple[nn.Module, list[int]]:
    # torchvision takes seconds to import, which listing the models should not.
    import torchvision.models

    network = getattr(torchvision.models, name)(weights=None)
    fit_stem(network, "conv1.0", in_channels)
    return Backbone(network), [network._stage_out_channels[stage] for stage in (1, 2, 4)]
