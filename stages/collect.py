"""Check every cell's records against ``params.yaml`` and gather them in the few files that go into git."""

from __future__ import annotations

from typing import Annotated

import typer

from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid
from ifap.study.report import records
from ifap.study.report.collecting import recorded_files, report_of, write_recorded
from ifap.study.report.judge import count_verdicts
from ifap.study.stage import run_stage
from stages.options import PARAMS, KeepOption, ParamsOption, ScaleOption


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
    keep_recorded: KeepOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Gather all records and judge every published number, or say what is missing or stale."""
    options = load_params(params)
    grid = Grid(options, select_scale(options, scale))
    collected = records.collect(grid, allow_missing=allow_missing, cells=cells, keep_recorded=keep_recorded)
    for cell, reason in collected.missing.items():
        typer.echo(f"missing: {cell}: {reason}", err=True)
    report = report_of(collected)
    files = recorded_files(collected, report)
    if not check:
        write_recorded(grid.scale, files)
    done = "checked" if check else f"wrote {', '.join(str(path) for path in files)}"
    counted = count_verdicts(report.claims)
    typer.echo(f"{done}: {len(collected.cells)} of {len(grid.cells())} cells; {counted}")
    if keep_recorded:
        typer.echo(f"cells: {collected.counts}")


if __name__ == "__main__":
    run_stage(main)
