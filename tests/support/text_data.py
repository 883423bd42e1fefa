"""Sets of texts for the tests: twins, written and prepared small."""

from __future__ import annotations

from ifap.study.config.data import DatasetOptions, SyntheticOptions, TextOptions
from ifap.study.data import DATASETS

TABLES = ("sst2", "cola", "mrpc", "qqp", "rte", "qnli", "mnli")
SETS = (*TABLES, "stsb", "squad", "record", "agreement", "film_reviews")
MODELS = ("bert_tiny", "gpt2_tiny", "t5_tiny")
OPTIONS = DatasetOptions(validation=0.25, split_seed=0, synthetic=SyntheticOptions(classes=2, per_class=12, seed=0))


def readers(max_length=48, tokenizer="word", models=MODELS):
    return {model: TextOptions(max_length=max_length, tokenizer=tokenizer, vocab_size=300) for model in models}


def write(name, folder, **options):
    """Write a twin of two classes and prepare it; returns the manifest."""
    spec = DATASETS.get(name)
    spec.twin(folder / "raw", 2, 12, 0)
    return spec.write(OPTIONS, {}, "made up", folder / "raw", folder, readers=readers(**options))
