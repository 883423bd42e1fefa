"""What a machine has for a study and what would stop it: devices, versions, disk, data sets, and what runs where."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ifap.errors import ConfigError, installation
from ifap.study import paths
from ifap.study.config.data import ModelOptions
from ifap.study.config.reading import load_params, select_scale
from ifap.study.data.origins import planned
from ifap.study.grid import Grid
from ifap.study.machine import gpu
from ifap.study.models.weights import FEATURES_OF, source_of

if TYPE_CHECKING:
    from rich.table import Table

WORKFLOW = ("snakemake", "dvc", "pandas", "sklearn", "matplotlib", "jinja2")
GPU_STEPS = ("baseline", "prune", "finetune", "evaluate")
TOOLS = {
    "sbatch": "a Slurm cluster: `--workflow-profile profiles/slurm`",
    "kubectl": "a Kubernetes cluster: one pod with GPUs, profiles/kubernetes/job.yaml",
    "apptainer": "jobs in containers: `--workflow-profile profiles/container`",
}
GB = 1e9
SHOWN = 5

State = Literal["", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    group: str  # What it is about, for example ``GPUs``.
    name: str  # What was looked at.
    found: str  # What was found, and what to do about it if it is wrong.
    state: State = ""  # ``wrong`` stops a run, ``note`` is worth knowing.


def examine(params: Path = Path("params.yaml"), scale: str | None = None) -> list[Finding]:
    """Look at the machine and, where there is a parameter file, at what one scale needs of it.

    Group by group; changes nothing and starts nothing.

    Parameters
    ----------
    params : Path
        The parameter file; without it only the machine is looked at, unless a scale is named.
    scale : str, optional
        The scale; the one in the parameter file by default.

    Raises
    ------
    ConfigError
        If the parameter file is wrong or has no such scale.
    """
    devices = gpu.visible_devices()
    found = [*_machine(), *_gpus(devices)]
    if scale is None and not params.exists():
        return [*found, Finding("disk", "free", f"{_free(Path()) / GB:.1f} GB here")]
    checked = load_params(params)
    grid = Grid(checked, select_scale(checked, scale))
    usable = bool(devices) and not gpu.owns_none()
    return [*found, *_packages(), *_disk(grid), *_data(grid), *_weights(grid), *_where(grid, len(devices) * usable)]


def table(findings: list[Finding]) -> Table:
    """Lay the findings out; what is wrong is marked in words, for those who see no colours."""
    from rich.table import Table
    from rich.text import Text

    laid = Table(box=None, pad_edge=False, show_header=False)
    laid.add_column(style="bold")
    laid.add_column(no_wrap=True)
    laid.add_column(overflow="fold")
    styles = {"": "", "note": "yellow", "wrong": "red"}
    group = ""
    for finding in findings:
        mark = "" if finding.state == "" else f"{finding.state}: "
        shown = "" if finding.group == group else finding.group
        laid.add_row(shown, Text(finding.name), Text(f"{mark}{finding.found}", style=styles[finding.state]))
        group = finding.group
    return laid


def _machine() -> Iterator[Finding]:
    from ifap.study.machine.provenance import provenance

    here = provenance()
    for name, version in here["versions"].items():
        yield Finding("versions", name, version)
    hardware = here["hardware"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("machine", "processor", f"{hardware['cpu']}, {hardware['cores']} cores")
    yield Finding("machine", "memory", f"{memory:.1f} GiB")
    by = gpu.scheduler()
    if by:
        yield Finding("machine", "scheduler", f"this is a job of {by}, which assigns its devices")


def _gpus(devices: list[gpu.Device]) -> Iterator[Finding]:
    import torch

    group = "GPUs"
    cuda = torch.version.cuda
    yield Finding(group, "torch", f"built for CUDA {cuda}" if cuda else "built without CUDA")
    driver = _driver()
    if driver:
        yield Finding(group, "driver", driver)
    if gpu.owns_none():
        yield Finding(group, "devices", "this Slurm job asked for none: everything runs on the CPU", "note")
        return
    if not devices:
        hidden = gpu.VISIBLE in os.environ
        yield Finding(group, "devices", f"none{f' ({gpu.VISIBLE} hides them)' if hidden else ''}: all runs on the CPU")
        return
    if not torch.cuda.is_available():
        why = f"built for CUDA {cuda}, is the driver new enough?" if cuda else "install a build of torch with CUDA"
        yield Finding(group, "torch", f"cannot use the {len(devices)} GPUs that are here: {why}", "wrong")
    try:
        taken = {(holder.device, holder.slot): holder.process for holder in gpu.holders(devices)}
        number = gpu.slots()
    except ConfigError as error:
        yield Finding(group, "leases", str(error), "wrong")
        return
    for device in devices:
        by = [taken[device, slot] for slot in range(number) if (device, slot) in taken]
        state = f"leased by process {', '.join(by)}" if by else "free"
        yield Finding(group, device.name, f"{device.title or 'model not known'}: {state}")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=gpu.LIST_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(dict.fromkeys(done.stdout.split()))


def _packages() -> Iterator[Finding]:
    missing = [name for name in WORKFLOW if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("versions", "workflow", f"{', '.join(missing)} missing: {installation('workflow')}", "wrong")


def _disk(grid: Grid) -> Iterator[Finding]:
    from ifap.study.report.estimate import estimate

    there = sum(
        file.stat().st_size
        for folder in (paths.data_dir(grid.scale), paths.scale_dir(grid.scale) / "checkpoints")
        for file in folder.rglob("*")
        if file.is_file()
    )
    wanted = max(0.0, estimate(grid)["all"].disk - there)
    free = _free(Path())
    short = free < wanted
    less = ", less than is wanted" if short else ""
    yield Finding("disk", "free", f"{free / GB:.1f} GB here{less}", "wrong" if short else "")
    yield Finding("disk", "wanted", f"{wanted / GB:.2f} GB more by estimate, {there / GB:.2f} GB are there")


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _data(grid: Grid) -> Iterator[Finding]:
    absent = grid.absent()
    names = grid.datasets()
    for name in names:
        if name in absent:
            state: State = "wrong" if len(absent) == len(names) else "note"
            yield Finding("data sets", name, f"left out: {absent[name]}", state)
        elif paths.manifest_file(grid.scale, name).exists():
            yield Finding("data sets", name, "prepared")
        else:
            source = planned(name, grid.options.datasets[name])
            yield Finding("data sets", name, f"can be had; stage fetch prepares it{f': {source}' if source else ''}")


def _weights(grid: Grid) -> Iterator[Finding]:
    missing = []
    for file, (model, is_fetched) in _weight_files(grid).items():
        if Path(file).exists():
            continue
        source = source_of(model) if is_fetched else None
        if source is None:
            missing.append(file)
        else:
            yield Finding("networks", "pretrained", f"{model}: from the {source}, fetched to {file}")
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        say = f"{', '.join(missing[:SHOWN])}{more} not found: see docs/architectures.md"
        yield Finding("networks", "pretrained", say, "wrong")


def _weight_files(grid: Grid) -> dict[str, tuple[str, bool]]:
    """Return the files of weights that the cells read: whose weights they hold, and whether a stage fetches them."""
    files: dict[str, tuple[str, bool]] = {}
    for cell in grid.baselines():
        options = grid.model(cell)
        named = {options.pretrained: cell.model}
        if isinstance(options, ModelOptions):
            named[options.features] = FEATURES_OF
        files |= {file: (model, options.download) for file, model in named.items() if file}
    return files


def _where(grid: Grid, devices: int) -> Iterator[Finding]:
    """Say what runs where: with Snakemake on this machine, and what else is at hand."""
    group = "runs"
    steps = ", ".join(GPU_STEPS)
    if devices:
        jobs = devices * gpu.slots()
        yield Finding(group, "on a GPU", f"{steps}: {jobs} at a time with `--resources gpu={jobs}`")
        yield Finding(group, "on the CPU", "fetch, collect, tables, figures")
    else:
        yield Finding(group, "on the CPU", f"everything: {steps} on one core each")
    half = [cell for cell in grid.cells() if grid.training(cell).precision == "fp16"]
    if half and not devices:
        yield Finding(group, "precision", f"fp16 needs a GPU ({half[0]}): set precision to bf16 or fp32", "wrong")
    for program, use in TOOLS.items():
        if shutil.which(program):
            yield Finding(group, program, use)
