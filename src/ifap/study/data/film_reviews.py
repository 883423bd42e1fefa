"""Film reviews: 10,605 sentences, each with the mean sentiment that twenty people gave it (Hutto and Gilbert 2014).

The sentences are of Pang and Lee (2004). Ratings go from -4 to 4; the class of a sentence is their sign. Sentences with
a mean of exactly 0 have no class and are left out. The set has no test split of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import table_rows, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.origins import home
from ifap.study.data.texts import RawText, Texts, TextSpec
from ifap.study.data.twins import check_classes
from ifap.study.packages import RATINGS

log = logging.getLogger(__name__)

NAME, CLASSES = "film_reviews", 2
COLUMNS = ("id", "rating", "sentence")
MOST = 4.0


def read(folder: Path) -> dict[Role, RawText]:
    """Return all sentences that have a class, as training samples.

    Raises
    ------
    ResultsError
        One line that names file and row, if a row is short or a rating is none.
    """
    path = home(NAME, folder) / RATINGS
    texts, targets, neutral = [], [], 0
    for number, row in table_rows(path, COLUMNS, COLUMNS):
        rating = _rating(row["rating"], path, number)
        if rating == 0:
            neutral += 1
            continue
        texts.append(row["sentence"].strip())
        targets.append(int(rating > 0))
    if neutral:
        log.info("%s: %d sentences with a mean rating of 0 are left out", path, neutral)
    if not texts:
        raise ResultsError(f"{path}: no samples")
    return {"train": Texts(tuple(texts), None, torch.tensor(targets))}


def _rating(word: str, path: Path, number: int) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not -MOST <= value <= MOST:
        raise ResultsError(f"{path}: row {number}: '{word}' is no rating from {-MOST:g} to {MOST:g}")
    return value


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format, the sentences of both parts in one file."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    rows = [
        (index + 1, 2.0 if label else -2.0, sentences.text("train", label, number))
        for index, (label, number) in enumerate(sentences.order("train"))
    ]
    write_table(folder / RATINGS, COLUMNS, rows, named=False)
    mark_texts(NAME, folder, sentences)


DATASETS.register("film_reviews")(
    TextSpec(name=NAME, task="text_classification", classes=CLASSES, metric="accuracy", read=read, twin=twin)
)
