"""COCO-Stuff: the images of COCO 2017 with a mask of 80 classes of things and 91 of stuff (Caesar et al. 2018).

The 5,000 validation images are the test split here. For generation the images alone are read.
"""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.coco2017 import PARTS, UNUSED
from ifap.study.data.dense import DenseSpec
from ifap.study.data.drawn_shapes import Shapes, mark_scenes, write_mask
from ifap.study.data.entries import DATASETS
from ifap.study.data.mask_folders import masks_beside, pictures_in
from ifap.study.data.origins import home
from ifap.study.data.scenes import DenseTask, Scenes, table_of
from ifap.study.data.twins import check_classes, write_jpeg

NAME = "coco_stuff"
# A mask has the number of a class less 1; number 91 of COCO, like the other gaps, is none.
NUMBERS = tuple(number - 1 for number in range(1, 183) if number not in (*UNUSED, 91))
UNLABELLED = 255
TABLE = table_of({number: label for label, number in enumerate(NUMBERS)}, [UNLABELLED])


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the 118,287 training images, and the 5,000 validation images as test split."""
    place = home(NAME, folder)
    if task == "generation":
        return {role: pictures_in(place, part, ".jpg") for role, part in PARTS.items()}
    return {role: masks_beside(place, part, ".jpg", _mask, TABLE) for role, part in PARTS.items()}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: shapes of all classes but the last, which is what lies behind them."""
    check_classes(NAME, classes, len(NUMBERS))
    shapes = Shapes(classes - 1, per_class, seed)
    for role, part in PARTS.items():
        for number, scene in enumerate(shapes.scenes(role), 1):
            name = f"{part}/{number:012d}.jpg"
            write_jpeg(folder / name, scene.image)
            mask = scene.mask({label: NUMBERS[label] for label in range(shapes.classes)}, NUMBERS[classes - 1])
            mask[:, 0] = UNLABELLED
            write_mask(folder / _mask(name), mask)
    mark_scenes(NAME, folder, shapes)


def _mask(name: str) -> str:
    return f"stuffthingmaps/{name.removesuffix('.jpg')}.png"


DATASETS.register("coco_stuff")(DenseSpec(name=NAME, classes=len(NUMBERS), read=read, twin=twin))
