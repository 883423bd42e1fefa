"""What ``params.yaml`` says of a table."""

from __future__ import annotations

from ifap.errors import ConfigError, nearest
from ifap.study.config.params import TableParams
from ifap.study.grid import Grid
from ifap.study.paths import Cell


def table_options(name: str, grid: Grid) -> TableParams:
    """Return the block of one table, after checking that it exists and can be built."""
    known = list(grid.params.tables)
    if name not in known:
        raise ConfigError(f"unknown table '{name}': {nearest(name, known)}")
    options = grid.table(name)
    if name == "table-2" and options.task is None:
        raise ConfigError(f"params.yaml: tables.{name}: key is missing: task")
    return options


def table_names(grid: Grid) -> list[str]:
    """Return the tables of ``params.yaml``, in order."""
    return sorted(grid.params.tables)


def table_cell(name: str, options: TableParams) -> Cell:
    """Return the cell that a table of one network shows."""
    values = {key: getattr(options, key) for key in Cell._fields}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise ConfigError(f"params.yaml: tables.{name}: key is missing: {missing[0]}")
    return Cell(**values)
