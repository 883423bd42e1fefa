"""The same bytes again: in another folder, after SIGKILL, and with the test split out of reach."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time

import pandas as pd
import pytest
from workflow_project import SCALE, Project, finished, make_project, stage_command  # noqa: F401

from ifap.study import paths
from ifap.study.paths import Cell
from ifap.study.report.provenance import measured_here

PRUNED = Cell("classification", "digits", "resnet_tiny", "ifap", 0)
BASELINE = PRUNED.baseline
DEADLINE = 120


def freeze(project, cell, stage, ready):
    """Start a stage and stop it (SIGSTOP) as soon as `ready` is true of its state folder."""
    process = project.start(*stage_command(stage, cell))
    state = project.root / paths.state_dir(SCALE, cell, stage)
    limit = time.monotonic() + DEADLINE
    while not ready(state):
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            pytest.fail(f"{stage} was never caught in the middle: {process.communicate()[0][-2000:]}")
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)
    return process


def kill(process):
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def has_iterated(state):
    """Whether at least one pruning iteration, beside the start, is in the state."""
    try:
        return len(json.loads((state / "network" / "receipts.json").read_text())["receipts"]) >= 2
    except FileNotFoundError:
        return False


def has_trained_an_epoch(state):
    return (state / "state.safetensors").exists()


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A second folder with one method of the same grid, where jobs were killed and locked out.

    Returns the project and what was seen on the way.
    """
    folder = tmp_path_factory.mktemp("disturbed") / "elsewhere"
    folder.mkdir()
    project, seen = make_project(folder, methods=["ifap"]), {}
    project.stage("fetch", options=["--dataset=digits"])
    test = project.root / paths.split_file("quick", "digits", "test")
    hidden = shutil.move(test, folder.parent / "test.safetensors")

    kill(freeze(project, BASELINE, "baseline", has_trained_an_epoch))
    project.stage("baseline", BASELINE)

    first = freeze(project, PRUNED, "prune", has_iterated)
    seen["holder"] = first.pid
    seen["second"] = project.stage("prune", PRUNED, rc=2)
    kill(first)
    project.stage("prune", PRUNED)
    project.stage("finetune", PRUNED)
    seen["without test split"] = project.stage("evaluate", PRUNED, rc=2)
    shutil.move(hidden, test)
    seen["rest"] = project.snakemake()
    return project, seen


@pytest.fixture
def both(disturbed, finished):  # noqa: F811
    """The undisturbed and the disturbed folder."""
    return finished.root, disturbed[0].root


def resumes(project, cell, stage):
    return json.loads((project.root / paths.cost_file(SCALE, cell, stage)).read_text())["resume_count"]


def rows(file):
    """Return the rows of a CSV file that both grids have."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    return table[table.method != "random"].to_csv(index=False)


@pytest.mark.parametrize("cell", [BASELINE, PRUNED], ids=lambda cell: cell.method)
def test_networks_and_plans_have_the_same_bytes(both, cell):
    folders = [root / paths.scale_dir(SCALE) / "checkpoints" / str(cell) for root in both]
    one, other = ({str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.*")} for folder in folders)
    assert len(one) == (2 if cell.is_baseline else 4)
    assert one == other


def test_data_have_the_same_bytes(both):
    one, other = (
        {f.name: f.read_bytes() for f in (root / paths.dataset_dir("quick", "digits")).iterdir()} for root in both
    )
    assert len(one) == 4
    assert one == other


def test_cells_and_records_have_the_same_bytes(both):
    for cell in (BASELINE, PRUNED):
        folders = [root / paths.cell_dir(SCALE, cell) for root in both]
        one, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
        assert len(one) == (4 if cell.is_baseline else 9)
        assert one == other
    for file in (paths.records_csv, paths.trace_csv, paths.history_csv, paths.widths_csv):
        one, other = (rows(root / file(SCALE)) for root in both)
        assert one.count("\n") > 2
        assert one == other


@pytest.mark.parametrize("extension", ["md", "html", "tex"])
def test_tables_have_the_same_bytes(both, extension):
    one, other = ((root / paths.table_file(SCALE, "table-4", extension)).read_bytes() for root in both)
    assert one == other


def test_killed_jobs_went_on_where_they_were(disturbed):
    project, _ = disturbed
    assert resumes(project, BASELINE, "baseline") == 1
    assert resumes(project, PRUNED, "prune") == 1
    assert resumes(project, PRUNED, "finetune") == 0
    assert measured_here(SCALE, PRUNED, root=project.root).resume_count == 1


def test_a_second_process_is_told_who_holds_the_cell(disturbed):
    _, seen = disturbed
    assert re.search(rf"error: prune of {PRUNED} is already running \(process {seen['holder']}; lock ", seen["second"])
    assert "Traceback" not in seen["second"]


def test_pruning_and_finetuning_need_no_test_split(disturbed):
    """They ran while it was away; only `evaluate` missed it."""
    _, seen = disturbed
    assert re.search(r"error: .*test\.safetensors not found", seen["without test split"])


def test_snakemake_takes_up_what_stages_left(disturbed):
    _, seen = disturbed
    assert set(re.findall(r"^(?:local)?rule (\w+):", seen["rest"], flags=re.MULTILINE)) == {
        "evaluate", "collect", "table", "figure", "all",
    }  # fmt: skip
