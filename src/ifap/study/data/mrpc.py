"""MRPC: pairs of sentences from news, the same in meaning or not (Dolan and Brockett 2005), as GLUE has them."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "mrpc", 2
LAYOUT = Layout(
    NAME,
    texts=("#1 String", "#2 String"),
    label="Quality",
    labels={"0": 0, "1": 1},
    parquet=("sentence1", "sentence2"),
)


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        rows = [_row(sentences, part, index, *which) for index, which in enumerate(sentences.order(part))]
        write_table(folder / file, ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), rows)
    mark_texts(NAME, folder, sentences)


def _row(sentences: Sentences, part: str, index: int, label: int, number: int) -> tuple[object, ...]:
    return (label, index, index, sentences.plain(part, label, number), sentences.text(part, label, number))


DATASETS.register("mrpc")(
    TextSpec(
        name=NAME,
        task="text_classification",
        classes=CLASSES,
        metric="f1",
        read=reader(LAYOUT),
        twin=twin,
    )
)
