"""Draw the figures of one scale and the page that shows them beside the tables."""

from __future__ import annotations

from pathlib import Path

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid
from ifap.study.report import csv_files, figure_names, figures, records
from ifap.study.report.page import load_evidence, render_page
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.options import table_names
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(
    scale: ScaleOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Draw every figure as SVG and PNG and write index.html, which opens offline."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    runs, trace = records.load_runs(grid.scale), records.load_trace(grid.scale)
    records.check_cells(runs, grid, paths.runs_csv(grid.scale))
    records.check_cells(trace, grid, paths.trace_csv(grid.scale))
    pictures = [figures.draw(name, grid, runs, trace) for name in figure_names(grid.options.grid)]
    missing = records.load_missing(grid.scale)
    models = [build_table(name, grid, runs, trace, missing=missing) for name in table_names(grid)]
    contents: dict[Path, str | bytes] = {
        paths.figure_file(grid.scale, picture.name, extension): content
        for picture in pictures
        for extension, content in picture.files.items()
    }
    contents[paths.report_page(grid.scale)] = render_page(
        grid, runs, models, pictures, evidence=load_evidence(grid, runs)
    )
    csv_files.write_files(contents)
    typer.echo(f"wrote {len(pictures)} figures and {paths.report_page(grid.scale)}")


if __name__ == "__main__":
    run_stage(main)
