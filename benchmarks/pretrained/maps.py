"""CRAFT (Baek et al. 2019), which finds text in pictures: VGG16 with batch norm, and a decoder as of a U-Net.

Pictures are words of SQuAD's passages drawn on enlarged images of CIFAR-10, both of the part of the data that they are
for. There are no labels: what counts is how little the maps of characters and of gaps change.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrained import images, splits, texts
from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.case import Case, Measures
from benchmarks.pretrained.measures import outputs_of, relative_error
from benchmarks.pretrained.splits import Split

SIDE, BATCH, WORDS = 256, 4, 8
PICTURES = {"calibration": 32, "development": 12, "heldout": 32}
FOUND = 0.4  # of a map: where CRAFT takes it that there is a character
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SLICES = ("slice1", "slice2", "slice3", "slice4")
_ENDS = (12, 19, 29, 39)  # of the slices, in the numbers of VGG16's layers
_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512)  # 0 is a pooling


class Encoder(nn.Module):
    """The first layers of VGG16 in four slices, and a fifth in place of its classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = [], 3
        for size in _WIDTHS:
            if size:
                layers += [nn.Conv2d(width, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
                width = size
            else:
                layers.append(nn.MaxPool2d(2))
        start = 0
        for name, end in zip(_SLICES, _ENDS, strict=True):
            self.add_module(name, _numbered(layers, start, end))
            start = end
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what the decoder reads, the deepest first."""
        found = []
        for name in _SLICES:
            x = self.get_submodule(name)(x)
            found.append(x)
        # The slices begin with an activation that the original applies in place: it reads the first three after it.
        read = [functional.relu(each) for each in found[:3]]
        return [self.slice5(x), x, *reversed(read)]


def _numbered(layers: list[nn.Module], start: int, end: int) -> nn.Sequential:
    part = nn.Sequential()
    for number in range(start, end):
        part.add_module(str(number), layers[number])
    return part


class Up(nn.Module):
    """Two convolutions of the decoder."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return self.conv(x)


class Craft(nn.Module):
    """The network; module names are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.basenet = Encoder()
        self.upconv1, self.upconv2 = Up(1536, 512, 256), Up(768, 256, 128)
        self.upconv3, self.upconv4 = Up(384, 128, 64), Up(192, 64, 32)
        self.conv_cls = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of characters and of gaps between them: shape (pictures, 2, height / 2, width / 2)."""
        deepest, *read = self.basenet(x)
        y = self.upconv1(torch.cat([deepest, read[0]], dim=1))
        for up, other in zip((self.upconv2, self.upconv3, self.upconv4), read[1:], strict=True):
            y = functional.interpolate(y, size=other.shape[2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, other], dim=1))
        return self.conv_cls(y)


def craft(folder: Path) -> nn.Module:
    """Return the trained network."""
    stored = torch.load(path_of("craft", "weights.pth", folder), weights_only=True, map_location="cpu")
    network = Craft()
    network.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    module: nn.Module = network.eval()
    return module


def pictures(folder: Path, part: str) -> Tensor:
    """Return pictures with words: shape (pictures, 3, side, side)."""
    which = splits.enlarged("heldout" if part == "heldout" else "development")
    numbers = which.made if part == "calibration" else which.tested
    found = [text for each in texts.passages(folder, part).values() for text in each]
    draw = random.Random(part)
    made = []
    for number in numbers[: PICTURES[part]]:
        picture = images.cifar(folder, part == "heldout", number).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        made.append(_scaled(_written(picture, draw.choice(found).split(), draw)))
    return torch.stack(made)


def _written(picture: Image.Image, words: list[str], draw: random.Random) -> Image.Image:
    """Draw words at random places, in sizes and greys that can be read."""
    pen = ImageDraw.Draw(picture)
    for word in draw.sample(words, min(WORDS, len(words))):
        font = ImageFont.load_default(size=draw.randint(14, 32))
        grey = draw.choice((0, 20, 235, 255))
        pen.text((draw.randint(0, SIDE - 80), draw.randint(0, SIDE - 40)), word, fill=(grey, grey, grey), font=font)
    return picture


def _scaled(picture: Image.Image) -> Tensor:
    values = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 255
    return (values - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def words(folder: Path, split: Split) -> list[Case]:
    """Return the case."""
    network = craft(folder)
    calibration, tested = (images.batches(pictures(folder, part), BATCH) for part in ("calibration", split))
    wanted = torch.cat(outputs_of(network, tested))

    def measure(model: nn.Module) -> Measures:
        found = torch.cat(outputs_of(model, tested))
        before, after = wanted > FOUND, found > FOUND
        shared = float((before & after).sum()) / max(1.0, float((before | after).sum()))
        return {"metric": relative_error(wanted, found), "agreement": shared}

    return [Case(network, calibration[0][:1], calibration, _seeds, _loss, measure)]


def _seeds(batch: Tensor) -> Tensor:
    """Return a seed for the random projection of a batch, made from the batch itself."""
    return (batch.abs().sum() * 1e3).long()


def _loss(outputs: Tensor, seed: Tensor) -> Tensor:
    """Return a random projection of the maps: there is no loss without labels."""
    generator = torch.Generator().manual_seed(int(seed))
    return (outputs * torch.randn(outputs.shape, generator=generator)).sum() / outputs[0].numel() ** 0.5
