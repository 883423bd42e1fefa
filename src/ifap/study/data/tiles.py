"""Tiles of large photographs: square parts of one size, and the boxes on them, in COCO's JSON format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ifap.files import atomic_write_text

VISIBLE = 0.5  # share of a box that must lie on a tile for the box to count there


@dataclass(frozen=True)
class Photograph:
    """An image and the boxes on it."""

    name: str  # The files of its tiles begin with it.
    pixels: NDArray[np.uint8]  # Shape (height, width, 3).
    boxes: Tensor  # float32, shape (boxes, 4): left, top, right and bottom edge in pixels.
    labels: Tensor  # int64, shape (boxes,): their classes, from 0.


@dataclass(frozen=True)
class Area:
    """The part of a photograph that is cut into tiles: whole rows of pixels."""

    photograph: Photograph
    top: int  # Its first row.
    bottom: int  # The row after its last.
    step: int  # Pixels from one tile to the next. Where it is less than the side of a tile, tiles overlap.

    def corners(self, side: int) -> list[tuple[int, int]]:
        """Return the left and top edge of each tile.

        Tiles that overlap end with the area. Tiles side by side may reach over its right and bottom edge.
        """
        columns = _starts(0, self.photograph.pixels.shape[1], side, self.step)
        rows = _starts(self.top, self.bottom, side, self.step)
        return [(left, top) for top, left in itertools.product(rows, columns)]

    def tile(self, left: int, top: int, side: int) -> NDArray[np.uint8]:
        """Return the pixels of a tile, black where it reaches over the edge of the area."""
        found = np.zeros((side, side, 3), dtype=np.uint8)
        part = self.photograph.pixels[top : min(top + side, self.bottom), left : left + side]
        found[: part.shape[0], : part.shape[1]] = part
        return found

    def boxes(self, left: int, top: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what lies on a tile.

        Returns
        -------
        boxes : Tensor, shape (boxes, 4)
            Cut off at the edges of the tile, in its own pixels.
        labels : Tensor, shape (boxes,)
            Their classes.
        ignored : Tensor of bool, shape (boxes,)
            Which of them show less than half of themselves here.
        """
        whole = self.photograph.boxes
        edges = torch.tensor([left, top, left + side, min(top + side, self.bottom)], dtype=whole.dtype)
        cut = torch.cat([whole[:, :2].maximum(edges[:2]), whole[:, 2:].minimum(edges[2:])], dim=1)
        sides = (cut[:, 2:] - cut[:, :2]).clamp(min=0)
        shares = sides.prod(dim=1) / (whole[:, 2:] - whole[:, :2]).prod(dim=1)
        seen = shares > 0
        return (cut - edges[:2].repeat(2))[seen], self.photograph.labels[seen], (shares < VISIBLE)[seen]


def write_tiles(folder: Path, role: str, areas: Sequence[Area], side: int, classes: Sequence[str]) -> None:
    """Write the tiles of some areas as PNG files, and their boxes as ``ROLE.json``.

    Parameters
    ----------
    folder : Path
        Where they go.
    role : str
        Name of the list, and of the folder of the tiles.
    areas : sequence of Area
        What is cut.
    side : int
        Side of a tile in pixels.
    classes : sequence of str
        Names of the classes.
    """
    from PIL import Image

    (folder / role).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for area, (left, top) in _each(areas, side):
        number = len(images) + 1
        name = f"{role}/{area.photograph.name}_{left:04d}_{top:04d}.png"
        Image.fromarray(area.tile(left, top, side)).save(folder / name, "PNG")
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for box, label, ignored in zip(*(part.tolist() for part in area.boxes(left, top, side)), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "iscrowd": int(ignored),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    atomic_write_text(folder / f"{role}.json", json.dumps(content))


def _each(areas: Iterable[Area], side: int) -> Iterator[tuple[Area, tuple[int, int]]]:
    for area in areas:
        for corner in area.corners(side):
            yield area, corner


def _starts(first: int, end: int, side: int, step: int) -> list[int]:
    if step >= side:
        return list(range(first, end, step))
    starts = list(range(first, max(first, end - side) + 1, step))
    last = max(first, end - side)
    return starts if starts[-1] == last else [*starts, last]
