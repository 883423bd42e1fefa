"""Who may see which data: the one place that divides images, articles and photographs.

Calibration is what a method is given. Choices between methods and options look at *development* data alone; the
committed table is measured on *held-out* data. Parts are cut from one list, by image or by article, so that no two of
them share any; of articles, all passages and sentences go the same way.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal, TypeVar

from ifap.errors import ConfigError, nearest

Split = Literal["development", "heldout"]
SPLITS: tuple[Split, ...] = ("development", "heldout")
PARTS = ("calibration", *SPLITS)
Item = TypeVar("Item", bound=Hashable)

TRAIN_IMAGES, TEST_IMAGES, REAL_IMAGES = 50_000, 10_000, 20
CIFAR_CALIBRATION, CIFAR_DEVELOPMENT, CIFAR_HELDOUT = 492, 128, 1000
FOLDS = 2
ARTICLES = {"calibration": 20, "development": 8, "heldout": 20}


def split_named(name: str) -> Split:
    """Return a split by its name; the error names the nearest."""
    for split in SPLITS:
        if split == name:
            return split
    raise ConfigError(f"unknown split '{name}': {nearest(name, SPLITS)}")


def partition(items: Sequence[Item], sizes: Mapping[str, int], seed: int = 0) -> dict[str, list[Item]]:
    """Divide items into parts that share none.

    Parameters
    ----------
    items : sequence
        Different items.
    sizes : mapping of str to int
        How many each part gets.
    seed : int
        Of the order in which they are dealt.

    Raises
    ------
    ConfigError
        If an item is there twice, or there are too few.
    """
    if len(set(items)) != len(items):
        raise ConfigError("an item is there twice: parts would share it")
    if len(items) < sum(sizes.values()):
        raise ConfigError(f"{len(items)} items are too few for {sum(sizes.values())}")
    order = list(items)
    random.Random(seed).shuffle(order)
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = order[start : start + size]
        start += size
    return parts


def taking_turns(sources: Iterable[Sequence[Item]], size: int, seed: int = 0) -> list[list[Item]]:
    """Return batches that take turns between two halves of the sources, so that no source is in both.

    Batches of calibration go to two halves in turn (`ifap.scores.moments.Halving`): what is fitted on the one is
    checked on the other, and samples of one source would tell of each other there.

    Parameters
    ----------
    sources : iterable of sequence
        The samples of each source, such as crops of one image.
    size : int
        Samples of a batch.
    seed : int
        Of the order of the samples.
    """
    order = list(sources)
    random.Random(seed).shuffle(order)
    halves: tuple[list[Item], list[Item]] = ([], [])
    for source in sorted(order, key=len, reverse=True):
        min(halves, key=len).extend(source)
    for half in halves:
        random.Random(seed).shuffle(half)
    batches = [[half[start : start + size] for start in range(0, len(half), size)] for half in halves]
    return [batch for batch in chain.from_iterable(zip_longest(*batches, fillvalue=[])) if batch]


def articles(titles: Sequence[str]) -> dict[str, list[str]]:
    """Return the titles of the articles of each part."""
    return partition(titles, ARTICLES)


@dataclass(frozen=True)
class Images:
    """Which images a classifier is calibrated with and measured on.

    Parameters
    ----------
    real, made : list of int
        Numbers of the 20 images of ImageNet, and of CIFAR-10's training images, for calibration.
    crops : int
        Random crops of each real image; 0 takes its middle.
    tested : list of int
        Numbers of CIFAR-10's images to measure on: of training images for development, else of test images.
    tested_real : list of int
        Numbers of the images of ImageNet to measure on.
    photographs : bool
        Whether photographs that no part of held-out data shares are measured on.
    """

    real: list[int]
    made: list[int]
    crops: int
    tested: list[int]
    tested_real: list[int]
    photographs: bool = False


def enlarged(split: Split) -> Images:
    """Return 512 images for calibration, of which 20 are of ImageNet, and CIFAR-10's enlarged ones to measure on."""
    sizes = {"calibration": CIFAR_CALIBRATION, "development": CIFAR_DEVELOPMENT}
    parts = partition(range(TRAIN_IMAGES), sizes)
    tested = partition(range(TEST_IMAGES), {"heldout": CIFAR_HELDOUT})["heldout"]
    if split == "development":
        tested = parts["development"]
    return Images([*range(REAL_IMAGES)], parts["calibration"], 0, tested, [])


def folds(split: Split) -> list[Images]:
    """Return for each fold 100 crops of ten images of ImageNet and 100 others, and the other ten to measure on.

    For development the measure is taken on photographs instead, and no image of ImageNet is looked at but for
    calibration of the first fold.
    """
    dealt = partition(range(REAL_IMAGES), {str(fold): REAL_IMAGES // FOLDS for fold in range(FOLDS)})
    parts = [sorted(part) for part in dealt.values()]
    made = enlarged(split).made[:100]
    if split == "development":
        return [Images(parts[0], made, 10, [], [], photographs=True)]
    return [Images(sorted(set(range(REAL_IMAGES)).difference(part)), made, 10, [], part) for part in parts]
