"""Which networks, methods and records the figures show."""

from __future__ import annotations

import pandas as pd

from ifap.study.grid import Grid
from ifap.study.paths import Cell

Network = tuple[str, str, str]
"""Task, data set and model."""


def networks(grid: Grid) -> list[Network]:
    """Return the networks that are pruned, in the order of the grid."""
    return list(dict.fromkeys((cell.task, cell.dataset, cell.model) for cell in grid.pruned()))


def of_network(frame: pd.DataFrame, network: Network) -> pd.DataFrame:
    """Return the rows of one network."""
    task, dataset, model = network
    return frame[(frame["task"] == task) & (frame["dataset"] == dataset) & (frame["model"] == model)]


def recorded_cells(runs: pd.DataFrame) -> set[Cell]:
    """Return the cells that have a record."""
    return {Cell.of(row) for row in runs[list(Cell._fields)].to_dict("records")}


def accepted(trace: pd.DataFrame) -> pd.DataFrame:
    """Return the iterations that were kept."""
    return trace[trace["accepted"].astype(str).str.lower() != "false"]


def methods_with_rows(grid: Grid, frame: pd.DataFrame) -> list[str]:
    """Return the methods that have rows, in the order of the grid."""
    present = set(frame["method"])  # further targets among them, which these figures leave out
    return [name for name in shown_methods(grid) if name in present]


def shown_methods(grid: Grid) -> list[str]:
    """Return the methods, each once: of those that differ in their target only, the first."""
    first: dict[str, str] = {}
    for method, line in shown_lines(grid).items():
        first.setdefault(line, method)
    return list(first.values())


def shown_lines(grid: Grid) -> dict[str, str]:
    """Return the methods that figures show, each with its curve: beside curves nothing that is one point only."""
    points = grid.options.points
    if not any(points.values()):
        return grid.lines()
    return {method: line for method, line in grid.lines().items() if points.get(line)}
