"""Check every cell's records against ``params.yaml`` and write what the report is made from as CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.study import paths
from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid
from ifap.study.report import csv_files, records
from ifap.study.report import judge as verdicts
from ifap.study.report.full_size import load_counts
from ifap.study.report.tables import methods as comparison
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption


def main(
    scale: ScaleOption = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept an unfinished grid; name the missing cells on stderr.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the records are whole and up to date.")
    ] = False,
    cells: Annotated[
        str | None, typer.Option(help="What the run is limited to: patterns such as 'classification/*/*/ifap'.")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Lay out all records as CSV files and judge every published number, or say what is missing or stale."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    collected = records.collect(grid, allow_missing=allow_missing, cells=cells)
    for cell, reason in collected.missing.items():
        typer.echo(f"missing: {cell}: {reason}", err=True)
    contents: dict[Path, str | bytes] = {
        paths.runs_csv(grid.scale): records.runs_table(collected),
        paths.trace_csv(grid.scale): records.trace_table(collected),
        paths.missing_csv(grid.scale): records.missing_table(collected),
    }
    source = verdicts.Source.of(collected, load_counts())
    judged = verdicts.judge_file(paths.published_claims(), source)
    contents[paths.claims_csv(grid.scale)] = verdicts.judged_table(judged)
    contents[paths.comparison_csv(grid.scale)] = comparison.comparison_table(grid, source.runs)
    if not check:
        csv_files.write_files(contents)
    done = "checked" if check else f"wrote {', '.join(str(path) for path in contents)}"
    typer.echo(f"{done}: {len(collected.records)} of {len(grid.cells())} cells; {verdicts.count_verdicts(judged)}")


if __name__ == "__main__":
    run_stage(main)
