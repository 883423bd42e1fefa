"""Table II: networks for classes, before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.tables.model import Note, Table
from ifap.study.report.tables.networks import masked_note, network_columns, network_rows, units
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import samples, scale_notes
from ifap.study.templates import PLUS_MINUS


def table_2(name: str, options: TableParams, report: Report) -> Table:
    """Return Table II of a scale."""
    grid, runs = report.grid, report.runs[report.runs["task"] == options.task]
    if options.dataset:
        runs = runs[runs["dataset"] == options.dataset]
    cells = [cell for cell in grid.pruned() if cell.task == options.task and options.dataset in (None, cell.dataset)]
    macs, params = units(runs)
    rows = network_rows(cells, runs, macs, params, report)
    columns = network_columns(macs, params, "Top-1, test (%)")
    return Table(name, options.title, columns, tuple(rows), _table_2_notes(grid, cells, runs))


def _table_2_notes(grid: Grid, cells: Sequence[Cell], runs: pd.DataFrame) -> tuple[Note, ...]:
    several = f": accuracies are mean {PLUS_MINUS} standard deviation, counts are means"
    sd = several if len(grid.options.seeds) > 1 else ""
    return (
        *scale_notes(grid, [cell.dataset for cell in cells], "Table II"),
        Note(
            "Bold: the best pruned accuracy of each network on each data set; equal printed values share it. Only "
            "networks that met their target compete."
        ),
        *masked_note(runs),
        Note("MACs: multiply-accumulates of one input; what the paper prints as GFlops are GMACs.", "a"),
        Note(
            f"Top-1 accuracy on the test split{samples(runs, 'test_size')}, which is opened once, "
            "for the final network. Base is the unpruned network (method baseline), from which every method starts.",
            "b",
        ),
        Note("Pruned minus base, in percentage points; the paper mixes relative and absolute differences.", "c"),
        Note(f"Number of runs with different seeds{sd}.", "d"),
    )
