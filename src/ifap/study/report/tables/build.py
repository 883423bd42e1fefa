"""Tables I-V: from the CSV files of one scale to the model of each table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.judge import Judged, load_judged
from ifap.study.report.tables.classification import table_2
from ifap.study.report.tables.language import has_language_cells, table_5
from ifap.study.report.tables.methods import table_1
from ifap.study.report.tables.model import Table
from ifap.study.report.tables.options import table_options
from ifap.study.report.tables.printed import published_table
from ifap.study.report.tables.steps import table_4
from ifap.study.report.tables.vision import has_dense_cells, table_3

Builder = Callable[[str, TableParams, Grid, pd.DataFrame, pd.DataFrame, Mapping[Cell, str]], Table]
BUILDERS: dict[str, Builder] = {
    "table-1": lambda name, options, grid, runs, _, missing: table_1(name, options, grid, runs, missing),
    "table-2": table_2,
    "table-3": lambda name, options, grid, runs, _, missing: table_3(name, options, grid, runs, missing),
    "table-4": table_4,
    "table-5": lambda name, options, grid, runs, _, missing: table_5(name, options, grid, runs, missing),
}


def build_table(
    name: str,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    claims: Sequence[Judged] | None = None,
    missing: Mapping[Cell, str] | None = None,
) -> Table:
    """Build one table of ``params.yaml``.

    Parameters
    ----------
    name : str
        Its key in ``params.yaml``, for example ``"table-2"``.
    grid : Grid
        The cells that the table should show; those without a row in `runs` are shown as not attempted.
    runs, trace : DataFrame
        Content of ``runs.csv`` and ``trace.csv``.
    claims : sequence of Judged, optional
        Content of ``claims.csv``; read from the scale's folder by default.
    missing : mapping of Cell to str, optional
        Content of ``missing.csv``: why a cell has no row.

    Returns
    -------
    Table
        The model of the table: what was measured, above the published table where both exist.
    """
    options = table_options(name, grid)
    claims = load_judged(grid.scale) if claims is None else claims
    number = int(name.removeprefix("table-"))
    has_cells = {"table-3": has_dense_cells, "table-5": has_language_cells}
    if name not in BUILDERS or (name in has_cells and not has_cells[name](grid)):
        return published_table(number, name, options.title, claims, grid.scale)
    own = BUILDERS[name](name, options, grid, runs, trace, missing or {})
    title = f"{options.title.partition('.')[0]} as published, with verdicts"
    return replace(own, published=published_table(number, f"{name}-published", title, claims, grid.scale))


# --- Numbers as text ---------------------------------------------------------------------------
