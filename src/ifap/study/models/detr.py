"""DETR (Carion et al. 2020) on a plain vision transformer: queries that each find one box or nothing.

The published DETR reads a ResNet and adds positions in every layer. Here a vision transformer of timm
gives the features, and learned positions are added once, before the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.detection import Detections, Detector, Target
from ifap.study.models.parts import check_size, vision_transformer

PATCH, TINY_PATCH = 16, 8
NOTHING = 0.1  # weight of the class "nothing", which most queries are
CLASS, DISTANCE, OVERLAP = 1.0, 5.0, 2.0
"""Weights of class, L1 distance and generalised IoU, in the matching and in the loss."""
Match = tuple[Tensor, Tensor]
"""Which queries are matched, and with which targets."""


class ViTDetr(Detector):
    """A vision transformer, an encoder, a decoder of queries, and two heads.

    Parameters
    ----------
    image_size, patch, in_channels : int
        Side of an image and of a patch, in pixels, and channels of an image.
    width, depth, backbone_heads : int
        Width, layers and heads of the backbone.
    inner, hidden, heads, layers : int
        Width, feed-forward width, heads and layers of encoder and decoder.
    queries : int
        Boxes an image, at most.
    num_classes : int
        Classes; one for "nothing" is added.
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
        backbone_heads: int,
        inner: int,
        hidden: int,
        heads: int,
        layers: int,
        queries: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone: Any = vision_transformer(
            image_size, in_channels, patch=patch, width=width, depth=depth, heads=backbone_heads
        )
        self.project = nn.Linear(width, inner)
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, inner))
        self.queries = nn.Parameter(torch.empty(1, queries, inner))
        for table in (self.positions, self.queries):
            nn.init.normal_(table)
        options: dict[str, Any] = {"dim_feedforward": hidden, "dropout": dropout, "batch_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(inner, heads, **options), layers, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(inner, heads, **options), layers)
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.dim() > 1:  # torch copies the first layer; the published network draws each
                nn.init.xavier_uniform_(parameter)
        self.classify = nn.Linear(inner, num_classes + 1)
        self.locate = nn.Sequential(
            nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, 4)
        )

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (batch, queries, num_classes + 1) and boxes (batch, queries, 4).

        Boxes are (centre x, centre y, width, height) as shares of the image; the last class is "nothing".
        """
        memory = self.encoder(self.project(self.backbone.forward_features(images)) + self.positions)
        found = self.decoder(self.queries.expand(len(images), -1, -1), memory)
        return self.classify(found), self.locate(found).sigmoid()

    def detect(self, images: Tensor) -> list[Detections]:
        """Return one detection a query, with its likeliest class that is not "nothing"."""
        from torchvision.ops import clip_boxes_to_image

        scores, boxes = self.dense(images)
        best, labels = scores.softmax(dim=-1)[..., :-1].max(dim=-1)
        corners = clip_boxes_to_image(_corners(boxes) * _scale(images), images.shape[-2:])
        order = best.argsort(dim=-1, descending=True)
        return [
            {"boxes": box[chosen], "labels": label[chosen], "scores": score[chosen]}
            for box, label, score, chosen in zip(corners, labels, best, order, strict=True)
        ]

    def compare(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of class, box distance and box overlap, of matched queries."""
        scores, boxes = self.dense(images)
        return matched_losses(scores, boxes, targets, _scale(images))


def matched_losses(scores: Tensor, boxes: Tensor, targets: list[Target], scale: Tensor) -> dict[str, Tensor]:
    """Match queries with targets and compare each pair; the sum of the results is the loss of DETR.

    The results are named ``class``, ``distance`` and ``overlap``, and are weighted.

    Parameters
    ----------
    scores : Tensor, shape (batch, queries, classes + 1)
        Of each class and, last, of "nothing".
    boxes : Tensor, shape (batch, queries, 4)
        (centre x, centre y, width, height), as shares of the image.
    targets : list of Target
        One an image, in pixels.
    scale : Tensor, shape (4,)
        Width, height, width and height of an image in pixels.
    """
    from torchvision.ops import box_convert, generalized_box_iou_loss

    wanted = [target["boxes"].to(boxes) / scale for target in targets]
    labels = [target["labels"].to(scores.device) for target in targets]
    matches = [match(*image) for image in zip(scores.detach(), boxes.detach(), wanted, labels, strict=True)]
    classes = scores.new_full(scores.shape[:2], scores.shape[-1] - 1, dtype=torch.long)
    for row, (queries, chosen) in enumerate(matches):
        classes[row, queries] = labels[row][chosen]
    weights = scores.new_ones(scores.shape[-1])
    weights[-1] = NOTHING
    found = torch.cat([box[queries] for box, (queries, _) in zip(boxes, matches, strict=True)])
    truth = torch.cat([box[chosen] for box, (_, chosen) in zip(wanted, matches, strict=True)])
    number = max(1, len(truth))
    return {
        "class": CLASS * functional.cross_entropy(scores.flatten(0, 1), classes.flatten(), weights),
        "distance": DISTANCE * (found - box_convert(truth, "xyxy", "cxcywh")).abs().sum() / number,
        "overlap": OVERLAP * generalized_box_iou_loss(_corners(found), truth, reduction="sum") / number,
    }


@torch.no_grad()
def match(scores: Tensor, boxes: Tensor, wanted: Tensor, labels: Tensor) -> Match:
    """Return the cheapest pairing of one image's queries with its targets.

    Parameters
    ----------
    scores : Tensor, shape (queries, classes + 1)
        Before the softmax.
    boxes : Tensor, shape (queries, 4)
        (centre x, centre y, width, height), as shares of the image.
    wanted : Tensor, shape (k, 4)
        (x1, y1, x2, y2), as shares of the image.
    labels : Tensor, shape (k,)
        Classes of the targets.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only training needs it
    from torchvision.ops import box_convert, generalized_box_iou

    distance = torch.cdist(boxes, box_convert(wanted, "xyxy", "cxcywh"), p=1)
    overlap = generalized_box_iou(_corners(boxes), wanted)
    cost = DISTANCE * distance - OVERLAP * overlap - CLASS * scores.softmax(dim=-1)[:, labels]
    queries, chosen = linear_sum_assignment(cost.float().cpu().numpy())
    return torch.as_tensor(queries, device=boxes.device), torch.as_tensor(chosen, device=boxes.device)


def _corners(boxes: Tensor) -> Tensor:
    from torchvision.ops import box_convert

    return box_convert(boxes, "cxcywh", "xyxy")


def _scale(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return images.new_tensor([width, height, width, height])


@MODELS.register("detr_vit_b_16")
def detr_vit_b_16(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network: ViT-Base/16, six layers each way of width 256, 100 queries; a `Detector`.

    One network takes one image size, a multiple of 16 pixels.
    """
    check_size("detr_vit_b_16", image_size, smallest=PATCH, multiple=PATCH)
    return ViTDetr(
        image_size,
        in_channels,
        num_classes,
        patch=PATCH,
        width=768,
        depth=12,
        backbone_heads=12,
        inner=256,
        hidden=2048,
        heads=8,
        layers=6,
        queries=100,
        dropout=0.1,
    )


@MODELS.register("detr_tiny")
def detr_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network: patches of 8 pixels, four and twice two layers, 16 queries; a `Detector`."""
    check_size("detr_tiny", image_size, smallest=TINY_PATCH, multiple=TINY_PATCH)
    return ViTDetr(
        image_size,
        in_channels,
        num_classes,
        patch=TINY_PATCH,
        width=64,
        depth=4,
        backbone_heads=4,
        inner=32,
        hidden=64,
        heads=4,
        layers=2,
        queries=16,
        dropout=0.0,
    )
