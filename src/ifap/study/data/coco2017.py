"""COCO 2017: photographs with boxes and outlines of objects of 80 classes (Lin et al. 2014).

The annotations of the test images are not public: the 5,000 validation images are the test split
here, as in the literature. A segmenter's masks are drawn from the outlines of the objects, smaller
ones over larger ones; what no object covers is the background, class 0 of 81.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifap.data import Role
from ifap.files import atomic_write_text
from ifap.study.data import coco_json
from ifap.study.data.dense import DenseSpec
from ifap.study.data.drawn_shapes import Shapes, mark_scenes
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.scenes import DenseTask, Scenes
from ifap.study.data.twins import check_classes, write_jpeg

NAME, CLASSES = "coco2017", 80
PARTS: dict[Role, str] = {"train": "train2017", "test": "val2017"}
# Of the numbers up to 90, these were never used for objects.
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES = tuple(number for number in range(1, 91) if number not in UNUSED)
READERS = {"detection": coco_json.boxes, "segmentation": coco_json.regions, "generation": coco_json.pictures}


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the 118,287 training images, and the 5,000 validation images as test split."""
    place = home(NAME, folder)
    return {
        role: READERS[task](place / "annotations" / f"instances_{part}.json", place, _below(part))
        for role, part in PARTS.items()
    }


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: two folders of images and their annotation files."""
    check_classes(NAME, classes, CLASSES)
    shapes = Shapes(classes, per_class, seed)
    for role, part in PARTS.items():
        for number, scene in enumerate(shapes.scenes(role), 1):
            write_jpeg(folder / part / _name(number), scene.image)
        content = coco_json.as_json(shapes, role, _name, dict(enumerate(CATEGORIES)))
        atomic_write_text(folder / "annotations" / f"instances_{part}.json", json.dumps(content))
    mark_scenes(NAME, folder, shapes)


def _below(part: str) -> coco_json.Locate:
    def locate(image: Mapping[str, Any]) -> str:
        return f"{part}/{image['file_name']}"

    return locate


def _name(number: int) -> str:
    return f"{number:012d}.jpg"


DATASETS.register("coco2017")(DenseSpec(name=NAME, classes=CLASSES, read=read, twin=twin, background=True))
