"""Record a scale: how each record came to be, and a DVC pointer to its data, cells and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.paths import Cell
from ifap.study.report import records
from ifap.study.report.collecting import recorded_files, report_of
from ifap.study.report.provenance import gather, provenance_table, recorded_columns
from ifap.study.stage import run_stage
from stages.options import PARAMS, KeepOption, ParamsOption, ScaleOption, open_grid
from stages.sync import switch_on

ONLY_HERE = "the pointer then names only the files that are here"
"""What follows where nobody has the list of the files that were recorded before."""


def main(
    scale: ScaleOption = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Record an unfinished scale: its other cells are not attempted.")
    ] = False,
    keep_recorded: KeepOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Write provenance.csv of a finished scale and version its data, cells and checkpoints in DVC."""
    grid = open_grid(params, scale)
    collected = records.collect(grid, allow_missing=allow_missing, keep_recorded=keep_recorded)
    kept = collected.kept.records
    check_gathered(recorded_files(collected, report_of(collected)), grid.scale, keep_recorded=keep_recorded)
    found = gather(grid, collected.hashes, kept=kept)
    columns = recorded_columns(grid.scale) if kept else []
    named = extend(grid.scale, list(collected.records)) if kept else version(grid.scale)
    atomic_write_text(paths.provenance_csv(grid.scale), provenance_table(grid.scale, found, columns))
    typer.echo(f"{paths.provenance_csv(grid.scale)}: {len(found)} of {len(collected.cells)} cells")
    typer.echo(f"{paths.pointer_file(grid.scale)}: {', '.join(named)}")
    if keep_recorded:
        typer.echo(f"cells: {collected.counts}")


def check_gathered(files: dict[Path, str], scale: str, *, keep_recorded: bool) -> None:
    """Refuse to record a scale whose files in git are not what its cells say."""
    again = f"make reproduce SCALE={scale}"
    if keep_recorded:
        again = f"python -m stages.collect --scale {scale} --keep-recorded"
    for path, content in files.items():
        if not path.exists() or path.read_text() != content:
            raise ResultsError(f"{path} is not what the cells say: run {again} first")


def version(scale: str) -> list[str]:
    """Put what a scale has here into DVC's cache and point to it; return all that the pointer names.

    What was recorded before and is not here, such as checkpoints that were never pulled, stays recorded.
    """
    pointer, before = paths.pointer_file(scale), read_pointer(scale)
    here = [folder.as_posix() for folder in folders_here(scale)]
    switch_on(scale)
    # The outputs are named for the first time, which DVC would ask about.
    run_dvc("commit", "--force", str(pointer), scale=scale, outs=[{"path": name} for name in here])
    outs = [*read_pointer(scale), *(out for out in before if out["path"] not in here)]
    write_pointer(pointer, outs)
    return [out["path"] for out in outs]


def extend(scale: str, cells: Sequence[Cell]) -> list[str]:
    """Add the work of cells to what is recorded of a scale; return all that the pointer names.

    The files of other cells are not here, so that DVC may not replace its list of a folder by what the folder holds.
    It adds to the list without the other files, but it needs the list itself, from its cache or from the remote.

    Parameters
    ----------
    scale : str
        Name of the scale.
    cells : sequence of Cell
        Those whose work is here.
    """
    before = read_pointer(scale)
    recorded = {out["path"] for out in before}
    new = [folder for folder in folders_here(scale) if folder.as_posix() not in recorded]
    parts = [part for folder in folders_here(scale) if folder not in new for part in parts_here(folder, cells)]
    if new or parts:
        switch_on(scale)
        outs = [*before, *({"path": folder.as_posix()} for folder in new)]
        remedy = f"; where no list of the recorded files can be had, remove {paths.pointer_file(scale)}: {ONLY_HERE}"
        run_dvc("add", "--quiet", *map(str, [*new, *parts]), scale=scale, outs=outs, remedy=remedy)
    return [out["path"] for out in read_pointer(scale)]


def folders_here(scale: str) -> list[Path]:
    """Return the folders of a scale that DVC keeps and that are here."""
    folders = paths.data_dir(scale), paths.cells_dir(scale), paths.checkpoints_dir(scale)
    return [folder for folder in folders if folder.is_dir()]


def parts_here(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Return what a folder of data, cells or checkpoints has of some cells."""
    parts = {folder / part for cell in cells for part in (cell.dataset, str(cell))}
    return sorted(part for part in parts if part.is_dir())


def run_dvc(*command: str, scale: str, outs: list[dict[str, Any]], remedy: str = "") -> None:
    """Let DVC put the outputs of a pointer into its cache; a pointer that it cannot fill is left as it was."""
    pointer, before = paths.pointer_file(scale), read_pointer(scale)
    write_pointer(pointer, outs)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        write_pointer(pointer, before)
        raise ResultsError(f"`dvc {command[0]}` failed: {' '.join(done.stderr.split())}{remedy}")


def read_pointer(scale: str) -> list[dict[str, Any]]:
    """Return the folders that the pointer of a scale names; none where there is no pointer."""
    pointer = paths.pointer_file(scale)
    return yaml.safe_load(pointer.read_text())["outs"] if pointer.exists() else []


def write_pointer(pointer: Path, outs: list[dict[str, Any]]) -> None:
    """Write a DVC file that names folders of the project."""
    atomic_write_text(pointer, yaml.safe_dump({"wdir": "../..", "outs": outs}, sort_keys=False))


if __name__ == "__main__":
    run_stage(main)
