"""Small networks that detect, segment and generate, for tests of what is not about networks."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import batched_nms

STRIDE = 8


def trunk(width=16):
    layers = []
    for channels, out in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


class Detector(nn.Module):
    """Finds one object at most in each cell of a grid, by its middle."""

    def __init__(self, classes=3, width=16):
        super().__init__()
        self.trunk, self.classes = trunk(width), classes
        self.head = nn.Conv2d(2 * width, classes + 4, 3, padding=1)

    def forward(self, images, targets=None):
        found = self.head(self.trunk(images))
        scores, sides = found[:, : self.classes], nn.functional.softplus(found[:, self.classes :])
        if self.training:
            return self._losses(scores, sides, targets)
        return [self._detected(*one) for one in zip(scores, sides, strict=True)]

    def _middles(self, scores):
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in scores.shape[-2:]), indexing="ij")
        return STRIDE * (torch.stack([columns, rows]) + 0.5)

    def _losses(self, scores, sides, targets):
        wanted, distances = torch.zeros_like(scores), []
        middles = self._middles(scores)
        for number, target in enumerate(targets):
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                column, row = ((box[:2] + box[2:]) / 2 / STRIDE).long().clamp(max=scores.shape[-1] - 1).tolist()
                wanted[number, label, row, column] = 1
                middle = middles[:, row, column]
                true = torch.cat([middle - box[:2], box[2:] - middle]) / STRIDE
                distances.append((sides[number, :, row, column] - true).abs().mean())
        loss = nn.functional.binary_cross_entropy_with_logits(scores, wanted, pos_weight=torch.tensor(10.0))
        return {"classes": loss, "boxes": torch.stack(distances).mean() if distances else 0 * sides.sum()}

    def _detected(self, scores, sides):
        middles = self._middles(scores).flatten(1)
        best, labels = scores.flatten(1).sigmoid().max(0)
        sides = STRIDE * sides.flatten(1)
        boxes = torch.cat([middles - sides[:2], middles + sides[2:]]).T
        kept = batched_nms(boxes, best, labels, 0.5)
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": best[kept]}


class Segmenter(nn.Module):
    """Gives scores at an eighth of the size."""

    def __init__(self, classes=4, width=16):
        super().__init__()
        self.trunk, self.head = trunk(width), nn.Conv2d(2 * width, classes, 1)

    def forward(self, images):
        return {"out": self.head(self.trunk(images))}


class Generator(nn.Module):
    """Makes one colour a picture, or learns to."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.colour, self.drop = nn.Parameter(torch.zeros(1, 3, 1, 1)), nn.Dropout(drop)

    def forward(self, images):
        made = self.drop(self.colour).expand_as(images)
        return {"distance": (made - images).square().mean()} if self.training else made

    def sample(self, images, generator):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return self.colour + 0.1 * noise
