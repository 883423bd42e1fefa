"""From raw images to network inputs: resize, crop, normalise and, for training, change at random.

A view is one such way. Arrays of small images are handled a batch at a time; image files are
decoded one by one when they are needed, because the large data sets do not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.errors import ResultsError
from ifap.seeds import derive_seed

if TYPE_CHECKING:
    from PIL.Image import Image

View = Literal["plain", "shift", "crop_flip", "resized_crop"]
"""``plain``: only resized. ``shift``: shifted by up to an eighth. ``crop_flip``: cropped from four
pixels of padding and mirrored (He et al. 2016, CIFAR). ``resized_crop``: a random part, resized and
mirrored; for evaluation the middle of an image whose shorter side is 8/7 of the input (He et al.
2016, ImageNet: 256 and 224)."""

PADDING = 4
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
MARGIN = 256 / 224


@dataclass(frozen=True)
class Scaling:
    """How pixel values become network inputs."""

    size: int  # Side of the square input, in pixels.
    channels: int  # Of the input; 3 repeats a grey image.
    maximum: float  # Largest raw value.
    mean: tuple[float, ...]  # One value a raw channel, of values divided by `maximum`; so has `std`.
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 (batch, raw channels, height, width) to float32 (batch, channels, size, size)."""
        shrinks = self.size < min(images.shape[-2:])
        values = F.interpolate(
            images.float() / self.maximum, (self.size, self.size), mode="bilinear", align_corners=False,
            antialias=shrinks,
        )  # fmt: skip
        mean, std = (torch.tensor(moments).view(1, -1, 1, 1) for moments in (self.mean, self.std))
        values = (values - mean) / std
        return values if values.shape[1] == self.channels else values.expand(-1, self.channels, -1, -1).contiguous()


class ImageArrays:
    """Images of one size, held in memory as they are on disk.

    Parameters
    ----------
    images : Tensor, uint8, shape (samples, raw channels, height, width)
        The raw images.
    view : str
        See `View`.
    scaling : Scaling
        How they become inputs.
    """

    decodes = False

    def __init__(self, images: Tensor, view: View, scaling: Scaling) -> None:
        self._images, self._view, self._scaling = images, view, scaling

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._scaling(self._images[rows])

    def augmented(self, rows: Tensor, seed: int) -> Tensor:
        """Return the inputs of some images, changed at random."""
        generator = torch.Generator().manual_seed(seed)
        if self._view == "plain":
            return self[rows]
        if self._view == "shift":
            return random_shift(self[rows], generator)
        return self._scaling(random_crop_flip(self._images[rows], generator))


class ImageFiles:
    """Image files, decoded when they are asked for.

    Parameters
    ----------
    root : Path
        Folder that the names are relative to.
    names : tuple of str
        The files.
    view : str
        See `View`.
    scaling : Scaling
        How they become inputs.
    """

    decodes = True

    def __init__(self, root: Path, names: tuple[str, ...], view: View, scaling: Scaling) -> None:
        self._root, self._names, self._view, self._scaling = root, names, view, scaling

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._batch(rows, None)

    def augmented(self, rows: Tensor, seed: int) -> Tensor:
        """Return the inputs of some images, changed at random."""
        return self._batch(rows, seed)

    def _batch(self, rows: Tensor, seed: int | None) -> Tensor:
        return torch.cat([self._input(int(row), seed) for row in rows])

    def _input(self, row: int, seed: int | None) -> Tensor:
        image = self._decoded(self._root / self._names[row])
        size = self._scaling.size
        if self._view == "resized_crop":
            if seed is None:
                image = centre_crop(image, size)
            else:
                generator = torch.Generator().manual_seed(derive_seed(seed, row))
                image = random_resized_crop(image, size, generator)
        pixels = np.asarray(image, dtype=np.uint8)
        return self._scaling(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1)[None])

    def _decoded(self, path: Path) -> Image:
        with opened(path) as image:
            return image.convert("RGB" if len(self._scaling.mean) == 3 else "L")


@contextmanager
def opened(
    path: Path,
    gone: str = "is gone: put it back, or run the fetch stage again",
    again: str = "run the fetch stage again",
) -> Iterator[Image]:
    """Open an image file.

    Raises
    ------
    ResultsError
        If the file is missing or cannot be decoded; the message names it, and says what to do.
    """
    from PIL import Image  # only data sets of files need it

    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise ResultsError(f"{path} {gone}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ResultsError(f"{path} cannot be decoded ({error}): {again}") from None


def random_shift(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by a random whole number of pixels, up to an eighth of each side, repeating its edge pixels.

    Returns a new tensor.

    Parameters
    ----------
    inputs : Tensor, shape (batch, channels, height, width)
        Network inputs.
    generator : torch.Generator
        Source of the shifts, on the CPU.
    """
    batch, _, height, width = inputs.shape
    rows, columns = (_shifted(side, side // 8, batch, generator) for side in (height, width))
    return _picked(inputs, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def random_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at random from itself padded by four black pixels, and mirror half of them.

    Returns a new tensor.

    Parameters
    ----------
    images : Tensor, shape (batch, channels, height, width)
        Raw images.
    generator : torch.Generator
        Source of crops and flips, on the CPU.
    """
    batch, _, height, width = images.shape
    rows, columns = (_shifted(side, PADDING, batch, generator) + PADDING for side in (height, width))
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return _picked(F.pad(images, [PADDING] * 4), rows, columns)


def centre_crop(image: Image, size: int) -> Image:
    """Resize the shorter side to 8/7 of `size` pixels and cut out the middle."""
    from PIL import Image as Pillow

    short = round(size * MARGIN)
    width, height = image.size
    factor = short / min(width, height)
    wide, high = max(size, round(width * factor)), max(size, round(height * factor))
    left, top = (wide - size) // 2, (high - size) // 2
    return image.resize((wide, high), Pillow.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def random_resized_crop(image: Image, size: int, generator: torch.Generator) -> Image:
    """Cut out a random part of 8 to 100 % of the area, resize it to `size` pixels and mirror half of the time."""
    from PIL import Image as Pillow

    box = _random_box(*image.size, generator)
    part = image.resize((size, size), Pillow.Resampling.BILINEAR, box=box)
    return part.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT) if _uniform(0, 1, generator) < 0.5 else part


def _random_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * _uniform(*AREA, generator)
        aspect = math.exp(_uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), generator))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left = int(_uniform(0, width - wide + 1, generator))
            top = int(_uniform(0, height - high + 1, generator))
            return left, top, left + wide, top + high
    # No part of a very long image has such an aspect: take its middle.
    wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _shifted(side: int, reach: int, batch: int, generator: torch.Generator) -> Tensor:
    shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
    return torch.arange(side)[None] + shift


def _picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    samples = torch.arange(len(images))
    picked = images[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
