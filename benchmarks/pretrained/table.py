"""The table: one row a network, method, compensation and target, written after each."""

from __future__ import annotations

import csv
import fcntl
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretrained.splits import Split
from benchmarks.ratio import RESULTS
from ifap.errors import ResultsError
from ifap.files import write_csv
from ifap.study.machine.provenance import provenance

Row = dict[str, Any]
Key = tuple[str, str, str, str]

# Column to what it holds; the page prints this.
COLUMNS = {
    "network": "key of the network",
    "method": "method or rival",
    "compensated": "whether our compensation came before the cut",
    "target": "requested share of the MACs to remove",
    "achieved": "measured share of the MACs removed",
    "kl": "mean Kullback-Leibler divergence of the original's class or word probabilities from the pruned network's",
    "agreement": "share of samples or words with the same first choice, of sentences with the same neighbour; of text"
    " that either network finds, the share that both do",
    "metric": "what `metric_name` says",
    "metric_name": "top-1, perplexity, mean cosine to the original's embeddings, or relative error",
    "rank": "rank correlation of the cosines of all pairs of sentences with the original's",
    "state": "done, refused, failed or timeout",
    "reason": "why a row has no result: the error or the time limit",
    "seconds": "processor time of pruning and compensation, of all cases of the network",
    "peak_mb": "largest memory while pruning, above that at its start",
    "split": "data of the measurement",
    "torch": "version",
    "transformers": "version",
    "timm": "version",
    "torch_pruning": "version",
    "python": "version",
    "threads": "of one operation",
    "cpu": "the machine's",
    "commit": "of this repository",
    "dirty": "whether the library's sources were changed",
    "command": "what was run",
}
KEYS = ("network", "method", "compensated", "target")


def path(split: Split) -> Path:
    """Return where the rows of a split go; only those of held-out data are results."""
    name = "pretrained" if split == "heldout" else f"pretrained_{split}"
    return RESULTS / f"{name}.csv"


def key(row: Row) -> Key:
    """Return what a row is of; a table holds one of each."""
    network, method, compensated, target = (str(row[name]) for name in KEYS)
    return network, method, compensated, target


def key_of(network: str, method: str, compensate: bool, target: float) -> Key:
    """Return the key of a row that is to be."""
    return network, method, "yes" if compensate else "no", f"{target:g}"


def read(file: Path) -> dict[Key, Row]:
    """Return the rows of a table by key; none if there is no file.

    Raises
    ------
    ResultsError
        If the file is not such a table.
    """
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in KEYS if name not in (reader.fieldnames or ())]
        if missing:
            raise ResultsError(f"{file}: it has no column {missing[0]}")
        return {key(row): row for row in reader}


def write(rows: Iterable[Row], file: Path) -> None:
    """Write all rows, whole or not at all."""
    write_csv(file, rows, COLUMNS)


def add(row: Row, file: Path) -> None:
    """Put one row into a table, in place of one with the same key; several processes may do so at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write({**read(file), key(row): row}.values(), file)
    finally:
        os.close(descriptor)


def missing(wanted: Iterable[Key], rows: dict[Key, Row]) -> list[Key]:
    """Return what has no row yet, in order; a row that failed counts, and goes when its line is removed."""
    return [each for each in wanted if each not in rows]


def about(command: str) -> Row:
    """Return what a row is measured with and on."""
    found = provenance()
    packages = {"transformers": "transformers", "timm": "timm", "torch_pruning": "torch-pruning"}
    return {
        **{column: importlib.metadata.version(name) for column, name in packages.items()},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": found["hardware"]["cpu"],
        "commit": found["commit"],
        "dirty": found["dirty"],
        "command": command,
    }
