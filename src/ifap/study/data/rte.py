"""RTE: pairs of texts, the second follows from the first or not (Dagan et al. 2006 and later), as GLUE has them."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import NLI, Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "rte", 2
LAYOUT = Layout(NAME, texts=("sentence1", "sentence2"), label="label", labels=NLI, parquet=("sentence1", "sentence2"))


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format."""
    check_classes(NAME, classes, CLASSES)
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        rows = [_row(sentences, part, index, *which) for index, which in enumerate(sentences.order(part))]
        write_table(folder / file, ("index", "sentence1", "sentence2", "label"), rows)
    mark_texts(NAME, folder, sentences)


def _row(sentences: Sentences, part: str, index: int, label: int, number: int) -> tuple[object, ...]:
    return (index, sentences.plain(part, label, number), sentences.text(part, label, number), list(NLI)[label])


DATASETS.register("rte")(
    TextSpec(
        name=NAME,
        task="text_classification",
        classes=CLASSES,
        metric="accuracy",
        read=reader(LAYOUT),
        twin=twin,
    )
)
