"""Open Images: photographs with boxes of 601 classes of objects (Kuznetsova et al. 2020), as tables of numbers.

The paper does not say which version it used, nor which part: the boxes are those of version 6 and 7,
and of the 1.7 million training images with boxes those are used that lie in the folder. A group of
more than five objects in one box is neither right nor wrong where it is detected. Boxes are shares of
the image's sides, so every image is looked at for its size.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study.data.dense import DenseSpec, shapes_of
from ifap.study.data.drawn_shapes import Shapes, mark_scenes
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.scenes import ABSENT, UNDECODABLE, UNKNOWN, BoxList, DenseTask, Findings, Scenes
from ifap.study.data.torchvision_readers import reading
from ifap.study.data.twins import check_classes, write_jpeg

NAME, CLASSES = "open_images", 601
TABLES: dict[Role, tuple[str, ...]] = {
    "train": ("oidv6-train-annotations-bbox.csv", "train-annotations-bbox.csv"),
    "validation": ("validation-annotations-bbox.csv",),
    "test": ("test-annotations-bbox.csv",),
}
NAMES = ("oidv7-class-descriptions-boxable.csv", "class-descriptions-boxable.csv")
COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")

Row = tuple[list[float], int, bool]


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the images of all three parts.

    Raises
    ------
    ResultsError
        If a table is missing or damaged; the message names it.
    """
    place = home(NAME, folder)
    classes = _classes(_first(place, NAMES))
    return {role: _boxes(place, role, _first(place, tables), classes) for role, tables in TABLES.items()}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: a folder of images and a table for each part."""
    check_classes(NAME, classes, CLASSES)
    shapes = Shapes(classes, per_class, seed)
    for role, tables in TABLES.items():
        rows: list[tuple[object, ...]] = []
        for number, scene in enumerate(shapes.scenes(role)):
            name = f"{number:015x}{list(TABLES).index(role)}"
            write_jpeg(folder / "images" / role / f"{name}.jpg", scene.image)
            width, height = scene.size
            for thing in scene.things:
                left, top, right, bottom = thing.box
                rows.append((name, _code(thing.label), left / width, right / width, top / height, bottom / height, 0))
        _write_table(folder / tables[0], [COLUMNS, *rows])
    _write_table(folder / NAMES[0], [("LabelName", "DisplayName"), *((_code(k), f"shape {k}") for k in range(classes))])
    mark_scenes(NAME, folder, shapes)


def _boxes(place: Path, role: Role, table: Path, classes: dict[str, int]) -> Scenes:
    findings = Findings(str(table))
    rows: dict[str, list[Row]] = defaultdict(list)
    with reading(table), table.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lacking = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
        if lacking:
            raise ResultsError(f"{table} has no column {lacking[0]}")
        for number, line in enumerate(reader, 2):
            if line["LabelName"] not in classes:
                findings.note(UNKNOWN, f"{table.name} (row {number})")
                continue
            edges = [float(line[key]) for key in ("XMin", "YMin", "XMax", "YMax")]
            rows[line["ImageID"]].append((edges, classes[line["LabelName"]], line["IsGroupOf"].strip() == "1"))
    found = BoxList(findings)
    names = {image: f"images/{role}/{image}.jpg" for image in sorted(rows)}
    for (image, name), shape in zip(names.items(), shapes_of(place, names.values()), strict=True):
        if shape is None:
            findings.note(UNDECODABLE if (place / name).exists() else ABSENT, name)
            continue
        scaled = [([edge * side for edge, side in zip(edges, (*shape, *shape), strict=True)], label, group)
                  for edges, label, group in rows[image]]  # fmt: skip
        found.image(name, shape, scaled, f"{table.name} (image {image})")
    return found.scenes(place, len(classes))


def _classes(path: Path) -> dict[str, int]:
    with reading(path), path.open(newline="", encoding="utf-8") as stream:
        codes = [line[0] for line in csv.reader(stream) if line and line[0] != "LabelName"]
    return {code: label for label, code in enumerate(sorted(codes))}


def _first(place: Path, files: tuple[str, ...]) -> Path:
    return next((place / file for file in files if (place / file).exists()), place / files[0])


def _code(label: int) -> str:
    return f"/m/0{label:04d}"


def _write_table(path: Path, rows: list[tuple[object, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write_text(path, text.getvalue())


DATASETS.register("open_images")(DenseSpec(name=NAME, classes=CLASSES, read=read, twin=twin))
