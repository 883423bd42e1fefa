"""Images as a classifier takes them: CIFAR-10 enlarged, 20 of ImageNet, and a few photographs."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.splits import Images, Split, taking_turns
from ifap.study.data.cifar_rows import ROWS, rows_of
from ifap.study.packages import CIFAR, IMAGENET, PHOTOGRAPHS

SIDE, WHOLE = 224, 256  # what a network sees, and what it is cut from the middle of
BATCH = 16
CROPS_OF_PHOTOGRAPHS = 6


def labels() -> list[int]:
    """Return the classes of the images of ImageNet, which their names say."""
    return [int(Path(name).stem.rpartition("_")[2]) for name in IMAGENET]


def calibration(folder: Path, which: Images) -> list[Tensor]:
    """Return the batches that a method is given; crops of one image are in the same half of them."""
    sources = [[_enlarged(folder, False, number)] for number in which.made]
    for number in which.real:
        image = _opened(path_of("imagenet_samples", IMAGENET[number], folder))
        draw = random.Random(number)
        sources.append([_crop(image, draw) for _ in range(which.crops)] or [middle(image)])
    return [laid_out(torch.stack(batch)) for batch in taking_turns(sources, BATCH)]


def tested(folder: Path, which: Images, split: Split) -> Tensor:
    """Return the images that networks are compared on: shape (images, 3, side, side)."""
    found = [_enlarged(folder, split == "heldout", number) for number in which.tested]
    found += [real(folder, number) for number in which.tested_real]
    if which.photographs:
        found += photographs(folder)
    return torch.stack(found)


def real(folder: Path, number: int) -> Tensor:
    """Return the middle of one of the 20 images of ImageNet."""
    return middle(_opened(path_of("imagenet_samples", IMAGENET[number], folder)))


def photographs(folder: Path) -> list[Tensor]:
    """Return crops of photographs that are in no other part."""
    found = []
    for number, name in enumerate(PHOTOGRAPHS):
        image, draw = _opened(path_of("photographs", name, folder)), random.Random(number)
        found += [_crop(image, draw) for _ in range(CROPS_OF_PHOTOGRAPHS)]
    return found


def middle(image: Image.Image) -> Tensor:
    """Return the middle of an image, as at the network's training."""
    scale = WHOLE / min(image.size)
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (large.width - SIDE) // 2, (large.height - SIDE) // 2
    return scaled(large.crop((left, top, left + SIDE, top + SIDE)))


def scaled(image: Image.Image) -> Tensor:
    """Return an image as values from -1 to 1: shape (3, height, width)."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _crop(image: Image.Image, draw: random.Random) -> Tensor:
    """Return a random part of 35 to 100 % of an image, mirrored or not."""
    side = round(min(image.size) * draw.uniform(0.35, 1.0) ** 0.5)
    left, top = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
    part = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    found = scaled(part)
    return found.flip(2) if draw.random() < 0.5 else found


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def cifar(folder: Path, is_test: bool, number: int) -> Image.Image:
    """Return one image of CIFAR-10, of its test or training images, as small as it is."""
    name = CIFAR[-1] if is_test else CIFAR[number // ROWS]
    return Image.fromarray(_pixels(_path_of_once(folder, name))[number % ROWS])


def _enlarged(folder: Path, is_test: bool, number: int) -> Tensor:
    return scaled(cifar(folder, is_test, number).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@cache
def _path_of_once(folder: Path, name: str) -> Path:
    """Return a file of CIFAR-10; its checksum is compared once a process."""
    return path_of("cifar10", name, folder)


@cache
def _pixels(file: Path) -> Any:
    """Return the images of a file that holds one in each row: shape (images, 32, 32, 3)."""
    return rows_of(file)


def batches(images: Tensor, size: int = BATCH) -> list[Tensor]:
    """Return images in batches."""
    return [laid_out(batch) for batch in images.split(size)]


def laid_out(batch: Tensor) -> Tensor:
    """Return images laid out so that they run fastest."""
    return batch.contiguous(memory_format=torch.channels_last)
