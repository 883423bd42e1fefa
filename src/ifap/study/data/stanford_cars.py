"""Stanford Cars: 16,185 photographs of cars in 196 makes, models and years (Krause et al. 2013)."""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.torchvision_readers import known_as, listed, reading
from ifap.study.data.twins import Patterns, check_classes, mark, struct_array, write_jpeg, write_mat

NAME, CLASSES = "stanford_cars", 196
ANNOTATIONS: dict[Role, str] = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
USUAL = "stanford_cars"  # the name of its folder that torchvision looks for


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 8,144 training and 8,041 test images."""
    from torchvision.datasets import StanfordCars  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    found: dict[Role, Raw] = {}
    with known_as(place, USUAL) as parent:
        for role, table in ANNOTATIONS.items():
            with reading(place / table):
                samples = StanfordCars(parent, split=role)._samples
                # Labels are bytes in the files: as plain numbers they cannot wrap.
                found[role] = listed(place, parent / USUAL, [(path, int(label)) for path, label in samples])
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: images in two folders, annotations as MATLAB files."""
    check_classes(NAME, classes, CLASSES)
    patterns = Patterns(classes, per_class, seed)
    for role, table in ANNOTATIONS.items():
        rows: list[dict[str, object]] = []
        for index, (label, number) in enumerate(patterns.order(role), start=1):
            pixels, name = patterns.image(role, label, number), f"{index:05d}.jpg"
            write_jpeg(folder / f"cars_{role}" / name, pixels)
            height, width = pixels.shape[:2]
            box = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": width, "bbox_y2": height}
            rows.append({**box, "class": label + 1, "fname": name})
        write_mat(folder / table, {"annotations": struct_array(rows)})
    names = [f"Synthetic Pattern {label + 1}" for label in range(classes)]
    write_mat(folder / "devkit" / "cars_meta.mat", {"class_names": names_array(names)})
    mark(NAME, folder, patterns)


def names_array(names: list[str]) -> object:
    """Return names as a MATLAB cell array of shape (1, names)."""
    import numpy as np

    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    return cells


DATASETS.register("stanford_cars")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=3, read=read, twin=twin, view="resized_crop")
)
