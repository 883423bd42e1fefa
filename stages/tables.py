"""Render the tables of one scale as Markdown, HTML, LaTeX and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.report import csv_files, records
from ifap.study.report import judge as verdicts
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.options import table_names, table_options
from ifap.study.report.tables.render import render
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(
    scale: ScaleOption = None,
    table: Annotated[str | None, typer.Option(help="One table, for example table-2; all by default.")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Render tables from runs.csv, trace.csv and claims.csv of one scale."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    names = [table] if table else table_names(grid)
    for name in names:
        table_options(name, grid)
    runs, trace = records.load_runs(grid.scale), records.load_trace(grid.scale)
    records.check_cells(runs, grid, paths.runs_csv(grid.scale))
    records.check_cells(trace, grid, paths.trace_csv(grid.scale))
    claims = verdicts.load_judged(grid.scale)
    verdicts.check_against(claims, paths.published_claims(), grid.scale)
    missing = records.load_missing(grid.scale)
    models = [build_table(name, grid, runs, trace, claims, missing) for name in names]
    contents: dict[Path, str | bytes] = {
        paths.table_file(grid.scale, model.name, extension): render(model, extension)
        for model in models
        for extension in TABLE_FORMATS
    }
    csv_files.write_files(contents)
    typer.echo(f"wrote {', '.join(names)} to {paths.report_dir(grid.scale)} as {', '.join(TABLE_FORMATS)}")


if __name__ == "__main__":
    run_stage(main)
