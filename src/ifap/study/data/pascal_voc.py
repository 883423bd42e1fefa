"""Pascal VOC: photographs with boxes and masks of 20 classes of objects (Everingham et al. 2010, 2015).

The paper does not say which years it used. Detectors are trained on ``trainval`` of 2007 and 2012
together, 16,551 images, and tested on the 4,952 of 2007, as is usual since Ren et al. (2015), because
the annotations of later test images are not public. Segmenters are trained and tested on ``train``
and ``val`` of 2012, 1,464 and 1,449 images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.dense import DenseSpec
from ifap.study.data.drawn_shapes import Shapes, mark_scenes, write_mask
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.scenes import BoxList, DenseTask, Findings, MaskFiles, Scenes, table_of
from ifap.study.data.torchvision_readers import reading
from ifap.study.data.twins import check_classes, write_jpeg
from ifap.study.data.voc_xml import annotation, as_xml

NAME = "pascal_voc"
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(CLASSES)}
BOX_LISTS: dict[Role, tuple[tuple[str, str], ...]] = {
    "train": (("VOC2007", "trainval"), ("VOC2012", "trainval")),
    "test": (("VOC2007", "test"),),
}
MASK_LISTS: dict[Role, str] = {"train": "train", "test": "val"}
VOID = 255  # edges of objects, and objects that are too hard to outline


def read(folder: Path, task: DenseTask) -> dict[Role, Scenes]:
    """Return the training and the test images of a task.

    Raises
    ------
    ResultsError
        If a list or an annotation is missing or damaged; the message names it.
    """
    place = home(NAME, folder)
    if task == "segmentation":
        return {role: _masks(place, part) for role, part in MASK_LISTS.items()}
    return {role: _boxes(place, lists) for role, lists in BOX_LISTS.items()}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: both years, whose masks and boxes belong to each other."""
    check_classes(NAME, classes, len(CLASSES))
    shapes = Shapes(classes, per_class, seed)
    early = _write(folder, "VOC2007", shapes, "validation", 1)
    tested = _write(folder, "VOC2007", shapes, "test", 1 + len(early))
    late = _write(folder, "VOC2012", shapes, "train", 1)
    outlined = _write(folder, "VOC2012", shapes, "test", 1 + len(late))
    lists = {
        "VOC2007/ImageSets/Main/trainval": early, "VOC2007/ImageSets/Main/test": tested,
        "VOC2012/ImageSets/Main/trainval": late, "VOC2012/ImageSets/Segmentation/train": late,
        "VOC2012/ImageSets/Segmentation/val": outlined,
    }  # fmt: skip
    for file, names in lists.items():
        path = folder / "VOCdevkit" / f"{file}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    mark_scenes(NAME, folder, shapes)


def _listed(path: Path) -> list[str]:
    with reading(path):
        names = [line.split()[0] for line in path.read_text("ascii").splitlines() if line.strip()]
    if not names:
        raise ResultsError(f"{path} lists no image")
    return names


def _boxes(place: Path, lists: Sequence[tuple[str, str]]) -> Scenes:
    findings = Findings(f"{place}, {' and '.join(f'{year} {part}' for year, part in lists)}")
    found = BoxList(findings)
    for year, part in lists:
        for name in _listed(place / year / "ImageSets" / "Main" / f"{part}.txt"):
            file = f"{year}/Annotations/{name}.xml"
            with reading(place / file):
                shape, rows = annotation(place / file, file, NUMBERS, findings)
            found.image(f"{year}/JPEGImages/{name}.jpg", shape, rows, file)
    return found.scenes(place)


def _masks(place: Path, part: str) -> Scenes:
    year = "VOC2012"
    names = _listed(place / year / "ImageSets" / "Segmentation" / f"{part}.txt")
    table = table_of({number: number for number in range(len(CLASSES) + 1)}, [VOID])
    masks = MaskFiles(tuple(f"{year}/SegmentationClass/{name}.png" for name in names), table)
    images = tuple(f"{year}/JPEGImages/{name}.jpg" for name in names)
    return Scenes(place, images, masks, Findings(f"{place / year}, segmentation {part}"))


def _write(folder: Path, year: str, shapes: Shapes, part: str, first: int) -> list[str]:
    """Write the images of a part with their boxes and masks; returns their names."""
    names, below = [], folder / "VOCdevkit" / year
    for number, scene in enumerate(shapes.scenes(part), first):
        name = f"{number:06d}" if year == "VOC2007" else f"2012_{number:06d}"
        names.append(name)
        write_jpeg(below / "JPEGImages" / f"{name}.jpg", scene.image)
        path = below / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_xml(f"{name}.jpg", scene.size, ((thing.box, CLASSES[thing.label]) for thing in scene.things)).write(path)
        mask = scene.mask({label: label + 1 for label in range(shapes.classes)}, 0)
        write_mask(below / "SegmentationClass" / f"{name}.png", mask)
    return names


DATASETS.register("pascal_voc")(
    DenseSpec(name=NAME, classes=len(CLASSES), read=read, twin=twin, background=True, boxes="map50")
)
