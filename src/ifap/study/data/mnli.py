"""MNLI: pairs of texts, entailed, neutral or contradicted (Williams et al. 2018); the matched half of GLUE's."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "mnli", 3
WORDS = {"entailment": 0, "neutral": 1, "contradiction": 2}
LAYOUT = Layout(
    NAME,
    texts=("sentence1", "sentence2"),
    label="gold_label",
    labels=WORDS,
    parquet=("premise", "hypothesis"),
    dev="dev_matched",
)


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev_matched.tsv"}.items():
        rows = [_row(sentences, part, index, *which) for index, which in enumerate(sentences.order(part))]
        write_table(
            folder / file,
            ("index", "promptID", "pairID", "genre", "sentence1", "sentence2", "label1", "gold_label"),
            rows,
        )
    mark_texts(NAME, folder, sentences)


def _row(sentences: Sentences, part: str, index: int, label: int, number: int) -> tuple[object, ...]:
    word = list(WORDS)[label]
    return (
        index,
        index,
        index,
        "synthetic",
        sentences.plain(part, label, number),
        sentences.text(part, label, number),
        word,
        word,
    )


DATASETS.register("mnli")(
    TextSpec(
        name=NAME,
        task="text_classification",
        classes=CLASSES,
        metric="accuracy",
        read=reader(LAYOUT),
        twin=twin,
    )
)
