"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32 x 32 pixels in 10 or 100 (fine) classes (Krizhevsky 2009).

Pickled batches, read by torchvision; CIFAR-10 also as a package carries it, see `ifap.study.data.cifar_rows`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.base import DatasetSpec, Raw, content_hash
from ifap.study.data.cifar_rows import SIDE, read_rows
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import PLACES, home
from ifap.study.data.pickles import plain_pickle, refuse_foreign
from ifap.study.data.raw_images import Arrays
from ifap.study.data.torchvision_readers import reading
from ifap.study.data.twins import Patterns, check_classes, check_sums, checksums, mark

GROUP = 5  # fine classes of CIFAR-100 in a coarse one
DECODED: dict[Role, str] = {
    "train": "0e918005ad588ac35aab9f1bb685f143946fd8805041e03c3db45656d66fea5a",
    "test": "1d1695fa7043e771ac3d432ab88ae83806ba8882e8b11b4b75342cb63af563c1",
}
"""Checksums of CIFAR-10's images and classes, as they are in memory and in the order of the published batches."""


def read_batches(name: str, folder: Path, reader: type[Any]) -> dict[Role, Raw]:
    """Return the training and test images of a CIFAR folder, or of the folder above, by torchvision's `reader`.

    Raises
    ------
    ResultsError
        If a file is missing, damaged, not the published one, or its pickle holds more than arrays,
        texts and lists.
    """
    place = home(name, folder)
    files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    for file, _ in files:
        refuse_foreign(place / file)
    sums = checksums(place, dict(files))
    check_sums(place, sums)
    local = _local(reader, sums)
    found: dict[Role, Raw] = {}
    roles: tuple[Role, ...] = ("train", "test")
    for role in roles:
        with reading(place), warnings.catch_warnings():
            # The published files pass a flag of an old numpy as a number.
            warnings.simplefilter("ignore")
            data = local(place, train=role == "train")
            images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
            found[role] = Arrays(images, torch.tensor(data.targets, dtype=torch.int64))
    return found


def write_batches(
    name: str, folder: Path, patterns: Patterns, most: int, batches: Mapping[str, tuple[str, int, int]], meta: str,
    labels: Mapping[str, int], names: Mapping[str, int],
) -> None:  # fmt: skip
    """Write a synthetic set in CIFAR's format.

    Parameters
    ----------
    name : str
        The data set.
    folder : Path
        Where its own folder goes.
    patterns : Patterns
        What to draw.
    most : int
        Classes of the real data set.
    batches : mapping
        File name to (part, which share of it, number of shares).
    meta : str
        Name of the file of class names.
    labels : mapping
        Key of each list of labels to how many classes share one label.
    names : mapping
        Key of each list of class names likewise.
    """
    check_classes(name, patterns.classes, most)
    place = folder / PLACES[name].homes[0]
    place.mkdir(parents=True, exist_ok=True)
    drawn = {part: patterns.array(part, (SIDE, SIDE)) for part in ("train", "test")}
    for file, (part, index, shares) in batches.items():
        images, targets = drawn[part]
        rows = np.array_split(np.arange(len(images)), shares)[index]
        content = {
            "batch_label": f"synthetic {part} batch {index + 1} of {shares}",
            **{key: [targets[row] // group for row in rows] for key, group in labels.items()},
            "data": images[rows].transpose(0, 3, 1, 2).reshape(len(rows), 3 * SIDE * SIDE),
            "filenames": [f"synthetic_{part}_{row:06d}.png" for row in rows],
        }
        (place / file).write_bytes(plain_pickle(content))
    titles = {key: [f"synthetic {n}" for n in range(-(-patterns.classes // group))] for key, group in names.items()}
    (place / meta).write_bytes(plain_pickle(titles))
    mark(name, place, patterns, checked=[*batches, meta])


def _local(reader: type[Any], sums: Mapping[str, str]) -> type[Any]:
    """Return torchvision's class for files that lie in its root and have the given MD5 sums."""
    lists = {key: [[file, sums.get(file)] for file, _ in getattr(reader, key)] for key in ("train_list", "test_list")}
    meta = {**reader.meta, "md5": sums.get(reader.meta["filename"])}
    return type(reader.__name__, (reader,), {"base_folder": "", "meta": meta, **lists})


def read_cifar10(folder: Path) -> dict[Role, Raw]:
    """Return the 50,000 training and 10,000 test images, of whichever form is there.

    Raises
    ------
    ResultsError
        As `read_batches` and `read_rows` do, or if what the rows hold is not what the published batches do.
    """
    place = home("cifar10", folder)
    if not (place / "test_batch").exists():
        rows = read_rows(place)
        check_decoded(place, rows)
        return {**rows}
    from torchvision.datasets import CIFAR10  # slow to import, and only fetching needs it

    return read_batches("cifar10", folder, CIFAR10)


def check_decoded(folder: Path, found: Mapping[Role, Arrays]) -> None:
    """Refuse images or classes that are not those of the published batches, in their order.

    Raises
    ------
    ResultsError
        Names the folder and the split.
    """
    for role, part in found.items():
        here = content_hash({"images": part.images, "targets": part.targets})
        if here != DECODED[role]:
            raise ResultsError(
                f"{folder}: its {role} images and classes are not CIFAR-10's (their SHA-256 is {here}, not "
                f"{DECODED[role]}): remove its files and run the fetch stage again"
            )


def read_cifar100(folder: Path) -> dict[Role, Raw]:
    """Return the 50,000 training and 10,000 test images."""
    from torchvision.datasets import CIFAR100  # slow to import, and only fetching needs it

    return read_batches("cifar100", folder, CIFAR100)


def twin_of_cifar10(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: five training batches, one test batch."""
    batches = {f"data_batch_{number + 1}": ("train", number, 5) for number in range(5)}
    write_batches(
        "cifar10", folder, Patterns(classes, per_class, seed), 10, {**batches, "test_batch": ("test", 0, 1)},
        "batches.meta", labels={"labels": 1}, names={"label_names": 1},
    )  # fmt: skip


def twin_of_cifar100(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: one batch each, with fine and coarse labels."""
    write_batches(
        "cifar100", folder, Patterns(classes, per_class, seed), 100, {"train": ("train", 0, 1), "test": ("test", 0, 1)},
        "meta", labels={"fine_labels": 1, "coarse_labels": GROUP},
        names={"fine_label_names": 1, "coarse_label_names": GROUP},
    )  # fmt: skip


DATASETS.register("cifar10")(
    DatasetSpec(name="cifar10", classes=10, channels=3, read=read_cifar10, twin=twin_of_cifar10, view="crop_flip")
)
DATASETS.register("cifar100")(
    DatasetSpec(name="cifar100", classes=100, channels=3, read=read_cifar100, twin=twin_of_cifar100, view="crop_flip")
)
