"""Jobs in containers: what apptainer is called with, and what comes out; and what a builder needs for the image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from places import ROOT
from workflow_project import SCALE, fresh  # noqa: F401

from ifap.study import paths
from ifap.study.paths import Cell

BASELINE = Cell("classification", "digits", "resnet_tiny", "baseline", 0)
WEIGHTS = paths.checkpoint_dir(SCALE, BASELINE, "final") / "weights.safetensors"
IMAGE = re.search(r'^container: "(.*)"$', (ROOT / "Snakefile").read_text(), flags=re.MULTILINE)[1]

# As apptainer does: no interpreter of the host, the working folder as home, variables only as `--env` names them.
STAND_IN = """#!{python}
import json, os, pathlib, subprocess, sys

arguments = sys.argv[1:]
if arguments == ["--version"]:
    sys.exit(print("apptainer version 1.4.0"))
with open({log!r}, "a") as log:
    log.write(json.dumps([os.getcwd(), *arguments]) + "\\n")
command, *rest = arguments
if command == "pull":
    sys.exit(pathlib.Path(rest[rest.index("--name") + 1]).touch())
environment = {{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}}
environment["PATH"] = {image!r} + ":/usr/bin:/bin"
while rest[0].startswith("--"):
    option = rest.pop(0)
    if option != "--nv":
        value = rest.pop(0)
    if option == "--env":
        environment.update([value.split("=", 1)])
    if option == "--home":
        environment["HOME"] = value
image, *inside = rest
assert os.path.isfile(image), image
sys.exit(subprocess.run(inside, env=environment).returncode)
"""


@pytest.fixture
def apptainer(tmp_path, monkeypatch):
    """Put a stand-in on PATH; return a function that lists its calls, each with the folder it was called in."""
    log = tmp_path / "calls"
    image, programs = tmp_path / "image", tmp_path / "programs"
    for folder in (image, programs):
        folder.mkdir()
    script = STAND_IN.format(python=sys.executable, log=str(log), image=str(image))
    for file, text in (
        (programs / "apptainer", script),
        (image / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        file.write_text(text)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_jobs_in_a_container_make_what_they_make_without(fresh, apptainer, tmp_path):  # noqa: F811
    plain, project = fresh.copy(tmp_path / "plain"), fresh.copy(tmp_path / "project")
    plain.snakemake(str(WEIGHTS))
    said = project.snakemake("--workflow-profile", "profiles/container", "--printshellcmds", str(WEIGHTS))
    assert f"{sys.executable} -m stages" not in said
    assert (project.root / WEIGHTS).read_bytes() == (plain.root / WEIGHTS).read_bytes()
    # The working folder is the home folder of a job: nothing may be left there.
    assert project.run("git", "status", "--porcelain") == ""

    pull, *jobs = apptainer()
    assert pull[1] == "pull"
    assert pull[-1] == IMAGE
    assert len(jobs) == 2
    for (folder, command, *options), rule in zip(jobs, ("fetch", "baseline"), strict=True):
        assert (folder, command) == (str(project.root), "exec")
        assert options[:2] == ["--home", str(project.root)]
        assert "--nv" in options
        assert options[options.index("--env") + 1] == "PYTHONPATH=src"
        assert re.search(rf"(?<![\w/.-])python -m stages\.{rule} ", options[-1])
    assert "IFAP_GPU=1 " in jobs[1][-1]


def test_a_job_in_a_container_that_fails_is_named_with_its_log(fresh, apptainer, tmp_path):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    (project.root / "stages" / "fetch.py").write_text("raise SystemExit('error: no such luck')\n")
    said = project.snakemake("--workflow-profile", "profiles/container", str(WEIGHTS), rc=1)
    assert "Error in rule fetch" in said
    assert "error: no such luck" in said
    assert "Traceback" not in said


def entries(only):
    """Return the names in a layer of the image: what its script takes from the lock file."""
    script = ["awk", "-v", f"only={only}", "-f", ROOT / "container" / "layer.awk", ROOT / "requirements.lock"]
    layer = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^([\w.-]+)==", layer, flags=re.MULTILINE)
    # Without its hash an entry would not be installed.
    assert layer.count("--hash=") >= len(names)
    return names


def test_the_layers_of_the_image_are_made_of_the_lock_file():
    only = dict(re.findall(r"only='(\S+)' .* > (\w+)\.lock", (ROOT / "Dockerfile").read_text()))
    layers = {name: entries(pattern) for pattern, name in only.items()}
    assert layers["uv"] == ["uv"]
    assert {"torch", "triton", "nvidia-cublas"} <= set(layers["cuda"])
    assert "torchvision" not in layers["cuda"]


def test_any_builder_can_build_the_image():
    """Debian's Docker, for one, builds without BuildKit."""
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^\s*(RUN|COPY|ADD) --(mount|link|chmod)|<<|^# syntax", text, flags=re.MULTILINE)
    # One that copies from a stage names a stage that is there.
    stages = set(re.findall(r"^FROM .* AS (\w+)$", text, flags=re.MULTILINE))
    assert set(re.findall(r"--from=(\w+)", text)) <= stages


def test_the_image_bears_the_version_everywhere():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    for file in ("Dockerfile", "Snakefile", "docs/running.md", "profiles/kubernetes/job.yaml"):
        named = set(re.findall(r"\bifap:(\d[\w.]*\w)", (ROOT / file).read_text()))
        assert named == {version}, file
