"""Scenes of synthetic twins: shapes on a background, whose boxes and masks are known to the pixel."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifap.files import atomic_write_text
from ifap.study.data.masks import polygon_pixels
from ifap.study.data.origins import PLACES, SYNTHETIC_FILE
from ifap.study.data.twins import NOISE, PARTS, Pixels

SIDES = (64, 97)  # images have sides of 64 to 96 pixels
OBJECTS = 3  # most of an image
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 0), (1, 0), (1, 1), (0, 1)),
    ((0.5, 0), (1, 1), (0, 1)),
    ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    ((0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)),
    ((0, 0), (1, 0), (1, 0.35), (0.35, 0.35), (0.35, 1), (0, 1)),
)
"""Corners in a box of side 1: square, triangle, diamond, octagon, angle."""


@dataclass(frozen=True)
class Thing:
    """One shape of a scene."""

    label: int  # Its class, from 0.
    polygon: list[float]  # x and y of its corners in turn, in pixels.
    pixels: Pixels  # Shape (height, width); 1 where it is.

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge, in pixels from the outer edge of the first pixel."""
        rows, columns = (np.flatnonzero(self.pixels.max(axis=axis)) for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Scene:
    """An image with shapes that do not overlap."""

    image: Pixels  # uint8, shape (height, width, 3).
    things: tuple[Thing, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def mask(self, values: dict[int, int], background: int) -> Pixels:
        """Return a number for each pixel: that of the class that it belongs to, or that of the background."""
        found = np.full(self.image.shape[:2], background, dtype=np.uint8)
        for thing in self.things:
            found[thing.pixels > 0] = values[thing.label]
        return found


@dataclass(frozen=True)
class Shapes:
    """Scenes whose classes can be told apart: each has a shape and a colour of its own, under noise."""

    classes: int
    per_class: int  # Training images that are sure to have the class; every other part has half as many, at least one.
    seed: int  # Another seed gives other scenes.

    def scenes(self, part: str) -> Iterator[Scene]:
        """Yield the scenes of a part: ``train``, ``test`` or ``validation``."""
        for number in range(self.count(part)):
            yield self.scene(part, number)

    def count(self, part: str) -> int:
        """Return how many scenes a part has."""
        return self.classes * (self.per_class if part == "train" else max(1, self.per_class // 2))

    def scene(self, part: str, number: int) -> Scene:
        """Return one scene; class ``number % classes`` is on it."""
        random = np.random.default_rng([self.seed, PARTS.index(part), number])
        width, height = (int(side) for side in random.integers(*SIDES, size=2))
        image = np.full((height, width, 3), random.uniform(90, 165)) + random.uniform(-12, 12, 3)
        count = int(random.integers(1, OBJECTS + 1))
        labels = [number % self.classes, *random.integers(0, self.classes, count - 1).tolist()]
        # One shape in each of some quarters of the image: none covers another.
        quarters = random.permutation(4)[:count]
        things = tuple(
            self._thing(label, int(quarter), width, height, random)
            for label, quarter in zip(labels, quarters, strict=True)
        )
        for thing in things:
            image[thing.pixels > 0] = self._colour(thing.label)
        image += random.normal(0, NOISE, image.shape)
        return Scene(image.clip(0, 255).astype(np.uint8), things)

    def _thing(self, label: int, quarter: int, width: int, height: int, random: np.random.Generator) -> Thing:
        wide, high = width // 2, height // 2
        sides = random.uniform(0.55, 0.95, 2) * (wide, high)
        start = random.uniform(0, 1, 2) * (np.array([wide, high]) - sides)
        corners = np.array(SHAPES[label % len(SHAPES)]) * sides + start + (quarter % 2 * wide, quarter // 2 * high)
        polygon = [round(float(value), 2) for value in corners.flatten()]
        return Thing(label, polygon, polygon_pixels([polygon], width, height))

    def _colour(self, label: int) -> NDArray[np.float64]:
        return 255 * np.array(colorsys.hsv_to_rgb(label / self.classes, 0.85, 0.9))


def mark_scenes(name: str, folder: Path, shapes: Shapes) -> None:
    """Write, last of all, the file that says what a folder holds."""
    atomic_write_text(
        folder / SYNTHETIC_FILE,
        f"# Synthetic: generated in the format of {PLACES[name].title}; none of its images is in here.\n"
        f"# {shapes.classes} classes, {shapes.per_class} training images a class, seed {shapes.seed}.\n",
    )


def write_mask(path: Path, numbers: Pixels) -> None:
    """Write numbers, shape (height, width), as a PNG file of one channel."""
    from PIL import Image  # slow to import, and only twins of image files need it

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path, "PNG")
