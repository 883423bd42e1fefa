"""QNLI: a question and a sentence that answers it or not, from SQuAD, as GLUE has them."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import NLI, Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "qnli", 2
LAYOUT = Layout(NAME, texts=("question", "sentence"), label="label", labels=NLI, parquet=("question", "sentence"))


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        rows = [_row(sentences, part, index, *which) for index, which in enumerate(sentences.order(part))]
        write_table(folder / file, ("index", "question", "sentence", "label"), rows)
    mark_texts(NAME, folder, sentences)


def _row(sentences: Sentences, part: str, index: int, label: int, number: int) -> tuple[object, ...]:
    return (index, sentences.plain(part, label, number), sentences.text(part, label, number), list(NLI)[label])


DATASETS.register("qnli")(
    TextSpec(
        name=NAME,
        task="text_classification",
        classes=CLASSES,
        metric="accuracy",
        read=reader(LAYOUT),
        twin=twin,
    )
)
