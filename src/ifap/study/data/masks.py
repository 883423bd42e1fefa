"""Masks: drawn from outlines and run lengths, or read from files whose pixels are numbers of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ifap.errors import ResultsError
from ifap.study.data.images import opened
from ifap.study.data.scenes import UNDECLARED, MaskFiles, Regions

Pixels = NDArray[np.uint8]


class ChannelError(ResultsError):
    """A mask file has several channels."""


def run_lengths(outline: Any, width: int, height: int) -> bytes:
    """Return the compressed run lengths of an object's outline in any of COCO's three forms.

    Parameters
    ----------
    outline : list or dict
        Polygons, each a list of x and y in turn; or ``{"counts", "size"}``, compressed or not.
    width, height : int
        Of the image, in pixels.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is none of these, or of another size than the image.
    """
    from pycocotools import mask  # only data sets with outlines need it

    if isinstance(outline, dict):
        if list(outline["size"]) != [height, width]:
            raise ValueError(f"run lengths of size {outline['size']}, the image has {[height, width]}")
        counts = outline["counts"]
        made = mask.frPyObjects(outline, height, width) if isinstance(counts, list) else outline
        found = made["counts"]
        return found.encode() if isinstance(found, str) else bytes(found)
    if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
        raise ValueError("a polygon needs at least three points")
    return bytes(
        mask.merge(mask.frPyObjects([[float(x) for x in polygon] for polygon in outline], height, width))["counts"]
    )


def area(runs: bytes, width: int, height: int) -> int:
    """Return how many pixels an object has."""
    from pycocotools import mask

    return int(mask.area({"size": [height, width], "counts": runs}))


def drawn(runs: bytes, width: int, height: int) -> Pixels:
    """Return an object's pixels, 0 or 1, shape (height, width)."""
    from pycocotools import mask

    pixels: Pixels = mask.decode({"size": [height, width], "counts": runs})
    return pixels


def polygon_pixels(polygons: Sequence[Sequence[float]], width: int, height: int) -> Pixels:
    """Return the pixels inside polygons, 0 or 1, shape (height, width)."""
    return drawn(run_lengths([list(polygon) for polygon in polygons], width, height), width, height)


def mask_pixels(path: Path) -> Pixels:
    """Read the numbers of a mask file, shape (height, width).

    Raises
    ------
    ResultsError
        If the file is missing or damaged; a `ChannelError` if its pixels are not one number each.
    """
    with opened(path) as image:
        image.load()
        # A palette gives numbers colours to look at: the numbers are the classes.
        numbers = np.array(image)
    if numbers.ndim != 2:
        raise ChannelError(f"{path} has {numbers.shape[2]} channels, a mask has one")
    # A number that does not fit stays one that no data set declares.
    fits = (numbers >= 0) & (numbers <= 255)
    return np.where(fits, numbers, UNDECLARED).astype(np.uint8)


def region_mask(regions: Regions, row: int) -> Tensor:
    """Draw the mask of one image: uint8 classes, shape (height, width), 0 where there is no object."""
    width, height = regions.shapes[row].tolist()
    found = np.zeros((height, width), dtype=np.uint8)
    for part in range(int(regions.offsets[row]), int(regions.offsets[row + 1])):
        found[drawn(regions.runs[part], width, height) > 0] = int(regions.labels[part])
    return torch.from_numpy(found)


def file_mask(files: MaskFiles, root: Path, row: int) -> Tensor:
    """Read the mask of one image: uint8 classes, shape (height, width), 255 for pixels that do not count."""
    return files.table[torch.from_numpy(mask_pixels(root / files.names[row])).long()]
