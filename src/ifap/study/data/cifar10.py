"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.cifar import read_batches, write_batches
from ifap.study.data.entries import DATASETS
from ifap.study.data.twins import Patterns

NAME, CLASSES = "cifar10", 10


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 50,000 training and 10,000 test images."""
    from torchvision.datasets import CIFAR10  # slow to import, and only fetching needs it

    return read_batches(NAME, folder, CIFAR10)


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: five training batches, one test batch."""
    batches = {f"data_batch_{number + 1}": ("train", number, 5) for number in range(5)}
    write_batches(
        NAME, folder, Patterns(classes, per_class, seed), CLASSES, {**batches, "test_batch": ("test", 0, 1)},
        "batches.meta", labels={"labels": 1}, names={"label_names": 1},
    )  # fmt: skip


DATASETS.register("cifar10")(
    DatasetSpec(
        name=NAME,
        classes=CLASSES,
        channels=3,
        read=read,
        twin=twin,
        view="crop_flip",
    )
)
