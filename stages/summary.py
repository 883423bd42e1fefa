"""Say in a few lines what a finished scale shows and where to look."""

from __future__ import annotations

import csv
import io
import subprocess
from math import inf
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ifap.errors import ConfigError, nearest
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.report import records
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption, open_grid

LISTED = 5
"""Files that are named before the rest is counted."""


def main(
    scale: ScaleOption = None,
    cell: Annotated[str | None, typer.Option(help="One pruned cell: task/dataset/model/method/seedN.")] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Print the measured reduction and accuracy of every cell and the paths of the tables."""
    grid = open_grid(params, scale)
    if cell is not None:
        typer.echo(one_cell(grid, cell))
        return
    runs = records.load_records(grid.scale)
    console = Console(width=100)
    table = Table(title=f"scale {grid.scale}: {len(runs)} of {len(grid.cells())} cells", title_justify="left")
    for heading in ("data set", "model", "method", "seed"):
        table.add_column(heading)
    for heading in ("MACs", "params", "score before", "score after"):
        table.add_column(heading, justify="right")
    for run in runs[runs.method != "baseline"].itertuples():
        reductions = (f"{run.macs_reduction:+.1f} %", f"{run.params_reduction:+.1f} %")
        table.add_row(
            str(run.dataset), str(run.model), str(run.method), str(run.seed), *reductions,
            f"{run.baseline_metric:.2f}", f"{run.test_metric:.2f}",
        )  # fmt: skip
    console.print(table)
    for name in grid.params.tables:
        console.print(f"{name}: {paths.table_file(grid.scale, name, 'md')}", highlight=False)
    console.print(f"report:  {paths.report_page(grid.scale)} (open it in a browser)", highlight=False)
    for line in compared_with_recorded(grid.scale):
        typer.echo(line)


def one_cell(grid: Grid, name: str) -> str:
    """Say what one pruned cell reached; `name` is its path."""
    cells = {str(cell): cell for cell in grid.pruned()}
    if name not in cells:
        raise ConfigError(f"scale '{grid.scale}' has no pruned cell '{name}': {nearest(name, cells)}")
    cell = cells[name]
    files = [paths.metrics_file(grid.scale, which) for which in (cell.baseline, cell)]
    before, after = (
        records.read_record(file, file, grid.scale, which)
        for file, which in zip(files, (cell.baseline, cell), strict=True)
    )
    drop = after.score - before.score
    return "\n".join(
        (
            f"MACs    {before.macs:>12,} -> {after.macs:>12,}  ({100 * (after.macs / before.macs - 1):+.1f} %)",
            f"params  {before.params:>12,} -> {after.params:>12,}  ({100 * (after.params / before.params - 1):+.1f} %)",
            f"{after.primary:<8}{before.score:>11.2f}% -> {after.score:>11.2f}%  ({drop:+.2f} points)",
            f"records {files[0]}, {files[1]}",
        )
    )


def compared_with_recorded(scale: str) -> list[str]:
    """Say whether this run gave what git has recorded; if not, which cells differ and by how much."""
    folders = [str(paths.scale_dir(scale)), str(paths.report_dir(scale))]
    file = paths.records_csv(scale).as_posix()
    try:
        recorded = _git("ls-files", "--", *folders).splitlines()
        changed = [line[3:] for line in _git("status", "--porcelain", "--", *folders).splitlines()]
        before = _git("show", f"HEAD:{file}") if file in recorded else None
    except (OSError, subprocess.CalledProcessError):
        return ["not a git checkout: nothing to compare with"]
    if before is None:
        return ["no records of this scale are in git to compare with"]
    if not changed:
        return [f"exact reproduction: all {len(recorded)} recorded files of scale {scale} are the same, byte for byte"]
    lines = differences(before, Path(file).read_text())
    return [
        f"no exact reproduction: {len(changed)} of {len(recorded)} recorded files differ, and {len(lines)} cells",
        *lines,
        f"files: {', '.join(changed[:LISTED])}{f' and {len(changed) - LISTED} more' if len(changed) > LISTED else ''}",
    ]


def differences(before: str, after: str) -> list[str]:
    """Name each cell whose record differs, with the value that is furthest off; see `compared_with_recorded`."""
    old, new = (_by_cell(text) for text in (before, after))
    lines = []
    for cell in dict.fromkeys([*old, *new]):
        if cell not in old or cell not in new:
            lines.append(f"{cell}: {'not recorded before' if cell in new else 'recorded before, and not here'}")
            continue
        off = {name: _off(old[cell].get(name, ""), value) for name, value in new[cell].items()}
        worst = max(off, key=lambda name: off[name])
        if off[worst]:
            known = f" ({100 * off[worst]:.2g} % off)" if off[worst] < inf else ""
            others = sum(map(bool, off.values())) - 1
            more = f"; {others} more values" if others else ""
            lines.append(f"{cell}: {worst} {new[cell][worst]} instead of {old[cell].get(worst, '')}{known}{more}")
    return lines


def _by_cell(text: str) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return {str(paths.Cell.of(row)): row for row in rows}


def _off(before: str, after: str) -> float:
    """Return the relative difference of two fields; of what is no number, infinity if they are not the same."""
    if before == after:
        return 0.0
    try:
        return abs(float(after) - float(before)) / max(abs(float(before)), abs(float(after)))
    except ValueError:
        return inf


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    run_stage(main)
