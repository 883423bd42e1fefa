"""QQP: pairs of questions from Quora, the same question or not, as GLUE has them."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "qqp", 2
LAYOUT = Layout(
    NAME,
    texts=("question1", "question2"),
    label="is_duplicate",
    labels={"0": 0, "1": 1},
    parquet=("question1", "question2"),
    torn=True,
)


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        rows = [_row(sentences, part, index, *which) for index, which in enumerate(sentences.order(part))]
        write_table(folder / file, ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), rows)
    mark_texts(NAME, folder, sentences)


def _row(sentences: Sentences, part: str, index: int, label: int, number: int) -> tuple[object, ...]:
    return (
        index,
        2 * index,
        2 * index + 1,
        sentences.plain(part, label, number),
        sentences.text(part, label, number),
        label,
    )


DATASETS.register("qqp")(
    TextSpec(
        name=NAME,
        task="text_classification",
        classes=CLASSES,
        metric="accuracy",
        read=reader(LAYOUT),
        twin=twin,
    )
)
