"""Synthetic twins: small learnable sets in the on-disk format of the real ones.

They let every reader, and the whole workflow behind it, run where the real data are not. What is
measured on them says nothing about the real data: each folder holds a file that says so.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifap.errors import ConfigError, ResultsError
from ifap.files import atomic_write_text
from ifap.study.data.origins import PLACES, SYNTHETIC_FILE

Pixels = NDArray[np.uint8]

SIDES = (48, 97)  # image files have sides of 48 to 96 pixels
QUALITY = 90  # of JPEG files
NOISE = 14.0  # deviation of each pixel, in grey levels
BRIGHTNESS = 16.0  # largest change of a whole image, in grey levels
PARTS = ("train", "test", "validation")


@dataclass(frozen=True)
class Patterns:
    """Images that can be told apart: each class has two colours and stripes of its own, under noise."""

    classes: int
    per_class: int  # Training images of each class; every other part has half as many, at least one.
    seed: int  # Another seed gives other images.
    channels: int = 3  # 3 for colour, 1 for grey.

    def order(self, part: str) -> list[tuple[int, int]]:
        """Return the (class, number) of every image of a part, in mixed order."""
        count = self.per_class if part == "train" else max(1, self.per_class // 2)
        images = [(label, number) for label in range(self.classes) for number in range(count)]
        return [images[index] for index in self._random(part).permutation(len(images))]

    def image(self, part: str, label: int, number: int, size: tuple[int, int] | None = None) -> Pixels:
        """Return one image.

        Parameters
        ----------
        part : str
            ``train``, ``test`` or ``validation``.
        label, number : int
            Its class, and which of the class's images of this part.
        size : tuple of int, optional
            Height and width; drawn at random if not given.

        Returns
        -------
        ndarray, uint8, shape (height, width, channels)
        """
        random = self._random(part, label, number)
        height, width = size or random.integers(*SIDES, size=2)
        share = label / self.classes
        angle = np.pi * share + random.normal(0, 0.05)
        rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * ((2 + label % 3) * along + random.random()))
        first, second = (np.array(colour) for colour in self._colours(share))
        mixed = 255 * (wave[..., None] * first + (1 - wave[..., None]) * second)
        mixed += random.uniform(-BRIGHTNESS, BRIGHTNESS) + random.normal(0, NOISE, mixed.shape)
        return mixed.clip(0, 255).astype(np.uint8)

    def array(self, part: str, size: tuple[int, int]) -> tuple[Pixels, list[int]]:
        """Return all images of a part, uint8 of shape (images, height, width, channels), and their classes."""
        order = self.order(part)
        return np.stack([self.image(part, *which, size) for which in order]), [label for label, _ in order]

    def _colours(self, share: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.channels == 1:
            return (0.1 + 0.5 * share,), (0.4 + 0.5 * share,)
        shift = np.random.default_rng(self.seed).random()  # another seed: the same hues, from another start
        hue = (share + shift) % 1
        return colorsys.hsv_to_rgb(hue, 0.9, 0.85), colorsys.hsv_to_rgb((hue + 0.12) % 1, 0.5, 0.5)

    def _random(self, part: str, *which: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, PARTS.index(part), *which])


def check_classes(name: str, classes: int, most: int) -> None:
    """Raise if a twin is to have more classes than the real data set.

    Raises
    ------
    ConfigError
        The message names the key.
    """
    if classes > most:
        raise ConfigError(f"datasets.{name}.synthetic.classes: {classes}, but {name} has {most} classes")


def write_jpeg(path: Path, pixels: Pixels) -> None:
    """Write an image, shape (height, width, 3), as a JPEG file."""
    from PIL import Image  # slow to import, and only twins of image files need it

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=QUALITY)


def write_mat(path: Path, content: dict[str, object]) -> None:
    """Write variables as a MATLAB file, without the date that is put into its header otherwise."""
    import io

    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    savemat(stream, content)
    header = b"MATLAB 5.0 MAT-file, synthetic".ljust(116)
    path.write_bytes(header + stream.getvalue()[len(header) :])


def struct_array(rows: Sequence[dict[str, object]]) -> NDArray[np.void]:
    """Return rows as a MATLAB structure array of shape (1, rows)."""
    table = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for index, row in enumerate(rows):
        table[0, index] = tuple(row.values())
    return table


def mark(name: str, folder: Path, patterns: Patterns, checked: Sequence[str] = ()) -> None:
    """Write, last of all, the file that says what a folder holds.

    Parameters
    ----------
    name : str
        The data set.
    folder : Path
        Its folder.
    patterns : Patterns
        What was written.
    checked : sequence of str, optional
        Files whose MD5 sums the file lists, in the manner of ``md5sum``, for `checksums`.
    """
    sums = "".join(f"{_md5(folder / file)}  {file}\n" for file in checked)
    atomic_write_text(
        folder / SYNTHETIC_FILE,
        f"# Synthetic: generated in the format of {PLACES[name].title}; none of its images is in here.\n"
        f"# {patterns.classes} classes, {patterns.per_class} training images a class, seed {patterns.seed}.\n{sums}",
    )


def checksums(folder: Path, published: dict[str, str]) -> dict[str, str]:
    """Return the MD5 sum that each file should have: as published, or as a twin's own file lists them."""
    try:
        text = (folder / SYNTHETIC_FILE).read_text()
    except FileNotFoundError:
        return published
    return {file: md5 for md5, file in _listed(text)}


def check_sums(folder: Path, sums: dict[str, str]) -> None:
    """Compare the MD5 sums of files that are there.

    Raises
    ------
    ResultsError
        If one differs; the message names the file.
    """
    for file, wanted in sums.items():
        path = folder / file
        if path.exists() and (found := _md5(path)) != wanted:
            raise ResultsError(f"{path} is damaged or not the published file: MD5 {found}, expected {wanted}")


def _listed(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if not line.startswith("#"):
            md5, _, file = line.partition("  ")
            yield md5, file


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
