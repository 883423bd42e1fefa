"""After a pull or a checkout: check that files and ``params.yaml`` agree, then tell Snakemake so.

Files that git and DVC have just written carry the time of writing, in no particular order, and
Snakemake would take the newer for changed. Marking all of them as up to date is right only when
they are, so DVC's checksums and the records' configurations are checked first.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.report import records
from ifap.study.stage import run_stage
from stages.options import PARAMS, ParamsOption, ScaleOption, open_grid

log = logging.getLogger("stages.sync")


def main(scale: ScaleOption = None, params: ParamsOption = PARAMS) -> None:
    """Check the scale's files and mark them as up to date."""
    grid = open_grid(params, scale)
    pointer = str(paths.pointer_file(grid.scale))
    if not Path(pointer).exists():
        raise ResultsError(f"{pointer} not found: run `make record SCALE={grid.scale}` after a finished run")
    switch_on(grid.scale)
    try:
        _run("dvc", "checkout", pointer, hint=f"run `make pull SCALE={grid.scale}`, or `make record` for new results")
    except ResultsError as error:
        raise ResultsError(f"{error}{not_fetched()}") from None
    if _run("dvc", "status", "--quiet", pointer, check=False):
        raise ResultsError("data or checkpoints differ from what DVC recorded: see `dvc status`")
    records.collect(grid)
    missing = [
        str(paths.checkpoint_dir(grid.scale, cell, "final"))
        for cell in grid.cells()
        if grid.options.keep_checkpoints and not paths.checkpoint_dir(grid.scale, cell, "final").exists()
    ]
    if missing:
        how = f"`make pull SCALE={grid.scale}`, or `make reproduce SCALE={grid.scale}` if they were never recorded"
        raise ResultsError(f"{len(missing)} checkpoints are not here, the first is {missing[0]}: run {how}")
    # Stale metadata are worse than none: they would hide a change of params.yaml.
    shutil.rmtree(Path(".snakemake") / "metadata", ignore_errors=True)
    _run("snakemake", "--config", f"scale={grid.scale}", "--touch", "--forceall", "--quiet", "all", "--")
    log.info("scale %s is in sync: `snakemake -n` has nothing to do", grid.scale)


def switch_on(scale: str) -> None:
    """Let DVC read the pointer of a scale, which it does not where nobody has asked for the files."""
    pointer, switch = paths.pointer_file(scale), paths.pointer_switch(scale)
    atomic_write_text(switch, f"!{pointer.name}\n")


def not_fetched() -> str:
    """Name the recorded files that are not here, as the end of an error: DVC itself names only their folder."""
    command = [sys.executable, "-m", "dvc", "data", "status", "--granular", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        absent = [str(name) for name in json.loads(done.stdout)["not_in_cache"]]
    except (ValueError, KeyError, TypeError):
        return ""
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return f"; not fetched, or damaged in the remote: {absent[0]}{more}" if absent else ""


def _run(*command: str, check: bool = True, hint: str = "") -> int:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        start = next((number for number, line in enumerate(lines) if line.startswith("ERROR")), len(lines) - 1)
        said = " ".join(line.removeprefix("ERROR: ") for line in lines[start:] if "error.dvc.org" not in line)
        raise ResultsError(f"`{' '.join(command[:2])}` failed: {said}{'; ' if hint else ''}{hint}")
    return done.returncode


if __name__ == "__main__":
    run_stage(main)
