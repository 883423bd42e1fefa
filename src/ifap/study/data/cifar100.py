"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes (Krizhevsky 2009); the fine labels."""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.cifar import read_batches, write_batches
from ifap.study.data.entries import DATASETS
from ifap.study.data.twins import Patterns

NAME, CLASSES = "cifar100", 100
GROUP = 5  # fine classes of a coarse one


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 50,000 training and 10,000 test images."""
    from torchvision.datasets import CIFAR100  # slow to import, and only fetching needs it

    return read_batches(NAME, folder, CIFAR100)


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: one batch each, with fine and coarse labels."""
    write_batches(
        NAME, folder, Patterns(classes, per_class, seed), CLASSES, {"train": ("train", 0, 1), "test": ("test", 0, 1)},
        "meta", labels={"fine_labels": 1, "coarse_labels": GROUP},
        names={"fine_label_names": 1, "coarse_label_names": GROUP},
    )  # fmt: skip


DATASETS.register("cifar100")(
    DatasetSpec(
        name=NAME,
        classes=CLASSES,
        channels=3,
        read=read,
        twin=twin,
        view="crop_flip",
    )
)
