"""Draw the figures of one scale, the page that shows them beside the tables, and the page of the records."""

from __future__ import annotations

from pathlib import Path

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid
from ifap.study.report import csv_files, figure_names, figures
from ifap.study.report.configs import load_configs
from ifap.study.report.page import load_findings, render_page
from ifap.study.report.provenance import load_provenance
from ifap.study.report.records_page import render_records
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.methods import comparison_table
from ifap.study.report.tables.options import table_names
from ifap.study.report.tables.report import Report
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(scale: ScaleOption = None, params: ParamsOption = PARAMS) -> None:
    """Draw every figure as SVG and PNG; write index.html and records.html, which open offline, and comparison.csv."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    report = Report.load(grid)
    runs = report.runs
    names = figure_names(grid.options.grid, paper_data=grid.options.paper_data)
    pictures = [figures.draw(name, grid, runs, report.trace) for name in names]
    models = [build_table(name, report) for name in table_names(grid)]
    contents: dict[Path, str | bytes] = {
        paths.figure_file(grid.scale, picture.name, extension): content
        for picture in pictures
        for extension, content in picture.files.items()
    }
    provenance = load_provenance(grid.scale)
    contents[paths.report_page(grid.scale)] = render_page(
        report, models, pictures, findings=load_findings(), provenance=provenance
    )
    contents[paths.records_page(grid.scale)] = render_records(report, load_configs(grid.scale), provenance)
    contents[paths.comparison_csv(grid.scale)] = comparison_table(grid, runs)
    csv_files.write_files(contents)
    typer.echo(f"wrote {len(pictures)} figures, {paths.report_page(grid.scale)} and {paths.records_page(grid.scale)}")


if __name__ == "__main__":
    run_stage(main)
