"""Every file that is made from the work of the cells of one scale, as it goes into git."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ifap.study import paths
from ifap.study.report import records
from ifap.study.report.configs import configs_text
from ifap.study.report.csv_files import as_frame, write_files
from ifap.study.report.figures.layers import widths_table
from ifap.study.report.judge import measured_table
from ifap.study.report.records import Collected
from ifap.study.report.tables.report import Report


def frames_of(collected: Collected) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ``records.csv`` and ``trace.csv`` as they will be read once they are written."""
    scale = collected.grid.scale
    return (
        as_frame(records.records_table(collected), paths.records_csv(scale)),
        as_frame(records.trace_table(collected), paths.trace_csv(scale)),
    )


def report_of(collected: Collected, *, root: Path = Path()) -> Report:
    """Return what tables will read of these records once they are written."""
    return Report.of(collected.grid, *frames_of(collected), collected.missing, root=root)


def recorded_files(collected: Collected, report: Report, *, root: Path = Path()) -> dict[Path, str]:
    """Return the content of every file; ``missing.csv`` is among them if a cell has no record.

    `report` is what tables read of `collected`, see `report_of`. The work of the cells is read below `root`.
    """
    grid, scale = collected.grid, collected.grid.scale
    files = {
        paths.records_csv(scale): records.records_table(collected),
        paths.trace_csv(scale): records.trace_table(collected),
        paths.history_csv(scale): records.history_table(collected, root=root),
        paths.widths_csv(scale): widths_table(grid, collected.cells, kept=collected.kept, root=root),
        paths.configs_json(scale): configs_text(collected.configs),
        paths.measured_csv(scale): measured_table(report.claims),
    }
    missing = {paths.missing_csv(scale): records.missing_table(collected)} if collected.missing else {}
    return files | missing


def write_recorded(scale: str, files: Mapping[Path, str], *, root: Path = Path()) -> None:
    """Write the files of a scale and remove a list of missing cells that no longer holds."""
    write_files({root / path: content for path, content in files.items()})
    if paths.missing_csv(scale) not in files:
        (root / paths.missing_csv(scale)).unlink(missing_ok=True)
