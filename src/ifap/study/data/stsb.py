"""STS-B: pairs of sentences and how alike they are, from 0 to 5 (Cer et al. 2017), as GLUE has them."""

from __future__ import annotations

from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec

NAME = "stsb"
LAYOUT = Layout(NAME, texts=("sentence1", "sentence2"), label="score", labels=None, parquet=("sentence1", "sentence2"))
HEADER = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score")


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format; `classes` only says how many pairs there are."""
    sentences = Sentences(classes, per_class, seed)
    for part, file in {"train": "train.tsv", "test": "dev.tsv"}.items():
        pairs = [sentences.scored(part, *which) for which in sentences.order(part)]
        rows = [
            (index, "synthetic", "synthetic", 2000, index, "none", "none", first, second, f"{score:.3f}")
            for index, (first, second, score) in enumerate(pairs)
        ]
        write_table(folder / file, HEADER, rows)
    mark_texts(NAME, folder, sentences)


DATASETS.register("stsb")(
    TextSpec(
        name=NAME,
        task="text_regression",
        classes=1,
        metric="pearson",
        read=reader(LAYOUT),
        twin=twin,
    )
)
