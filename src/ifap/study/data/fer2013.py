"""FER2013: 35,887 grey faces of 48 x 48 pixels showing seven emotions (Goodfellow et al. 2013)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.raw_images import Arrays
from ifap.study.data.torchvision_readers import known_as, reading
from ifap.study.data.twins import Patterns, check_classes, check_sums, checksums, mark

NAME, CLASSES = "fer2013", 7
SIDE = 48
USUAL = "fer2013"  # the name of its folder that torchvision looks for
USAGES: dict[Role, str] = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
# In torchvision's order of preference, each with the name of its column of usages (None: training images only).
TABLES = {"fer2013.csv": "Usage", "icml_face_data.csv": " Usage", "train.csv": None}


def read(folder: Path) -> dict[Role, Raw]:
    """Return the images that the competition trained on, validated on (public) and ranked by (private).

    From ``fer2013.csv`` or ``icml_face_data.csv``: 28,709, 3,589 and 3,589 images. If there is only
    ``train.csv``: its images as training samples, because the labels of ``test.csv`` are not in it.
    """
    from torchvision.datasets import FER2013  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    table = next(file for file in TABLES if (place / file).exists())
    published = dict(FER2013._RESOURCES.values())
    sums = {file: md5 for file, md5 in checksums(place, published).items() if file == table}
    check_sums(place, sums)
    resources = {key: (file, sums.get(file)) for key, (file, _) in FER2013._RESOURCES.items()}
    reader: Any = type(FER2013.__name__, (FER2013,), {"_RESOURCES": resources})
    with known_as(place, USUAL) as parent, reading(place / table):
        found: dict[Role, Raw] = {"train": _stacked(reader(parent, split="train")._samples)}
        column = TABLES[table]
        if column is not None:
            # torchvision gives both test parts as one; the table says which image is of which.
            usages = [usage for usage in _column(place / table, column) if usage != USAGES["train"]]
            samples = reader(parent, split="test")._samples
            for role, usage in list(USAGES.items())[1:]:
                found[role] = _stacked([item for item, of in zip(samples, usages, strict=True) if of == usage])
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set as ``icml_face_data.csv``, the file that Kaggle offers."""
    check_classes(NAME, classes, CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    patterns, table = Patterns(classes, per_class, seed, channels=1), "icml_face_data.csv"
    with (folder / table).open("w", newline="") as stream:
        stream.write("emotion, Usage, pixels\n")
        for role, usage in USAGES.items():
            images, targets = patterns.array(role, (SIDE, SIDE))
            for image, target in zip(images, targets, strict=True):
                stream.write(f"{target},{usage},{' '.join(map(str, image.flatten()))}\n")
    mark(NAME, folder, patterns, checked=[table])


def _column(path: Path, name: str) -> list[str]:
    with path.open(newline="") as stream:
        return [row[name] for row in csv.DictReader(stream)]


def _stacked(samples: Sequence[tuple[Tensor, int]]) -> Arrays:
    images = torch.stack([image for image, _ in samples])[:, None]
    return Arrays(images, torch.tensor([label for _, label in samples], dtype=torch.int64))


DATASETS.register("fer2013")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=1, read=read, twin=twin, view="crop_flip")
)
