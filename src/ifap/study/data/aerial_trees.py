"""Trees on four aerial photographs, each with a box (Weinstein et al. 2019, 2020), cut into tiles.

A package carries the photographs, of 0.1 m a pixel, with 951 boxes. Detectors are trained on the largest one. Its
lowest rows are for validation, and a gap as wide as the largest box lies between both: no box is in two splits. The
three other photographs, of two other places and of another part of the same one, are the test split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.files import beside
from ifap.study.data.base import content_hash
from ifap.study.data.coco_json import boxes
from ifap.study.data.dense import DenseSpec
from ifap.study.data.entries import DATASETS
from ifap.study.data.images import opened
from ifap.study.data.origins import home
from ifap.study.data.scenes import Boxes, BoxList, DenseTask, Findings, Scenes
from ifap.study.data.tiles import Area, Photograph, write_tiles
from ifap.study.data.torchvision_readers import reading
from ifap.study.data.voc_xml import annotation
from ifap.study.packages import AERIAL

NAME, CLASSES = "aerial_trees", ("tree",)
NUMBERS = {"Tree": 0, "Alive": 0, "Dead": 0}
"""One photograph tells living from dead trees, the others do not: a tree is a tree."""
SIDE = 256  # pixels of a tile
STEP = 128  # from one training tile to the next: each tree is whole on one of them at least
HELD_OUT = 512  # lowest rows of the largest photograph, for validation
GAP = 128  # rows above them that are in no split; the largest box has 109 rows
ROLES: tuple[Role, ...] = ("train", "validation", "test")
AGAIN = "remove it and run the fetch stage again"
DECODED = {
    AERIAL[0]: "f9c1a19ecd4ddd839597f4def652a6abd8342530e4bc39ca54d8cfccea35e7b7",
    AERIAL[1]: "4c80d2da6182f1d77e12c6a7ae4b8a3037db7b4f398d4af75756d322196b3cac",
    AERIAL[2]: "bac876c3e1e84686c9e34580c3cb22873a1700ecc175d11b98c4eaf4ac4d7b27",
    AERIAL[3]: "d17404b26ee0a10bcf838f9f1086d1889f90e0a0da92eb0deec7e9f0333c9a8f",
}
"""Checksum of each photograph's pixels and boxes as they are in memory."""


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the tiles of all three parts from the folder that `cut` wrote.

    Raises
    ------
    ResultsError
        If a list is missing or damaged; the message names it.
    """
    return {role: boxes(folder / f"{role}.json", folder, lambda image: str(image["file_name"])) for role in ROLES}


def cut(folder: Path, tiles: Path) -> None:
    """Write the tiles of the photographs in a folder into a new one, which appears whole or not at all.

    A box that a tile cuts counts on it if at least half of it is visible; the others are known, but neither taught nor
    asked for. Tiles of validation and test lie side by side, so they show each pixel once.

    Raises
    ------
    ResultsError
        If a photograph or its boxes are missing, damaged, do not fit each other, or are not the published ones.
    """
    place = home(NAME, folder)
    photographs = [photograph(place, name) for name in AERIAL]
    for each in photographs:
        check_decoded(place, each)
    largest, *others = photographs
    height = len(largest.pixels)
    areas: dict[Role, list[Area]] = {
        "train": [Area(largest, 0, height - HELD_OUT - GAP, STEP)],
        "validation": [Area(largest, height - HELD_OUT, height, SIDE)],
        "test": [Area(each, 0, len(each.pixels), SIDE) for each in others],
    }
    with beside(tiles, folder=True) as staging:
        for role in ROLES:
            write_tiles(staging, role, areas[role], SIDE, CLASSES)
        staging.chmod(0o755)
        staging.rename(tiles)


def photograph(place: Path, name: str) -> Photograph:
    """Return a photograph of a folder with its boxes.

    Raises
    ------
    ResultsError
        One line that names the file, if it cannot be read, or image and boxes do not fit each other.
    """
    image, boxes_file = place / f"{name}.png", place / f"{name}.xml"
    with opened(image, "not found: run the fetch stage again", AGAIN) as decoded:
        mode, pixels = decoded.mode, np.asarray(decoded)
    findings = Findings(str(boxes_file))
    found = BoxList(findings)
    with reading(boxes_file):
        shape, rows = annotation(boxes_file, boxes_file.name, NUMBERS, findings)
    if mode != "RGB" or (pixels.shape[1], pixels.shape[0]) != shape:
        raise ResultsError(
            f"{image} has {pixels.shape[1]} x {pixels.shape[0]} pixels in {mode}, {boxes_file.name} says "
            f"{shape[0]} x {shape[1]} in RGB: {AGAIN}"
        )
    found.image(image.name, shape, rows, boxes_file.name)
    for kind, entry in findings.report().items():
        raise ResultsError(f"{boxes_file}: {entry['count']} {kind}: {AGAIN}")
    targets = found.scenes(place).targets
    assert isinstance(targets, Boxes)
    return Photograph(name, pixels, targets.boxes, targets.labels)


def check_decoded(place: Path, found: Photograph) -> None:
    """Refuse a photograph or boxes that are not the published ones.

    Raises
    ------
    ResultsError
        Names the folder and the photograph.
    """
    here = checksum(found)
    if here != DECODED[found.name]:
        raise ResultsError(
            f"{place}: pixels and boxes of {found.name} are not those of DeepForest (their SHA-256 is {here}, not "
            f"{DECODED[found.name]}): remove its files and run the fetch stage again"
        )


def checksum(found: Photograph) -> str:
    """Return a hash of a photograph's pixels and boxes."""
    return content_hash({"pixels": torch.from_numpy(found.pixels.copy()), "boxes": found.boxes})


DATASETS.register("aerial_trees")(DenseSpec(name=NAME, classes=len(CLASSES), read=read, twin=None, cut=cut))
