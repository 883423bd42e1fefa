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
from ifap.study.report.configs import check_configs, load_configs
from ifap.study.report.full_size import load_counts
from ifap.study.report.judge import Judged, Source, judge_file


@dataclass(frozen=True)
class Report:
    """The files that `stages.collect` writes, read, and the verdicts that follow from them."""

    grid: Grid  # The cells that the tables should show; those without a row in `runs` are shown as not attempted.
    runs: pd.DataFrame  # Content of ``records.csv``.
    trace: pd.DataFrame  # Content of ``trace.csv``.
    claims: Sequence[Judged]  # Every published number with its verdict.
    missing: Mapping[Cell, str] = field(default_factory=dict)  # Content of ``missing.csv``: why a cell has no row.

    @classmethod
    def load(cls, grid: Grid, *, root: Path = Path()) -> Report:
        """Read the files of a scale; records of other cells or other parameters than `grid` has are an error."""
        scale = grid.scale
        runs, trace = records.load_records(scale, root=root), records.load_trace(scale, root=root)
        records.check_cells(runs, grid, paths.records_csv(scale))
        records.check_cells(trace, grid, paths.trace_csv(scale))
        check_configs(runs, load_configs(scale, root=root), grid)
        return cls.of(grid, runs, trace, records.load_missing(scale, root=root), root=root)

    @classmethod
    def of(
        cls,
        grid: Grid,
        runs: pd.DataFrame,
        trace: pd.DataFrame,
        missing: Mapping[Cell, str],
        *,
        root: Path = Path(),
    ) -> Report:
        """Judge every published number by what was recorded and by the networks counted at full size."""
        source = Source(grid, runs, trace, missing, load_counts(root=root))
        claims = judge_file(root / paths.published_claims(), source)
        return cls(grid, runs, trace, claims, missing)
