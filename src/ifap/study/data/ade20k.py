"""ADE20K: photographs of scenes with a mask of 150 classes (Zhou et al. 2017), as the challenge of 2016 has them.

The annotations of the test images are not public: the 2,000 validation images are the test split
here, as in the literature. Number 0 of a mask is no class: such pixels do not count.
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
from ifap.study.data.twins import check_classes, write_jpeg

NAME, CLASSES = "ade20k", 150
PARTS: dict[Role, str] = {"train": "training", "test": "validation"}
TABLE = table_of({number: number - 1 for number in range(1, CLASSES + 1)}, [0])


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the 20,210 training images, and the 2,000 validation images as test split."""
    place = home(NAME, folder)
    return {
        role: masks_beside(
            place, f"images/{part}", ".jpg", lambda name: name.replace("images", "annotations", 1)[:-4] + ".png", TABLE
        )
        for role, part in PARTS.items()
    }


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: shapes of all classes but the first, which is the wall behind them."""
    check_classes(NAME, classes, CLASSES)
    shapes = Shapes(classes - 1, per_class, seed)
    for role, part in PARTS.items():
        for number, scene in enumerate(shapes.scenes(role), 1):
            name = f"ADE_{'train' if role == 'train' else 'val'}_{number:08d}"
            write_jpeg(folder / "images" / part / f"{name}.jpg", scene.image)
            mask = scene.mask({label: label + 2 for label in range(shapes.classes)}, 1)
            mask[0] = 0  # not everything is annotated
            write_mask(folder / "annotations" / part / f"{name}.png", mask)
    mark_scenes(NAME, folder, shapes)


DATASETS.register("ade20k")(DenseSpec(name=NAME, classes=CLASSES, read=read, twin=twin))
