"""A copy of the project with a grid so small that all of it runs in a minute."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from places import ROOT

from ifap.study.config.reading import load_params
from ifap.study.grid import Grid

SCALE = "quick"
BELONGS_TO_RESULTS = re.compile(
    r"(tests|results/(?!full_size\.csv)|reports/(?!templates|paper)|data/(?!paper/))|dvc\.lock$"
)
RECIPE = {"epochs": 1, "warmup_epochs": 0}


def tiny_params(methods=("ifap", "random")):
    """Return ``params.yaml`` as it is, cut down to a grid of seconds."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick = raw["scales"]["quick"]
    quick["seeds"] = [0]
    axes = {"datasets": ["digits"], "models": ["resnet_tiny"], "methods": list(methods)}
    quick["grid"] = {"classification": axes}
    quick["datasets"] = {"digits": {"validation": 0.2, "test": 0.5, "split_seed": 0}}
    quick["models"] = {"default": {"image_size": 16}}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {name: block for name, block in quick[step].items() if name in {"default", "recovery"}}
    quick["baseline"]["default"].update(RECIPE, epochs=2)
    quick["finetune"]["default"].update(RECIPE)
    quick["prune"]["default"].update(target={"macs": 0.5}, steps=2, calibration_samples=64)
    quick["prune"]["recovery"].update(epochs=1)
    quick["evaluate"].update(latency_warmup=1, latency_runs=3)
    raw["tables"]["table-4"].update(model="resnet_tiny", method="ifap")
    raw["versions"] = dict.fromkeys(raw["versions"], 1)
    return {**raw, "scale": SCALE, "published": SCALE, "scales": {SCALE: quick}}


@dataclass(frozen=True)
class Project:
    """A folder with a whole checkout, and how to run commands in it."""

    root: Path

    @property
    def environment(self):
        """The test's own Python; ``ifap`` and the stages come from this folder."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE", "PYTEST", "GIT_", "OMP_"))}
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(self.root.parent / "cache"),
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(self.root.parent / "dvc-config"),
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "dvc-cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "t@t.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command, rc=0, cwd=None, timeout=300):
        """Run a command in the folder and return all that it says; an unexpected exit code fails the test."""
        done = subprocess.run(
            list(map(str, command)), cwd=cwd or self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
        )  # fmt: skip
        if rc is not None and done.returncode != rc:
            pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout

    def start(self, *command):
        """Start a command in the folder without waiting for it."""
        return subprocess.Popen(
            list(map(str, command)), cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stage(self, name, cell=None, options=(), **how):
        """Run one stage of one cell."""
        return self.run(*stage_command(name, cell), *options, **how)

    def snakemake(self, *arguments, **options):
        """Run Snakemake; a dry run beside it is never locked out."""
        return self.run("snakemake", "--cores", "2", *arguments, **options)

    def commit(self, message="test"):
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "-m", message)

    def grid(self):
        """Return the grid of the folder's ``params.yaml``."""
        return Grid(load_params(self.root / "params.yaml"), SCALE)

    def edit_params(self, change):
        """Change ``params.yaml`` through a function of the raw mapping."""
        file = self.root / "params.yaml"
        raw = yaml.safe_load(file.read_text())
        change(raw)
        file.write_text(yaml.safe_dump(raw, sort_keys=False))

    def copy(self, folder):
        """Return a private copy, times and Snakemake's records included."""
        shutil.copytree(self.root, folder, symlinks=True)
        return Project(folder)


def stage_command(name, cell=None):
    """Return the command line of one stage of one cell."""
    named = {} if cell is None else cell._asdict()
    options = [f"--{key}={value}" for key, value in named.items()]
    return ["python", "-m", f"stages.{name}", *options]


def tracked_files(root=ROOT):
    """Return what belongs to the checkout: tracked and new files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def copy_file(source, target):
    """Copy a file, its times included, into a folder that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def make_project(folder, **grid):
    """Copy the checkout without its results and commit it with the tiny grid."""
    for name in tracked_files():
        if not BELONGS_TO_RESULTS.match(name):
            copy_file(ROOT / name, folder / name)
    project = Project(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params(**grid), sort_keys=False))
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit()
    return project


def shared(tmp_path_factory, name, make):
    """Return a project that one of the test processes made for all of them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "project").mkdir(parents=True)
            make(folder / "project")
            (folder / "ready").touch()
    return Project(folder / "project")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A project where nothing has run; not to be changed."""
    return shared(tmp_path_factory, "fresh", make_project)


def run_grid(folder):
    """Make a project and run its whole grid."""
    project = make_project(folder)
    output = project.snakemake()
    (folder.parent / "output.txt").write_text(output)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project whose whole grid has run, and is committed; not to be changed."""
    return shared(tmp_path_factory, "finished", run_grid)
