"""Objects365: photographs with boxes of 365 classes of objects (Shao et al. 2019), in COCO's format.

The second version: 1.7 million training images, of which those are used that lie in the folder as
long as ``max_bad_annotations`` allows the others. The annotations of the test images are not public,
so its 80,000 validation images are the test split here.
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

NAME, CLASSES = "objects365", 365
PARTS: dict[Role, str] = {"train": "train", "test": "val"}


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the training images, and the validation images as test split."""
    place = home(NAME, folder)
    return {role: coco_json.boxes(place / _file(part), place, _below(part)) for role, part in PARTS.items()}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: images in numbered patches."""
    check_classes(NAME, classes, CLASSES)
    shapes = Shapes(classes, per_class, seed)
    for role, part in PARTS.items():
        content = coco_json.as_json(shapes, role, _name, {label: label + 1 for label in range(classes)})
        for image, scene in zip(content["images"], shapes.scenes(role), strict=True):
            write_jpeg(folder / _below(part)(image), scene.image)
        atomic_write_text(folder / _file(part), json.dumps(content))
    mark_scenes(NAME, folder, shapes)


def _file(part: str) -> str:
    return f"annotations/zhiyuan_objv2_{part}.json"


def _below(part: str) -> coco_json.Locate:
    def locate(image: Mapping[str, Any]) -> str:
        # The names in the file tell the patch, below folders that the archives do not have.
        patch, name = str(image["file_name"]).split("/")[-2:]
        return f"images/{part}/{patch}/{name}"

    return locate


def _name(number: int) -> str:
    return f"images/v1/patch{number % 2}/objects365_v1_{number:08d}.jpg"


DATASETS.register("objects365")(DenseSpec(name=NAME, classes=CLASSES, read=read, twin=twin))
