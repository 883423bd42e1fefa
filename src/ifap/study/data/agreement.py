"""Subject and verb: sentences of a small grammar in which they agree in number or not; always generated."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, agreement, mark_texts
from ifap.study.data.texts import TextSpec
from ifap.study.data.twins import check_classes

NAME, CLASSES = "agreement", 2
LAYOUT = Layout(NAME, texts=("sentence",), label="label", labels={"0": 0, "1": 1}, parquet=("sentence",))


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write the sentences in the format of SST-2; short ones recur in both splits."""
    check_classes(NAME, classes, CLASSES)
    sizes = {"train": classes * per_class, "test": classes * max(1, per_class // 2)}
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        write_table(folder / file, ("sentence", "label"), agreement(part, sizes[part], seed))
    mark_texts(NAME, folder, Sentences(classes, per_class, seed))


DATASETS.register("agreement")(
    TextSpec(name=NAME, task="text_classification", classes=CLASSES, metric="accuracy", read=reader(LAYOUT), twin=twin)
)
