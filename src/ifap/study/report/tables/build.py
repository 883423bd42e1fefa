"""Tables I-V: from the CSV files of one scale to the model of each table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ifap.study.config.params import TableParams
from ifap.study.config.values import DENSE_TASKS, TEXT_TASKS
from ifap.study.grid import Grid
from ifap.study.report.tables.classification import table_2
from ifap.study.report.tables.language import table_5
from ifap.study.report.tables.methods import table_1
from ifap.study.report.tables.model import Table
from ifap.study.report.tables.options import table_options
from ifap.study.report.tables.printed import published_table
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.steps import table_4
from ifap.study.report.tables.vision import table_3

Builder = Callable[[str, TableParams, Report], Table]
BUILDERS: dict[str, Builder] = {
    "table-1": table_1,
    "table-2": table_2,
    "table-3": table_3,
    "table-4": table_4,
    "table-5": table_5,
}


def has_cells(name: str, grid: Grid) -> bool:
    """Return whether a scale runs any network that a table is about; those of classification all tables show."""
    own = {"table-3": DENSE_TASKS, "table-5": TEXT_TASKS}.get(name)
    return own is None or not grid.options.grid.keys().isdisjoint(own)


def build_table(name: str, report: Report) -> Table:
    """Build one table of ``params.yaml``: what was measured, above the published table where both exist."""
    grid, claims = report.grid, report.claims
    options = table_options(name, grid)
    number = int(name.removeprefix("table-"))
    if name not in BUILDERS or not has_cells(name, grid):
        return published_table(number, name, options.title, claims, grid.scale)
    own = BUILDERS[name](name, options, report)
    title = f"{options.title.partition('.')[0]} as published, with verdicts"
    return replace(own, published=published_table(number, f"{name}-published", title, claims, grid.scale))
