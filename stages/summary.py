"""Say in a few lines what a finished scale shows and where to look."""

from __future__ import annotations

import subprocess
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
    runs = records.load_runs(grid.scale)
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
    console.print(compared_with_recorded(grid.scale), highlight=False)


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


def compared_with_recorded(scale: str) -> str:
    """Say whether the tables just made are those recorded in git."""
    # The page also shows how long things took, which is never the same twice.
    files = (str(paths.report_dir(scale)), f":!{paths.report_page(scale)}")
    try:
        recorded = _git("ls-files", "--", *files)
        changed = _git("diff", "--name-only", "HEAD", "--", *files)
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout: nothing to compare these tables with"
    if not recorded:
        return "no tables of this scale are recorded in git to compare with"
    if not changed:
        return f"all {len(recorded)} recorded tables and figures came out the same, byte for byte"
    return f"{len(changed)} of {len(recorded)} recorded tables and figures differ: {', '.join(changed[:5])}"


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    run_stage(main)
