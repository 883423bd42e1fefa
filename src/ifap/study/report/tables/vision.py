"""Table III from runs: networks for classes, boxes, masks and images, before and after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.config.values import DENSE_TASKS
from ifap.study.grid import Grid
from ifap.study.paper.reductions import published_networks
from ifap.study.paper.vocabulary import METRICS, STAND_INS
from ifap.study.paths import Cell
from ifap.study.report.tables.model import Item, Note, Row, Table
from ifap.study.report.tables.networks import masked_note, network_columns, network_rows, units
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import dataset_label, scale_notes

TITLES = {
    "classification": "Image classification",
    "detection": "Object detection",
    "segmentation": "Image segmentation",
    "generation": "Image generation",
}
"""The parts of the table, in order."""
REFERENCE = "ifap"


def table_3(name: str, options: TableParams, report: Report) -> Table:
    """Build Table III from runs.

    One row a network, data set and method of detection, segmentation and generation, below those of classification that
    the paper's table has.
    """
    grid, runs = report.grid, report.runs
    cells = [cell for cell in grid.pruned() if cell.task in TITLES and _is_shown(cell)]
    shown = pd.MultiIndex.from_tuples(list(dict.fromkeys(cell[:4] for cell in cells)))
    runs = runs[pd.MultiIndex.from_frame(runs[["task", "dataset", "model", "method"]]).isin(shown)]
    macs, params = units(runs)
    columns = network_columns(macs, params, "Score, test")
    rows: list[Row] = []
    for task, title in TITLES.items():
        own = [cell for cell in cells if cell.task == task]
        here = runs[runs["task"] == task]
        if own:
            rows.append(Row((Item(f"{title}{_measured(here, grid)}", columns=len(columns)),), starts_group=True))
            rows += network_rows(own, here, macs, params, report)
    return Table(name, options.title, columns, tuple(rows), tuple(_notes(grid, cells, runs)))


def _is_shown(cell: Cell) -> bool:
    if cell.task in DENSE_TASKS:
        return True
    return cell.method == REFERENCE and (cell.dataset, cell.model) in published_networks(3)


def _measured(runs: pd.DataFrame, grid: Grid) -> str:
    """Say what was measured in a part of the table, and where the metric is not that of most data sets."""
    found = dict(zip(runs["dataset"], runs["metric"], strict=True))
    if not found:
        return ""
    usual = max(found.values(), key=list(found.values()).count)
    others = {name: metric for name, metric in found.items() if metric != usual}
    words = [METRICS[usual].title]
    words += [f"on {dataset_label(name, grid)} {METRICS[metric].title}" for name, metric in others.items()]
    less = "; less is better" if METRICS[usual].less_is_better else ""
    return f": {', '.join(words)}{less}"


def _notes(grid: Grid, cells: Sequence[Cell], runs: pd.DataFrame) -> Iterator[Note]:
    yield from scale_notes(grid, [cell.dataset for cell in cells], "Table III")
    for model in dict.fromkeys(cell.model for cell in cells if cell.model in STAND_INS):
        yield Note(f"{model} stands for {STAND_INS[model]}, which asks too much of the machine.")
    yield Note(
        "Bold: the best pruned score of each network on each data set; equal printed values share it. Only networks "
        "that met their target compete."
    )
    yield from masked_note(runs)
    yield Note("MACs: multiply-accumulates of one input; what the paper prints as GFlops are GMACs.", "a")
    yield Note(
        "Measured on the test split, which is opened once, for the final network. Base is the unpruned network.", "b"
    )
    yield Note("Pruned minus base; the paper mixes relative and absolute differences.", "c")
    yield Note("Number of runs with different seeds.", "d")
