"""Recorded rows of cells whose work is not here: they are kept as they are written, if ``params.yaml`` fits them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.configs import load_configs, recorded_difference
from ifap.study.report.csv_files import load_rows
from ifap.study.report.record import HISTORY_COLUMNS, RECORD_COLUMNS, TRACE_COLUMNS, WIDTHS_COLUMNS

Row = Mapping[str, str]
Rows = Mapping[Cell, Sequence[Row]]

COUNTED = ("macs", "params")
"""What a pruned network is compared by with its unpruned one, so that it must be a count."""


@dataclass(frozen=True)
class Kept:
    """The recorded rows of cells whose work is not here, by cell."""

    records: Mapping[Cell, Row] = field(default_factory=dict)  # Rows of ``records.csv``.
    trace: Rows = field(default_factory=dict)  # Rows of ``trace.csv``; a cell may have none here and below.
    history: Rows = field(default_factory=dict)  # Rows of ``history.csv``.
    widths: Rows = field(default_factory=dict)  # Rows of ``widths.csv``.


def keep(grid: Grid, cells: Collection[Cell], *, root: Path = Path()) -> tuple[Kept, dict[Cell, str]]:
    """Return the recorded rows of cells that ``params.yaml`` still describes, and why other rows are not kept.

    `cells` are those whose work is not here. The reasons are of cells that are recorded with another configuration: the
    first key that differs.
    """
    records = _records(grid, cells, root)
    reasons = _differences(grid, records, root)
    records = {cell: row for cell, row in records.items() if cell not in reasons}
    if not records:
        return Kept(), reasons
    trace = _rows(grid.scale, paths.trace_csv(grid.scale), TRACE_COLUMNS, root)
    history = _rows(grid.scale, paths.history_csv(grid.scale), HISTORY_COLUMNS, root)
    widths = _rows(grid.scale, paths.widths_csv(grid.scale), WIDTHS_COLUMNS, root)
    for cell in records:
        if not cell.is_baseline and cell not in trace:
            shown = paths.trace_csv(grid.scale)
            raise ResultsError(f"malformed {shown}: no row of {cell}, which records.csv has; {_remedy(grid.scale)}")
    return Kept(records, trace, history, widths), reasons


def _records(grid: Grid, cells: Collection[Cell], root: Path) -> dict[Cell, Row]:
    """Return the one row of ``records.csv`` of each of these cells that is recorded."""
    shown = paths.records_csv(grid.scale)
    if not (root / shown).exists():
        return {}
    rows = _rows(grid.scale, shown, RECORD_COLUMNS, root)
    if doubled := [cell for cell, own in rows.items() if len(own) > 1]:
        raise ResultsError(f"malformed {shown}: {len(rows[doubled[0]])} rows of {doubled[0]}; {_remedy(grid.scale)}")
    found = {cell: rows[cell][0] for cell in cells if cell in rows}
    for cell, row in found.items():
        if odd := [name for name in COUNTED if not row[name].isdecimal() or not int(row[name])]:
            text = f"column {odd[0]}: {row[odd[0]]} of {cell} is no positive whole number"
            raise ResultsError(f"malformed {shown}: {text}; {_remedy(grid.scale)}")
    return found


def _differences(grid: Grid, records: Mapping[Cell, Row], root: Path) -> dict[Cell, str]:
    """Return the cells that are recorded with another configuration, and the first key that differs."""
    configs = load_configs(grid.scale, root=root) if records else {}
    found = {
        cell: recorded_difference(row["config_hash"], configs, grid.config(cell, "evaluate"))
        for cell, row in records.items()
    }
    return {cell: f"recorded under other parameters: {difference}" for cell, difference in found.items() if difference}


def _rows(scale: str, shown: Path, columns: Sequence[str], root: Path) -> dict[Cell, list[Row]]:
    """Return the rows of one recorded file by cell, in the order in which they are written."""
    found: dict[Cell, list[Row]] = {}
    for number, row in enumerate(load_rows(root, shown, columns), start=2):
        if row["scale"] != scale or not row["seed"].isdecimal():
            text = f"row {number}: '{row['scale']}' is not '{scale}', or '{row['seed']}' is no seed"
            raise ResultsError(f"malformed {shown}: {text}; {_remedy(scale)}")
        found.setdefault(Cell.of(row), []).append(row)
    return found


def _remedy(scale: str) -> str:
    return f"take the files as they were recorded: git checkout -- {paths.scale_dir(scale)}"
