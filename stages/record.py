"""Record a scale: how each record came to be, and a DVC pointer to its data, cells and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.report import records
from ifap.study.report.collecting import recorded_files, report_of
from ifap.study.report.configs import config_hash
from ifap.study.report.provenance import gather, provenance_table
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption, open_grid
from stages.sync import switch_on


def main(
    scale: ScaleOption = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Record an unfinished scale: its other cells are not attempted.")
    ] = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Write provenance.csv of a finished scale and version its data, cells and checkpoints in DVC."""
    grid = open_grid(params, scale)
    collected = records.collect(grid, allow_missing=allow_missing)
    check_gathered(recorded_files(collected, report_of(collected)), grid.scale)
    hashes = {cell: config_hash(record.config) for cell, record in collected.records.items()}
    found = gather(grid, hashes)
    atomic_write_text(paths.provenance_csv(grid.scale), provenance_table(grid.scale, found))
    kept = version(grid.scale)
    typer.echo(f"{paths.provenance_csv(grid.scale)}: {len(found)} of {len(hashes)} cells")
    typer.echo(f"{paths.pointer_file(grid.scale)}: {', '.join(kept)}")


def check_gathered(files: dict[Path, str], scale: str) -> None:
    """Refuse to record a scale whose files in git are not what its cells say."""
    for path, content in files.items():
        if not path.exists() or path.read_text() != content:
            raise ResultsError(f"{path} is not what the cells say: run make reproduce SCALE={scale} first")


def version(scale: str) -> list[str]:
    """Put what a scale has here into DVC's cache and point to it; return all that the pointer names.

    What was recorded before and is not here, such as checkpoints that were never pulled, stays recorded.
    """
    pointer = paths.pointer_file(scale)
    folders = (paths.data_dir(scale), paths.cells_dir(scale), paths.checkpoints_dir(scale))
    here = [folder.as_posix() for folder in folders if folder.is_dir()]
    before = yaml.safe_load(pointer.read_text())["outs"] if pointer.exists() else []
    switch_on(scale)
    write_pointer(pointer, [{"path": name} for name in here])
    # The outputs are named for the first time, which DVC would ask about.
    command = [sys.executable, "-m", "dvc", "commit", "--force", str(pointer)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        write_pointer(pointer, before)
        raise ResultsError(f"`dvc commit` failed: {' '.join(done.stderr.split())}")
    outs = yaml.safe_load(pointer.read_text())["outs"]
    outs += [out for out in before if out["path"] not in here]
    write_pointer(pointer, outs)
    return [out["path"] for out in outs]


def write_pointer(pointer: Path, outs: list[dict[str, Any]]) -> None:
    """Write a DVC file that names folders of the project."""
    atomic_write_text(pointer, yaml.safe_dump({"wdir": "../..", "outs": outs}, sort_keys=False))


if __name__ == "__main__":
    run_stage(main)
