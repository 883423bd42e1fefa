"""Food-101: 101,000 photographs of 101 dishes (Bossard et al. 2014)."""

from __future__ import annotations

import json
from pathlib import Path

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.torchvision_readers import known_as, listed, reading
from ifap.study.data.twins import Patterns, check_classes, mark, write_jpeg

NAME, CLASSES = "food101", 101
USUAL = "food-101"  # the name of its folder that the archive brings and torchvision looks for
ROLES: tuple[Role, ...] = ("train", "test")


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 75,750 training and 25,250 test images."""
    from torchvision.datasets import Food101  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    found: dict[Role, Raw] = {}
    classes: dict[Role, list[str]] = {}
    with known_as(place, USUAL) as parent:
        for role in ROLES:
            with reading(place / "meta" / f"{role}.json"):
                data = Food101(parent, split=role)
                found[role] = listed(place, parent / USUAL, zip(data._image_files, data._labels, strict=True))
                classes[role] = data.classes
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))[0]
        raise ResultsError(f"{place / 'meta'}: class {odd} is in only one of train.json and test.json")
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: images by class, and lists as text and JSON."""
    check_classes(NAME, classes, CLASSES)
    patterns, place = Patterns(classes, per_class, seed), folder / USUAL
    names = [f"synthetic_dish_{label:03d}" for label in range(classes)]
    meta = place / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        files: dict[str, list[str]] = {name: [] for name in names}
        for label, number in sorted(patterns.order(role)):
            file = f"{names[label]}/{100_000 * ROLES.index(role) + number}"
            write_jpeg(place / "images" / f"{file}.jpg", patterns.image(role, label, number))
            files[names[label]].append(file)
        (meta / f"{role}.json").write_text(json.dumps(files))
        (meta / f"{role}.txt").write_text("".join(f"{file}\n" for name in names for file in files[name]))
    (meta / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    mark(NAME, place, patterns)


DATASETS.register("food101")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=3, read=read, twin=twin, view="resized_crop")
)
