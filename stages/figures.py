"""Draw the figures of one scale and the page that shows them beside the tables."""

from __future__ import annotations

from pathlib import Path

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid
from ifap.study.report import csv_files, figure_names, figures
from ifap.study.report.page import load_evidence, render_page
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.options import table_names
from ifap.study.report.tables.report import Report
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(scale: ScaleOption = None, params: ParamsOption = PARAMS) -> None:
    """Draw every figure as SVG and PNG and write index.html, which opens offline."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    report = Report.load(grid)
    runs = report.runs
    pictures = [figures.draw(name, grid, runs, report.trace) for name in figure_names(grid.options.grid)]
    models = [build_table(name, report) for name in table_names(grid)]
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
