"""Table V from runs: scores and parameters of the language models, before and after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.config.values import TEXT_TASKS
from ifap.study.paper.vocabulary import METRICS
from ifap.study.paths import Cell
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.networks import (
    count_items,
    masked_note,
    method_item,
    not_attempted,
    score_items,
    seeds_item,
    unpruned,
)
from ifap.study.report.tables.numbers import Unit, choose_unit
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import dataset_label, scale_notes

DELTA = "\N{GREEK CAPITAL LETTER DELTA}"
VALUES = 8  # columns beside the names of a row


def table_5(name: str, options: TableParams, report: Report) -> Table:
    """Build Table V from runs: one row a network, data set and method."""
    grid, runs = report.grid, report.runs[report.runs["task"].isin(TEXT_TASKS)]
    cells = [cell for cell in grid.pruned() if cell.task in TEXT_TASKS]
    unit = choose_unit([*runs["params"], *runs["params_base"].dropna()])
    weights = f"Params ({unit.prefix})" if unit.prefix else "Params"
    columns = (
        *(Column(text, align="left") for text in ("Architecture", "Data set", "Method")),
        Column("Metric"),
        *(
            Column(text, "Score, test", mark)
            for text, mark in (("Base", "a"), ("Pruned", "a"), (f"{DELTA} points", "b"))
        ),
        *(Column(text, weights) for text in ("Base", "Pruned", f"{DELTA} %")),
        Column("Seeds"),
    )
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    notes = (
        *scale_notes(grid, datasets, "Table V"),
        Note("Measured on the test split, which is opened once, for the final network; Base is the unpruned one.", "a"),
        Note("Pruned minus base; the paper's table prints relative changes.", "b"),
        *masked_note(runs),
    )
    return Table(name, options.title, columns, tuple(_rows(report, cells, runs, unit)), notes)


def _rows(report: Report, cells: Sequence[Cell], runs: pd.DataFrame, unit: Unit) -> Iterator[Row]:
    groups: dict[str, dict[tuple[str, str], list[Cell]]] = {}
    for cell in cells:
        groups.setdefault(cell.model, {}).setdefault((cell.dataset, cell.method), []).append(cell)
    for model, rows in groups.items():
        for index, ((dataset, method), own) in enumerate(rows.items()):
            frame = runs[(runs["model"] == model) & (runs["dataset"] == dataset) & (runs["method"] == method)]
            names = (
                Item(model, rows=0 if index else len(rows)),
                Item(dataset_label(dataset, report.grid)),
                method_item(method, frame),
            )
            values = not_attempted(own, report.missing, columns=VALUES)
            if len(frame):
                base = unpruned(runs, frame)
                title, counts = METRICS[str(frame["metric"].iloc[0])].title, count_items(frame, base, "params", unit)
                values = (Item(title), *score_items(frame, base), *counts, seeds_item(frame, len(own)))
            yield Row((*names, *values), starts_group=index == 0)
