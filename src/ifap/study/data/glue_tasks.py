"""The tasks of GLUE (Wang et al. 2019), each with its columns and a synthetic twin in the same format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ifap.study.data.entries import DATASETS
from ifap.study.data.glue import Layout, reader, write_table
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.texts import TextSpec, TextTask
from ifap.study.data.twins import check_classes

BINARY = {"0": 0, "1": 1}
NLI = {"entailment": 0, "not_entailment": 1}
MNLI = {"entailment": 0, "neutral": 1, "contradiction": 2}
SENTENCE, PAIR = ("sentence",), ("sentence1", "sentence2")
Row = Callable[[int, str, str, int], tuple[object, ...]]


def _task(layout: Layout, header: tuple[str, ...], row: Row, metric: str = "accuracy") -> TextSpec:
    """Return a task; `row` lays out the columns of `header` from a number, two texts and a label of a twin."""
    name, scored = layout.name, layout.labels is None
    task: TextTask = "text_regression" if scored else "text_classification"
    known = 1 if layout.labels is None else len(layout.labels)

    def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
        """Write a synthetic set in the same format; for scores, `classes` only says how many pairs there are."""
        if not scored:
            check_classes(name, classes, known)
        sentences = Sentences(classes, per_class, seed)
        for part, file in {"train": "train.tsv", "test": f"{layout.dev}.tsv"}.items():
            rows = []
            for index, (label, number) in enumerate(sentences.order(part)):
                first, second, score = sentences.scored(part, label, number)
                if not scored:
                    second = sentences.text(part, label, number)
                rows.append(row(index, first, second, score if scored else label))  # type: ignore[arg-type]
            write_table(folder / file, header, rows, named=layout.header is None)
        mark_texts(name, folder, sentences)

    return TextSpec(name=name, task=task, classes=known, metric=metric, read=reader(layout), twin=twin)


# Sentences of film reviews, negative or positive (Socher et al. 2013).
DATASETS.register("sst2")(
    _task(
        Layout("sst2", texts=SENTENCE, label="label", labels=BINARY, parquet=SENTENCE),
        ("sentence", "label"),
        lambda index, first, second, label: (second, label),
    )
)

# Pairs of sentences from news, the same in meaning or not (Dolan and Brockett 2005).
DATASETS.register("mrpc")(
    _task(
        Layout("mrpc", texts=("#1 String", "#2 String"), label="Quality", labels=BINARY, parquet=PAIR),
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        lambda index, first, second, label: (label, index, index, first, second),
        metric="f1",
    )
)

# Sentences from works on linguistics, acceptable or not (Warstadt et al. 2019); the files have no header.
COLA = ("source", "label", "mark", "sentence")
DATASETS.register("cola")(
    _task(
        Layout("cola", texts=SENTENCE, label="label", labels=BINARY, parquet=SENTENCE, header=COLA),
        COLA,
        lambda index, first, second, label: ("syn", label, "" if label else "*", second),
        metric="mcc",
    )
)

# Pairs of questions from Quora, the same question or not.
QUESTIONS = ("question1", "question2")
DATASETS.register("qqp")(
    _task(
        Layout("qqp", texts=QUESTIONS, label="is_duplicate", labels=BINARY, parquet=QUESTIONS, torn=True),
        ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        lambda index, first, second, label: (index, 2 * index, 2 * index + 1, first, second, label),
    )
)

# Pairs of texts, entailed, neutral or contradicted (Williams et al. 2018); the matched half.
DATASETS.register("mnli")(
    _task(
        Layout(
            "mnli", texts=PAIR, label="gold_label", labels=MNLI, parquet=("premise", "hypothesis"), dev="dev_matched"
        ),
        ("index", "promptID", "pairID", "genre", "sentence1", "sentence2", "label1", "gold_label"),
        lambda index, first, second, label: (
            *(index, index, index, "synthetic", first, second),
            *(list(MNLI)[label], list(MNLI)[label]),
        ),
    )
)

# Pairs of sentences and how alike they are, from 0 to 5 (Cer et al. 2017).
DATASETS.register("stsb")(
    _task(
        Layout("stsb", texts=PAIR, label="score", labels=None, parquet=PAIR),
        ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"),
        lambda index, first, second, label: (
            *(index, "synthetic", "synthetic", 2000, index, "none", "none"),
            *(first, second, f"{label:.3f}"),
        ),
        metric="pearson",
    )
)

# A question and a sentence that answers it or not, from SQuAD.
DATASETS.register("qnli")(
    _task(
        Layout("qnli", texts=("question", "sentence"), label="label", labels=NLI, parquet=("question", "sentence")),
        ("index", "question", "sentence", "label"),
        lambda index, first, second, label: (index, first, second, list(NLI)[label]),
    )
)

# Pairs of texts, the second follows from the first or not (Dagan et al. 2006 and later).
DATASETS.register("rte")(
    _task(
        Layout("rte", texts=PAIR, label="label", labels=NLI, parquet=PAIR),
        ("index", "sentence1", "sentence2", "label"),
        lambda index, first, second, label: (index, first, second, list(NLI)[label]),
    )
)
