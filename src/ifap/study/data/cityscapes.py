"""Cityscapes: street scenes of 50 cities with a fine mask of 19 classes (Cordts et al. 2016).

The annotations of the test images are not public: the 500 validation images are the test split here,
as in the literature. The masks have 34 numbers, of which 19 are evaluated; pixels of the others do
not count.
"""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.dense import DenseSpec
from ifap.study.data.drawn_shapes import Shapes, mark_scenes, write_mask
from ifap.study.data.entries import DATASETS
from ifap.study.data.mask_folders import masks_beside
from ifap.study.data.origins import home
from ifap.study.data.scenes import DenseTask, Scenes, table_of
from ifap.study.data.twins import check_classes

NAME = "cityscapes"
NUMBERS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""What the masks call the evaluated classes, from road to bicycle."""
ALL = 34
PARTS: dict[Role, str] = {"train": "train", "test": "val"}
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
TABLE = table_of({number: label for label, number in enumerate(NUMBERS)}, sorted(set(range(ALL)) - set(NUMBERS)))


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the 2,975 training images, and the 500 validation images as test split."""
    place = home(NAME, folder)
    return {role: masks_beside(place, f"leftImg8bit/{part}", IMAGE, _mask, TABLE) for role, part in PARTS.items()}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: shapes of all classes but the first, which is the road under them."""
    check_classes(NAME, classes, len(NUMBERS))
    shapes = Shapes(classes - 1, per_class, seed)
    for role, part in PARTS.items():
        for number, scene in enumerate(shapes.scenes(role)):
            city = ("aachen", "bochum")[number % 2]
            name = f"leftImg8bit/{part}/{city}/{city}_{number:06d}_000019{IMAGE}"
            write_mask(folder / name, scene.image)
            mask = scene.mask({label: NUMBERS[label + 1] for label in range(shapes.classes)}, NUMBERS[0])
            mask[-1] = 1  # the car that the camera is in
            write_mask(folder / _mask(name), mask)
    mark_scenes(NAME, folder, shapes)


def _mask(name: str) -> str:
    return name.replace("leftImg8bit", "gtFine", 1).removesuffix(IMAGE) + MASK


DATASETS.register("cityscapes")(DenseSpec(name=NAME, classes=len(NUMBERS), read=read, twin=twin))
