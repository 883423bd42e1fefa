"""Render the tables of one scale as Markdown, HTML, LaTeX and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.report import csv_files
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.options import table_names, table_options
from ifap.study.report.tables.render import render
from ifap.study.report.tables.report import Report
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(
    scale: ScaleOption = None,
    table: Annotated[str | None, typer.Option(help="One table, for example table-2; all by default.")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Render tables from the records of one scale."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    names = [table] if table else table_names(grid)
    for name in names:
        table_options(name, grid)
    report = Report.load(grid)
    models = [build_table(name, report) for name in names]
    contents: dict[Path, str | bytes] = {
        paths.table_file(grid.scale, model.name, extension): render(model, extension)
        for model in models
        for extension in TABLE_FORMATS
    }
    csv_files.write_files(contents)
    typer.echo(f"wrote {', '.join(names)} to {paths.report_dir(grid.scale)} as {', '.join(TABLE_FORMATS)}")


if __name__ == "__main__":
    run_stage(main)
