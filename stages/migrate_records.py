"""Move records of the old layout to this one: results apart from what they cost, and the few files that git keeps.

The old layout had times, machine and results of a cell in the same files, and all of them in git.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ifap.errors import ResultsError
from ifap.files import atomic_write_text, write_csv
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report import records
from ifap.study.report.collecting import recorded_files, report_of, write_recorded
from ifap.study.report.configs import config_hash
from ifap.study.report.provenance import gather, provenance_table
from ifap.study.report.record import EPOCH_FIELDS, RECEIPT_FIELDS, SCHEMA_VERSION
from ifap.study.rounding import rounded
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption, open_grid

REPLACED = ("runs.csv", "claims.csv", "comparison.csv", "missing.csv")
"""Files of a scale that have another name or another content now."""
PHASES = ("score", "prune", "recover")


def main(scale: ScaleOption = None, params: ParamsOption = PARAMS) -> None:
    """Move the records of one scale to the layout of this version; what has been moved is left alone."""
    grid = open_grid(params, scale)
    moved = sum(move_cell(grid, cell) for cell in grid.cells())
    collected = records.collect(grid)
    files = recorded_files(collected, report_of(collected))
    hashes = {cell: config_hash(record.config) for cell, record in collected.records.items()}
    files[paths.provenance_csv(grid.scale)] = provenance_table(grid.scale, gather(grid, hashes))
    for name in REPLACED:
        (paths.scale_dir(grid.scale) / name).unlink(missing_ok=True)
    write_recorded(grid.scale, files)
    typer.echo(f"moved {moved} of {len(grid.cells())} cells of scale {grid.scale}; wrote {', '.join(map(str, files))}")
    typer.echo(f"now: make record SCALE={grid.scale}")


def move_cell(grid: Grid, cell: Cell) -> bool:
    """Write the files of one cell anew; return whether it had records of the old layout."""
    file = paths.metrics_file(grid.scale, cell)
    if not file.exists() or records.layout_version(file) != 1:
        return False
    report = _read(file)
    costs = move_steps(grid.scale, cell)
    receipts = paths.receipts_file(grid.scale, cell)
    if receipts.exists():
        costs["prune"]["seconds"] = move_receipts(receipts)
    try:
        environment = {key: report["provenance"][key] for key in ("commit", "dirty", "versions", "hardware")}
        costs["evaluate"] |= {**environment, "latency": report["latency"]}
    except (KeyError, TypeError) as error:
        raise ResultsError(f"malformed {file}: {error} is missing") from None
    for stage, cost in costs.items():
        _write(paths.cost_file(grid.scale, cell, stage), cost)
    round_history(paths.history_file(grid.scale, cell))
    full = paths.receipts_json(grid.scale, cell)
    if full.exists():
        atomic_write_text(full, json.dumps(rounded(_read(full)), indent=1) + "\n")
    kept = {key: value for key, value in report.items() if key not in {"latency", "provenance"}}
    # Last, since a cell counts as moved by this file.
    _write(file, rounded({**kept, "schema_version": SCHEMA_VERSION}))
    return True


def move_steps(scale: str, cell: Cell) -> dict[str, dict[str, Any]]:
    """Part what each stage was asked to do from what it cost; return the costs."""
    costs = {}
    for old in sorted(paths.cell_dir(scale, cell).glob("timings-*.json")):
        stage = old.stem.removeprefix("timings-")
        found = _read(old)
        _write(paths.step_file(scale, cell, stage), {"schema_version": SCHEMA_VERSION, "config": found.pop("config")})
        costs[stage] = {key: value for key, value in found.items() if key != "schema_version"}
        old.unlink()
    return costs


def move_receipts(file: Path) -> dict[str, float]:
    """Take the times out of a ``receipts.csv`` and round the rest; return the times of all iterations by phase."""
    rows = list(csv.DictReader(file.open(newline="")))
    seconds = {phase: round(sum(float(row.pop(f"seconds_{phase}") or 0) for row in rows), 3) for phase in PHASES}
    write_csv(file, ({name: _rounded_text(value) for name, value in row.items()} for row in rows), RECEIPT_FIELDS)
    return seconds


def round_history(file: Path) -> None:
    """Round the numbers of a ``history.csv``."""
    rows = [
        {name: _rounded_text(value) for name, value in row.items()} for row in csv.DictReader(file.open(newline=""))
    ]
    write_csv(file, rows, EPOCH_FIELDS)


def _rounded_text(text: str) -> Any:
    """Return a field of a CSV file as it is written now: a fraction rounded, anything else as it is."""
    try:
        return text if text.lstrip("-").isdigit() else rounded(float(text))
    except ValueError:
        return text


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"malformed {file}: {error}") from None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    atomic_write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    run_stage(main)
