"""What tables say beside their numbers: names of methods and data sets, headings, notes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ifap.study.config.data import ModelOptions, TextOptions
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS
from ifap.study.report.judge import measured_where
from ifap.study.report.tables.model import Note

METHOD_LABELS = {
    "bn_scale": "BN scale",
    "granet": "GraNet",
    "ifap": "IFAP",
    "ifap_centered": "IFAP (centred)",
    "ifap_cost": "IFAP (per MAC)",
    "ifap_readers": "IFAP (readers)",
    "ifap_rms": "IFAP (RMS)",
    "lth": "LTH",
    "mvp": "MvP",
    "pdp": "PDP",
    "pdp_channel": "PDP (channels)",
    "rfp": "RFP",
    "rigl": "RigL",
    "small_dense": "small dense",
    "taylor": "Taylor",
}
DATASET_NOTES = {
    "agreement": "agreement holds sentences of a small grammar that are always generated: do subject and verb agree?",
    "digits": "digits holds real scans of handwritten digits, 8\N{MULTIPLICATION SIGN}8 pixels each",
}
SYNTHETIC_NOTE = (
    "data sets marked synthetic are generated in the on-disk format of the real ones, with fewer classes and samples: "
    "accuracies on them say nothing about the real data"
)
VERDICT = "not comparable (scale)"


def label(method: str) -> str:
    """Return how a method is called in print."""
    return METHOD_LABELS.get(method, method)


def metric_heading(runs: pd.DataFrame) -> str:
    """Return how a column of scores is headed: by its metric, if it is the same for all."""
    return "Top-1, test (%)" if set(runs["metric"]) <= {"top1", "accuracy"} else "Score, test"


def metric_notes(runs: pd.DataFrame, grid: Grid) -> tuple[Note, ...]:
    """Say what is measured on each data set, if that is not top-1 accuracy everywhere."""
    found = dict(zip(runs["dataset"], runs["metric"], strict=True))
    if set(found.values()) <= {"top1"}:
        return ()
    text = "; ".join(f"{dataset_label(name, grid)}: {METRICS[metric].title}" for name, metric in found.items())
    return (Note(f"Measured: {text}."),)


def dataset_label(dataset: str, grid: Grid) -> str:
    """Return the name of a data set in print; a generated one says so."""
    return f"{dataset} (synthetic)" if grid.options.datasets[dataset].synthetic else dataset


def scale_notes(grid: Grid, datasets: Sequence[str], published: str) -> tuple[Note, ...]:
    """Say what sets the scale apart from the paper, and so what its numbers cannot be compared with."""
    known = [DATASET_NOTES[name] for name in dict.fromkeys(datasets) if name in DATASET_NOTES]
    if any(grid.options.datasets[name].synthetic for name in datasets if name != "agreement"):
        known.append(SYNTHETIC_NOTE)
    if grid.scale == "paper":
        return tuple(Note(f"{text}.") for text in known)
    options = [grid.model(cell) for cell in grid.baselines() if cell.dataset in datasets]
    sizes = sorted({own.image_size for own in options if isinstance(own, ModelOptions)})
    lengths = sorted({own.max_length for own in options if isinstance(own, TextOptions)})
    inputs = " or ".join(f"{size}\N{MULTIPLICATION SIGN}{size}" for size in sizes)
    taken = [f"{inputs} pixels"] if sizes else []
    taken += [f"up to {' or '.join(map(str, lengths))} tokens"] if lengths else []
    depths = {own.layers for own in options if isinstance(own, TextOptions) and own.layers}
    known += [f"language models have {depth} layers a stack, whatever the published depth" for depth in sorted(depths)]
    if not taken:
        return (Note(f"Scale {grid.scale} has no network for this table."),)
    reason = "; ".join([*known, f"the networks take inputs of {' and '.join(taken)}"])
    verdict = measured_where(grid, datasets) or VERDICT
    return (Note(f"Scale {grid.scale}: {reason}. Verdict against the paper's {published}: {verdict}."),)


def samples(runs: pd.DataFrame, column: str) -> str:
    """Return how many samples a split has, in brackets."""
    sizes = sorted({int(size) for size in runs[column].dropna()})
    return f" ({' or '.join(f'{size:,}' for size in sizes)} samples)" if sizes else ""
