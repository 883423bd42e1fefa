"""ImageNet: the 1.28 million photographs of ILSVRC 2012 in 1,000 classes (Russakovsky et al. 2015).

The labels of the competition's test images were never published, so its validation images are the
test split here, as in the papers that report ImageNet accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.torchvision_readers import listed, reading
from ifap.study.data.twins import Patterns, check_classes, mark, struct_array, write_jpeg, write_mat

NAME, CLASSES = "imagenet", 1000
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
META = DEVKIT / "meta.mat"
TRUTH = DEVKIT / "ILSVRC2012_validation_ground_truth.txt"


def read(folder: Path) -> dict[Role, Raw]:
    """Return the training images, and the validation images as test split.

    Classes are numbered in the order of their WordNet names, as for torchvision's pretrained
    networks. Not by torchvision's own ImageNet class: it wants archives, and keeps what they hold
    in a pickle.

    Raises
    ------
    ResultsError
        If a folder or a file of the devkit is missing or damaged, or the classes of the parts differ.
    """
    from torchvision.datasets import ImageFolder  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    with reading(place / "train"):
        train = ImageFolder(place / "train")
    order: dict[str, int] = train.class_to_idx
    if (place / META).exists():
        unknown = sorted(set(order) - set(_wnids(place / META).values()))
        if unknown:
            raise ResultsError(f"{place / 'train' / unknown[0]} is no class of {place / META}")
    if any(entry.is_dir() for entry in (place / "val").iterdir()):
        with reading(place / "val"):
            val = ImageFolder(place / "val")
        if val.class_to_idx != order:
            odd = sorted(set(val.class_to_idx) ^ set(order))[0]
            raise ResultsError(f"{place}: class {odd} is in only one of train/ and val/")
        samples = val.samples
    else:
        samples = _flat(place, order)
    return {"train": listed(place, place, train.samples), "test": listed(place, place, samples)}


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set as the archives unpack: a folder a class, a flat ``val/`` and the devkit."""
    check_classes(NAME, classes, CLASSES)
    patterns = Patterns(classes, per_class, seed)
    names = [f"n{1_000_000 + 137 * label:08d}" for label in range(classes)]
    # As in the real devkit, its own numbers do not follow the order of the names.
    numbers = np.random.default_rng(seed).permutation(classes) + 1
    for label, number in patterns.order("train"):
        write_jpeg(folder / "train" / names[label] / f"{names[label]}_{number}.JPEG",
                   patterns.image("train", label, number))  # fmt: skip
    truth = []
    for index, (label, number) in enumerate(patterns.order("test"), start=1):
        write_jpeg(folder / "val" / f"ILSVRC2012_val_{index:08d}.JPEG", patterns.image("test", label, number))
        truth.append(numbers[label])
    synsets = [_synset(int(numbers[label]), names[label]) for label in range(classes)]
    synsets.sort(key=lambda row: float(str(row["ILSVRC2012_ID"])))
    synsets.append(_synset(classes + 1, "n99999999", children=list(range(1, classes + 1))))
    write_mat(folder / META, {"synsets": struct_array(synsets).T})
    (folder / TRUTH).write_text("".join(f"{number}\n" for number in truth))
    mark(NAME, folder, patterns)


def _flat(place: Path, order: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the validation images of a flat folder, whose classes the devkit lists by its own numbers."""
    for file in (META, TRUTH):
        if not (place / file).exists():
            raise ResultsError(f"{place / file} not found: a flat {place / 'val'} needs the devkit, or class folders")
    wnids = _wnids(place / META)
    with reading(place / TRUTH):
        truth = [int(line) for line in (place / TRUTH).read_text().split()]
    images = sorted(str(path) for path in (place / "val").iterdir() if path.suffix == ".JPEG")
    if len(images) != len(truth):
        raise ResultsError(f"{place / 'val'} has {len(images)} images, {place / TRUTH} has {len(truth)} classes")
    known = {number: order[wnid] for number, wnid in wnids.items() if wnid in order}
    strange = sorted(set(truth) - set(known))
    if strange:
        raise ResultsError(f"{place / TRUTH}: class {strange[0]} has no folder in {place / 'train'}")
    return [(image, known[number]) for image, number in zip(images, truth, strict=True)]


def _wnids(meta: Path) -> dict[int, str]:
    """Return the WordNet name of each class by the devkit's number; groups of classes are left out."""
    from scipy.io import loadmat

    with reading(meta):
        rows = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}


def _synset(number: int, wnid: str, children: list[int] | None = None) -> dict[str, object]:
    return {
        "ILSVRC2012_ID": float(number),
        "WNID": wnid,
        "words": f"synthetic {wnid}, pattern",
        "gloss": "a synthetic pattern",
        "num_children": float(len(children or [])),
        "children": np.array(children or [], dtype=float),
        "wordnet_height": float(bool(children)),
        "num_train_images": 0.0,
    }


DATASETS.register("imagenet")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=3, read=read, twin=twin, view="resized_crop")
)
