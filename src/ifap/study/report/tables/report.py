"""What was recorded at one scale: the one thing that every table is built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report import records
from ifap.study.report.judge import Judged, check_against, load_judged


@dataclass(frozen=True)
class Report:
    """The files that `stages.collect` writes, read.

    Parameters
    ----------
    grid : Grid
        The cells that the tables should show; those without a row in `runs` are shown as not attempted.
    runs, trace : DataFrame
        Content of ``runs.csv`` and ``trace.csv``.
    claims : sequence of Judged
        Content of ``claims.csv``.
    missing : mapping of Cell to str
        Content of ``missing.csv``: why a cell has no row.
    """

    grid: Grid
    runs: pd.DataFrame
    trace: pd.DataFrame
    claims: Sequence[Judged]
    missing: Mapping[Cell, str] = field(default_factory=dict)

    @classmethod
    def load(cls, grid: Grid, *, root: Path = Path()) -> Report:
        """Read the files of a scale; what does not fit `grid` or the published numbers is an error."""
        runs, trace = records.load_runs(grid.scale, root=root), records.load_trace(grid.scale, root=root)
        records.check_cells(runs, grid, paths.runs_csv(grid.scale))
        records.check_cells(trace, grid, paths.trace_csv(grid.scale))
        claims = load_judged(grid.scale, root=root)
        check_against(claims, root / paths.published_claims(), grid.scale)
        return cls(grid, runs, trace, claims, records.load_missing(grid.scale, root=root))
