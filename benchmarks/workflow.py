"""What the workflow takes beside the work: the dry run of the paper's grid, the start of a job, imports.

Each is compared with what is allowed for it, in processor seconds, imports with those of Torch-Pruning. The longest
chain of jobs of scale `quick` is read from its records.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
import yaml

from benchmarks.ratio import Ratio, compare, report
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.provenance import Provenance, load_provenance

ROOT = Path(__file__).parent.parent
DRY_RUN, JOB = 15.0, 4.0  # seconds that are allowed
IMPORT = 1.1  # of the time that Torch-Pruning takes, without which nothing is pruned
DATASET, MODEL, METHOD = "digits", "resnet_tiny", "magnitude"
STAGES = ("baseline", "prune", "finetune", "evaluate")


def seconds_of(command: Sequence[str], cwd: Path = ROOT) -> float:
    """Return the processor time of a command and of what it starts.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def allowed(quantity: str, measure: Callable[[], float], limit: float, runs: int) -> Ratio:
    """Compare a time with what is allowed for it."""
    return Ratio.of_pairs(quantity, [(measure(), limit) for _ in range(runs)], limit=1.0)


def dry_run(folder: Path, grid: Grid) -> float:
    """Return what a dry run of a whole grid takes, in a folder where every data set is taken to be prepared."""
    for name in ("Snakefile", "rules", "profiles", "params.yaml", "stages", "src", "results"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / paths.published_claims().parent, folder / paths.published_claims().parent)
    for dataset in grid.datasets():
        files = [paths.split_file(grid.scale, dataset, split) for split in paths.SPLITS]
        for file in (*files, paths.manifest_file(grid.scale, dataset)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(json.dumps({"root": None}))
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", "1"]
    return seconds_of([*command, "--config", f"scale={grid.scale}"], folder)


def empty_job(folder: Path) -> float:
    """Return what fine-tuning for no epoch takes: start-up, imports, reading data and network, writing records."""
    return seconds_of(_stage("finetune", METHOD), folder)


def prepare(folder: Path) -> None:
    """Make data, a network and a pruned network with next to no training in a folder."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(_smallest(raw), sort_keys=False))
    seconds_of([sys.executable, "-m", "stages.fetch", "--dataset", DATASET], folder)
    for stage, method in (("baseline", None), ("prune", METHOD)):
        seconds_of(_stage(stage, method), folder)


def _smallest(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of scale `quick` cut down to one network that is hardly trained."""
    quick = raw["scales"]["quick"]
    quick["seeds"] = [0]
    quick["grid"] = {"classification": {"datasets": [DATASET], "models": [MODEL], "methods": [METHOD]}}
    quick["datasets"] = {DATASET: {"validation": 0.2, "test": 0.5, "split_seed": 0}}
    quick["models"] = {"default": {"image_size": 16}}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {name: block for name, block in quick[step].items() if name in {"default", "recovery"}}
    quick["baseline"]["default"].update(epochs=1, warmup_epochs=0)
    quick["finetune"]["default"].update(epochs=0, warmup_epochs=0)
    quick["prune"]["default"].update(target={"macs": 0.5}, steps=1, calibration_samples=16)
    quick["prune"]["recovery"].update(epochs=0)
    raw["tables"]["table-4"].update(model=MODEL, method=METHOD)
    raw["versions"] = dict.fromkeys(raw["versions"], 1)
    return {**raw, "scale": "quick", "published": "quick", "scales": {"quick": quick}}


def _stage(stage: str, method: str | None) -> list[str]:
    command = [sys.executable, "-m", f"stages.{stage}", "--task", "classification", "--dataset", DATASET]
    return [*command, "--model", MODEL, "--seed", "0", *(["--method", method] if method else [])]


def critical_path() -> list[dict[str, object]]:
    """Return the longest chain of recorded jobs of scale `quick`, one row a job."""
    grid = Grid(load_params(ROOT / "params.yaml"), "quick")
    recorded = load_provenance("quick", root=ROOT)
    chains = {cell: _chain(recorded, cell) for cell in grid.pruned()}
    cell = max(chains, key=lambda each: sum(chains[each].values()))
    total = sum(chains[cell].values())
    return [
        {"cell": cell, "stage": stage, "seconds": seconds, "share": round(seconds / total, 3)}
        for stage, seconds in chains[cell].items()
    ]


def _chain(recorded: Mapping[Cell, Provenance], cell: Cell) -> dict[str, float]:
    """Return the seconds of each job that a cell waits for, its baseline's first."""
    jobs = ((stage, cell.baseline if stage == "baseline" else cell) for stage in STAGES)
    return {stage: seconds for stage, owner in jobs if (seconds := recorded[owner].wall_seconds.get(stage)) is not None}


def imports() -> Ratio:
    """Compare importing what prunes; ifap itself loads nothing before it is used."""
    ours, theirs = ([sys.executable, "-c", code] for code in ("from ifap import prune", "import torch_pruning"))
    quantity = "from ifap import prune, to import torch_pruning"
    return compare(quantity, lambda: seconds_of(ours), lambda: seconds_of(theirs), limit=IMPORT, runs=5)


def main() -> None:
    """Print and record the times, and print the longest chain of scale `quick`."""
    torch.set_num_threads(1)
    paper = Grid(load_params(ROOT / "params.yaml"), "paper")
    rows = [imports()]
    with tempfile.TemporaryDirectory() as name:
        quantity = f"dry run of scale paper, {len(paper.cells())} cells"
        rows.append(allowed(quantity, lambda: dry_run(Path(name), paper), DRY_RUN, runs=1))
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        rows.append(allowed("a job without work", lambda: empty_job(Path(name)), JOB, runs=3))
    report("workflow", "What the workflow takes beside the work", "allowed", rows)
    for row in critical_path():
        typer.echo(f"{row['cell']}: {row['stage']} {row['seconds']} s, {row['share']:.0%} of the longest chain")


if __name__ == "__main__":
    main()
