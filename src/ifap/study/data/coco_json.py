"""Annotations in COCO's JSON format, which others use as well: boxes and outlines of objects (Lin et al. 2014)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifap.errors import ResultsError
from ifap.study.data.drawn_shapes import Scene, Shapes
from ifap.study.data.masks import area, run_lengths
from ifap.study.data.scenes import ABSENT, EMPTY, NO_OUTLINE, UNKNOWN, BoxList, Findings, Regions, Scenes
from ifap.study.data.torchvision_readers import reading

Locate = Callable[[Mapping[str, Any]], str]
"""Returns where an image lies, relative to the data set's folder, from what the file says of it."""


@dataclass(frozen=True)
class Coco:
    """The content of an annotation file."""

    images: list[Any]  # As they are in the file.
    objects: Mapping[int, list[Any]]  # The annotations of each image, by its number.
    classes: Mapping[int, int]  # The class of each category, from 0 in the order of the categories' numbers.
    findings: Findings  # What is wrong.
    file: str  # The file's name.


def open_coco(path: Path) -> Coco:
    """Read an annotation file.

    Raises
    ------
    ResultsError
        If it is missing, damaged or has no images.
    """
    findings = Findings(str(path))
    with reading(path):
        content = json.loads(path.read_text("utf-8"))
        images = content["images"]
        known = {int(image["id"]) for image in images}
        classes = {number: label for label, number in enumerate(sorted(int(c["id"]) for c in content["categories"]))}
        objects: dict[int, list[Any]] = defaultdict(list)
        for item in content["annotations"]:
            if item["image_id"] in known and item["category_id"] in classes:
                objects[int(item["image_id"])].append(item)
            else:
                findings.note(UNKNOWN, f"{path.name} (annotation {item.get('id')})")
    if not images:
        raise ResultsError(f"{path} lists no image")
    return Coco(images, objects, classes, findings, path.name)


def boxes(path: Path, place: Path, locate: Locate) -> Scenes:
    """Return images and boxes of an annotation file."""
    content = open_coco(path)
    found = BoxList(content.findings)
    for image, name in _present(content, place, locate):
        with reading(path):
            rows = [
                (_edges(item["bbox"]), content.classes[item["category_id"]], bool(item.get("iscrowd", 0)))
                for item in content.objects.get(image["id"], ())
            ]
            shape = (int(image["width"]), int(image["height"]))
        found.image(name, shape, rows, f"{content.file} (image {image['id']})")
    return found.scenes(place, len(content.classes))


def regions(path: Path, place: Path, locate: Locate) -> Scenes:
    """Return images and the outlines of their objects, the smallest last; see `boxes`."""
    content = open_coco(path)
    names: list[str] = []
    shapes: list[tuple[int, int]] = []
    runs: list[bytes] = []
    labels: list[int] = []
    offsets = [0]
    for image, name in _present(content, place, locate):
        with reading(path):
            shape = (int(image["width"]), int(image["height"]))
        found = sorted(_outlines(content, image, shape), key=lambda thing: -thing[0])
        if not found:
            content.findings.note(EMPTY, name)
        names.append(name)
        shapes.append(shape)
        runs.extend(counts for _, counts, _ in found)
        labels.extend(label for _, _, label in found)
        offsets.append(len(runs))
    targets = Regions(
        torch.tensor(shapes, dtype=torch.int64).view(-1, 2),
        tuple(runs),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(offsets, dtype=torch.int64),
    )
    return Scenes(place, tuple(names), targets, content.findings, len(content.classes))


def pictures(path: Path, place: Path, locate: Locate) -> Scenes:
    """Return the images of an annotation file alone; see `boxes`."""
    content = open_coco(path)
    return Scenes(place, tuple(name for _, name in _present(content, place, locate)), None, content.findings)


def as_json(shapes: Shapes, part: str, names: Callable[[int], str], categories: Mapping[int, int]) -> dict[str, Any]:
    """Return the content of an annotation file of a part of a synthetic set.

    Parameters
    ----------
    shapes : Shapes
        Its scenes.
    part : str
        Which of them.
    names : callable
        The file of the image with a number.
    categories : mapping of int to int
        The number of the category of each class.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(shapes.scenes(part), 1):
        width, height = scene.size
        images.append({"id": number, "file_name": names(number), "width": width, "height": height})
        annotations.extend(_annotations(scene, number, len(annotations) + 1, categories))
    listed = [{"id": categories[label], "name": f"shape {label}"} for label in range(shapes.classes)]
    return {"images": images, "annotations": annotations, "categories": listed}


def _annotations(scene: Scene, image: int, first: int, categories: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    for number, thing in enumerate(scene.things, first):
        left, top, right, bottom = thing.box
        yield {
            "id": number,
            "image_id": image,
            "category_id": categories[thing.label],
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [thing.polygon],
            "area": int(thing.pixels.sum()),
            "iscrowd": 0,
        }


def _present(content: Coco, place: Path, locate: Locate) -> Iterator[tuple[Any, str]]:
    for image in content.images:
        with reading(Path(content.findings.where)):
            name = locate(image)
        if (place / name).exists():
            yield image, name
        else:
            content.findings.note(ABSENT, name)


def _edges(box: Any) -> tuple[float, float, float, float]:
    left, top, width, height = (float(value) for value in box)
    return left, top, left + width, top + height


def _outlines(content: Coco, image: Any, shape: tuple[int, int]) -> Iterator[tuple[int, bytes, int]]:
    """Yield area, run lengths and class of each object that has an outline; notes the others."""
    for item in content.objects.get(image["id"], ()):
        try:
            counts = run_lengths(item["segmentation"], *shape)
            size = area(counts, *shape)
        except (ValueError, TypeError, KeyError):
            size = 0
        if size:
            yield size, counts, 1 + content.classes[item["category_id"]]
        else:
            content.findings.note(NO_OUTLINE, f"{content.file} (annotation {item.get('id')})")
