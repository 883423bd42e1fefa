"""The whole workflow on a tiny grid: what is planned, what comes out, what runs again, what DVC restores."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from workflow_project import SCALE, Project, finished, fresh  # noqa: F401

from ifap import plan
from ifap.costs import cost
from ifap.saving import store
from ifap.study import paths
from ifap.study import report as claims
from ifap.study.grid import FIGURE_FORMATS, TABLE_FORMATS
from ifap.study.models import builder_from_id
from ifap.study.paths import Cell
from ifap.study.report.provenance import measured_here
from ifap.study.report.record import TRACE_COLUMNS, Receipt
from ifap.study.report.records import RECORD_COLUMNS, read_receipts, read_record

TARGET = 0.5
BASELINE = Cell("classification", "digits", "resnet_tiny", "baseline", 0)
PRUNED = [BASELINE._replace(method=method) for method in ("ifap", "random")]
TABLE_NAMES = tuple(f"table-{number}" for number in (1, 2, 3, 4, 5))
TABLE = str(paths.table_file(SCALE, "table-2", "md"))
GATHERED = (
    paths.records_csv, paths.trace_csv, paths.history_csv, paths.widths_csv, paths.configs_json, paths.measured_csv,
)  # fmt: skip
COLLECTED = {"collect": 1, "table": 5, "figure": 1}


def planned(output):
    """Return the jobs of a dry run: (rule, {"input": [...], "output": [...], "wildcards": ...})."""
    jobs = []
    for block in re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]:
        name = block.partition(":")[0]
        found = dict(re.findall(r"^    (input|output|wildcards): (.*)$", block, flags=re.MULTILINE))
        files = {key: found[key].split(", ") for key in ("input", "output") if key in found}
        jobs.append((name, {"input": [], "output": [], **files, "wildcards": found.get("wildcards", "")}))
    return [job for job in jobs if job[0] not in {"all", "tables", "figures"}]


def counts(jobs):
    return {name: sum(other == name for other, _ in jobs) for name, _ in jobs}


def nothing_to_do(output):
    return "Nothing to be done" in output


def all_tables():
    return {str(paths.table_file(SCALE, table, e)) for table in TABLE_NAMES for e in TABLE_FORMATS}


def all_figures():
    return {str(paths.figure_file(SCALE, name, e)) for name in claims.FIGURES for e in FIGURE_FORMATS}


def snapshot(project, *folders):
    """Return content and time of every file in some folders."""
    files = [file for folder in folders for file in (project.root / folder).rglob("*") if file.is_file()]
    return {str(file.relative_to(project.root)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture
def project(finished, tmp_path):  # noqa: F811
    """A private copy of the finished project."""
    return finished.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def plan_of_everything(fresh):  # noqa: F811
    """The jobs that a fresh checkout wants."""
    return planned(fresh.snakemake("--dry-run"))


# --- what is planned ------------------------------------------------------------------------------


def test_the_project_uses_its_own_library(finished):  # noqa: F811
    where = finished.run("python", "-c", "import ifap, stages; print(ifap.__file__, stages.__file__)").split()
    assert all(name.startswith(str(finished.root)) for name in where)


def test_a_fresh_checkout_plans_exactly_the_grid(plan_of_everything, fresh):  # noqa: F811
    grid = fresh.grid()
    assert grid.cells() == [BASELINE, *PRUNED]
    assert counts(plan_of_everything) == {
        "fetch": 1, "baseline": 1, "prune": 2, "finetune": 2, "evaluate": 3, **COLLECTED,
    }  # fmt: skip
    made = {rule: set() for rule, _ in plan_of_everything}
    for rule, job in plan_of_everything:
        made[rule].update(job["output"])
    assert {str(paths.metrics_file(SCALE, cell)) for cell in grid.cells()} <= made["evaluate"]
    assert {str(paths.receipts_file(SCALE, cell)) for cell in grid.pruned()} <= made["prune"]
    assert made["table"] == all_tables()
    pages = (paths.report_page, paths.records_page, paths.comparison_csv)
    assert made["figure"] == all_figures() | {str(path(SCALE)) for path in pages}
    assert made["collect"] == {str(path(SCALE)) for path in GATHERED}


def test_only_evaluate_is_given_the_test_split(plan_of_everything):
    readers = {rule for rule, job in plan_of_everything if any("test.safetensors" in name for name in job["input"])}
    assert readers == {"evaluate"}


def test_jobs_wait_for_all_that_they_read(plan_of_everything):
    """The weights a job starts from come from the cell that it should: its own, or its baseline."""
    for rule, job in plan_of_everything:
        weights = [name for name in job["input"] if name.endswith("weights.safetensors")]
        wanted = {"prune": "/baseline/seed0/final/", "finetune": "/pruned/", "evaluate": "/final/"}.get(rule)
        assert [wanted in name for name in weights] == ([True] if wanted else [])
        if rule in {"finetune", "evaluate"}:
            (method,) = re.findall(r"method=(\w+)", job["wildcards"])
            assert f"/{method}/seed0/" in weights[0]


def test_one_table_needs_no_figure_and_the_other_scale_no_change_of_files(fresh):  # noqa: F811
    jobs = planned(fresh.snakemake("--dry-run", "--config", f"scale={SCALE}", "--", TABLE))
    assert counts(jobs)["table"] == 1
    assert "figure" not in counts(jobs)
    assert fresh.run("git", "status", "--porcelain") == ""


def test_a_run_can_be_limited_to_some_cells(fresh):  # noqa: F811
    chosen = "classification/*/resnet_tiny/random"
    jobs = planned(fresh.snakemake("--dry-run", "--config", f"cells={chosen}", "--", TABLE))
    assert counts(jobs) == {
        "fetch": 1, "baseline": 1, "prune": 1, "finetune": 1, "evaluate": 2, "collect": 1, "table": 1,
    }  # fmt: skip
    assert {cell.method for cell in PRUNED if f"method={cell.method}," in str(jobs)} == {"random"}


# --- mistakes are found before any job starts -----------------------------------------------------


def misspell_key(raw):
    default = raw["scales"][SCALE]["prune"]["default"]
    default["stps"] = default.pop("steps")


def misspell_model(raw):
    raw["scales"][SCALE]["grid"]["classification"]["models"] = ["resnet_tny"]


def misspell_method(raw):
    raw["scales"][SCALE]["grid"]["classification"]["methods"] = ["ifpa"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (misspell_key, [], rf"params\.yaml: scales\.{SCALE}\.prune\.\w+: stps: .*did you mean 'steps'\?"),
        (misspell_model, [], r"models: unknown model 'resnet_tny': did you mean 'resnet_tiny'\?"),
        (misspell_method, [], r"methods: unknown method 'ifpa': did you mean 'ifap'\?"),
        (None, ["--config", "scale=quik"], r"unknown scale 'quik': did you mean 'quick'\?"),
        (
            None,
            ["--configfile", "overlay.yaml"],
            r"only --config scale=\.\.\. cells=\.\.\. may differ from params\.yaml",
        ),
        (None, ["--config", "cells=classification/*/resnet_tny"], r"no 'resnet_tny' in .*did you mean 'resnet_tiny'\?"),
    ],
)
def test_a_mistake_is_one_line_and_no_job_starts(fresh, tmp_path, change, arguments, message):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    (project.root / "overlay.yaml").write_text(f"scales: {{{SCALE}: {{prune: {{default: {{steps: 3}}}}}}}}\n")
    if change:
        project.edit_params(change)
    output = project.snakemake(*arguments, rc=1)
    (line,) = (line for line in output.splitlines() if re.search(message, line))
    assert len(line) < 500
    assert "Traceback" not in output
    assert not (project.root / "logs").exists()
    assert not (project.root / "data" / "digits").exists()


# --- what comes out -------------------------------------------------------------------------------


def test_every_planned_file_is_there(plan_of_everything, finished):  # noqa: F811
    wanted = [name for _, job in plan_of_everything for name in job["output"]]
    assert [name for name in wanted if not (finished.root / name).stat().st_size] == []
    page = (finished.root / paths.report_page(SCALE)).read_text()
    assert [figure for figure in claims.FIGURES if f"figures/{figure}.svg" not in page] == []


def test_the_grid_the_records_and_the_tables_have_the_same_cells(finished):  # noqa: F811
    runs = pd.read_csv(finished.root / paths.records_csv(SCALE))
    assert tuple(runs.columns) == RECORD_COLUMNS
    assert [Cell(*row) for row in runs[list(Cell._fields)].itertuples(index=False)] == finished.grid().cells()
    trace = pd.read_csv(finished.root / paths.trace_csv(SCALE))
    assert tuple(trace.columns) == TRACE_COLUMNS
    assert list(dict.fromkeys(trace.method)) == [cell.method for cell in finished.grid().pruned()]
    links = re.findall(r"^\[\d+\]: (\S+)$", (finished.root / TABLE).read_text(), flags=re.MULTILINE)
    others = ("/reports/", "../paper/", f"{paths.full_size_csv()}#")
    records = {link for link in links if not any(other in link for other in others)}
    lines = range(2, len(finished.grid().cells()) + 2)
    assert records == {f"../../{paths.records_csv(SCALE)}#L{line}" for line in lines}


@pytest.mark.parametrize("cell", [BASELINE, *PRUNED], ids=lambda cell: cell.method)
def test_metrics_follow_the_schema_and_say_which_parameters_they_had(finished, cell):  # noqa: F811
    file = paths.metrics_file(SCALE, cell)
    record = read_record(finished.root / file, file, SCALE, cell)
    assert record.config == finished.grid().config(cell, "evaluate")
    came_to_be = measured_here(SCALE, cell, root=finished.root)
    assert came_to_be.commit == finished.run("git", "rev-list", "--max-parents=0", "HEAD").strip()
    assert came_to_be.dirty is False
    assert came_to_be.resume_count == 0
    wanted = {"baseline", "evaluate"} if cell.is_baseline else {"prune", "finetune", "evaluate"}
    assert set(came_to_be.wall_seconds) == wanted


@pytest.mark.parametrize("cell", PRUNED, ids=lambda cell: cell.method)
def test_receipts_follow_the_loop_to_the_target(finished, cell):  # noqa: F811
    file = paths.receipts_file(SCALE, cell)
    receipts = read_receipts(finished.root / file, file)
    header = (finished.root / file).read_text().splitlines()[0]
    assert header == ",".join(Receipt.model_fields)
    assert [receipt.iteration for receipt in receipts] == [0, 1, 2]
    assert receipts[0].macs > receipts[1].macs > receipts[2].macs
    assert all(receipt.top1 is not None for receipt in receipts)
    metrics = json.loads((finished.root / paths.metrics_file(SCALE, cell)).read_text())
    assert receipts[-1].macs == metrics["macs"]
    assert receipts[-1].params == metrics["params"]
    assert 0 <= 1 - receipts[-1].macs / receipts[0].macs - TARGET <= 0.01


@pytest.mark.parametrize("name", ["pruned", "final"])
@pytest.mark.parametrize("cell", PRUNED, ids=lambda cell: cell.method)
def test_saved_networks_load_from_their_plan_alone(finished, cell, name):  # noqa: F811
    folder = finished.root / paths.checkpoint_dir(SCALE, cell, name)
    assert sorted(file.name for file in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    record = plan.read_plan(folder)
    network = store.load(folder, lambda: builder_from_id(record.builder.id, record.builder.args))
    metrics = json.loads((finished.root / paths.metrics_file(SCALE, cell)).read_text())
    size = record.builder.args["image_size"]
    counted = cost(network, next(network.parameters()).new_zeros(1, 1, size, size))
    assert (counted.macs, counted.params) == (metrics["macs"], metrics["params"])
    assert record.costs.macs_after == metrics["macs"]
    kept = (finished.root / paths.cell_dir(SCALE, cell) / "plan.json").read_text()
    if name == "pruned":
        assert kept == (folder / "plan.json").read_text()
    else:
        assert json.loads(kept)["kept"] == json.loads((folder / "plan.json").read_text())["kept"]


def test_gathered_records_go_to_git_and_cells_and_networks_do_not(finished):  # noqa: F811
    untracked = finished.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    shown = {line.removeprefix("?? ") for line in untracked}
    assert {name for name in shown if name.startswith("results/")} == {str(path(SCALE)) for path in GATHERED}
    assert TABLE in shown
    assert not [name for name in shown if name.startswith(("state/", "logs/", "data/"))]


def test_nothing_is_left_in_the_resume_state(finished):  # noqa: F811
    left = [path for path in (finished.root / "state").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"lock"}


# --- what runs again ------------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(project):
    before = snapshot(project, "results", "reports", "data")
    assert nothing_to_do(project.snakemake())
    assert snapshot(project, "results", "reports", "data") == before


def elsewhere(folder):
    """Return a command that runs Snakemake where `python` is none, and the interpreter's path, which has a space."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text("#!/bin/sh\necho 'the python of PATH' >&2\nexit 127\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / "my venv").symlink_to(Path(sys.executable).parent.parent)
    python = folder / "my venv" / "bin" / Path(sys.executable).name
    path = os.pathsep.join((str(folder / "bin"), "/usr/bin", "/bin"))
    return ["env", f"PATH={path}", python, "-m", "snakemake", "--cores", "2"], python


def test_jobs_run_by_the_interpreter_of_snakemake(fresh, tmp_path):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    command, python = elsewhere(tmp_path)
    manifest = str(paths.manifest_file(SCALE, "digits"))
    said = project.run(*command, "--printshellcmds", manifest)
    assert f"'{python}' -m stages.fetch" in said
    assert (project.root / manifest).is_file()


def test_another_interpreter_is_no_reason_to_run_again(project, tmp_path):
    command, _ = elsewhere(tmp_path)
    assert nothing_to_do(project.run(*command))


def test_another_recipe_for_finetuning_leaves_baseline_and_pruning_alone(project):
    def change(raw):
        raw["scales"][SCALE]["finetune"]["default"]["epochs"] = 3

    project.edit_params(change)
    jobs = planned(project.snakemake("--dry-run"))
    assert counts(jobs) == {"finetune": 2, "evaluate": 2, **COLLECTED}
    assert not [job for rule, job in jobs if rule == "evaluate" and "method=baseline" in job["wildcards"]]
    stale = r"error: stale \S+/ifap/seed0/metrics\.json: finetune\.epochs=1 \(params\.yaml: 3\); stale \S+/random/"
    assert re.search(stale, project.run("python", "-m", "stages.collect", "--check", rc=2))
    said = project.run("ifap", "status")
    assert re.search(r"baseline/seed0: ran \(commit \w+", said)
    assert re.search(r"ifap/seed0: stale \(finetune\.epochs=1 \(params\.yaml: 3\)\)", said)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda raw: raw["versions"].update(prune=2), {"prune": 2, "finetune": 2, "evaluate": 2, **COLLECTED}),
        (
            lambda raw: raw["scales"][SCALE]["grid"]["classification"]["methods"].append("magnitude"),
            {"prune": 1, "finetune": 1, "evaluate": 1, **COLLECTED},
        ),
        (lambda raw: raw["tables"]["table-2"].update(title="Another"), {"collect": 1, "table": 5, "figure": 1}),
    ],
    ids=["version", "method", "title"],
)
def test_only_what_depends_on_a_change_runs_again(project, change, wanted):
    project.edit_params(change)
    assert counts(planned(project.snakemake("--dry-run"))) == wanted


# --- two at once, and a wrong clock ---------------------------------------------------------------


def test_a_second_snakemake_in_the_same_folder_is_refused_and_the_first_is_not_disturbed(fresh, tmp_path):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    target = f"data/{SCALE}/digits/manifest.json"
    first = project.start("snakemake", "--cores", "1", target)
    deadline = time.monotonic() + 120
    while not list((project.root / ".snakemake" / "locks").glob("*")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "the first took no lock"
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # it holds its lock for as long as the second needs
    try:
        refused = project.snakemake(target, rc=1)
    finally:
        first.send_signal(signal.SIGCONT)
    output, _ = first.communicate(timeout=300)
    assert "Directory cannot be locked" in refused
    assert first.returncode == 0, output
    assert nothing_to_do(project.snakemake(target))


def set_times(project, when):
    """Give every file of a project but git's the same time."""
    for file in project.root.rglob("*"):
        if ".git" not in file.parts:
            os.utime(file, (when, when), follow_symlinks=False)


def test_files_from_the_future_are_no_reason_to_train(project):
    set_times(project, time.time() + 86_400)
    assert nothing_to_do(project.snakemake("--dry-run"))
    before = snapshot(project, f"results/{SCALE}/checkpoints", f"results/{SCALE}/cells")
    project.edit_params(lambda raw: raw["tables"]["table-2"].update(title="Another"))
    refused = project.snakemake(rc=1)
    assert "has older modification time" in refused
    assert "clock skew" in refused
    assert snapshot(project, f"results/{SCALE}/checkpoints", f"results/{SCALE}/cells") == before
    set_times(project, time.time() - 10)
    assert counts(planned(project.snakemake("--dry-run"))) == COLLECTED


# --- what DVC records and restores ----------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(finished, tmp_path_factory):  # noqa: F811
    """The finished project after `make record`, a commit and a push to a folder; the folder is its neighbour."""
    base = tmp_path_factory.mktemp("recorded")
    project = finished.copy(base / "project")
    (project.root / ".venv").mkdir()
    (project.root / ".venv" / ".ready").touch()
    project.run("make", "record")
    project.run("dvc", "remote", "add", "--default", "store", base / "store")
    project.commit()
    project.run("make", "push")
    return project


@pytest.fixture
def clone(recorded, tmp_path):
    """A fresh clone of the recorded project, where nothing has been pulled."""
    recorded.run("git", "clone", "--quiet", recorded.root, tmp_path / "clone")
    return Project(tmp_path / "clone")


def test_recording_leaves_nothing_to_do(recorded):
    assert recorded.run("git", "status", "--porcelain") == ""
    assert "up to date" in recorded.run("dvc", "status")
    assert nothing_to_do(recorded.snakemake("--dry-run"))
    listed = recorded.run("git", "ls-files").splitlines()
    assert {str(paths.pointer_file(SCALE)), str(paths.provenance_csv(SCALE)), "dvc.lock"} <= set(listed)
    assert not [name for name in listed if name.endswith(".safetensors") or "/cells/" in name]
    kept = yaml.safe_load((recorded.root / paths.pointer_file(SCALE)).read_text())["outs"]
    assert [out["path"] for out in kept] == [f"data/{SCALE}", f"results/{SCALE}/cells", f"results/{SCALE}/checkpoints"]
    shown = (recorded.root / paths.records_page(SCALE)).read_text()
    assert shown.count("How it came to be</summary>") == len(recorded.grid().cells())


def test_a_fresh_clone_restores_a_table_without_any_checkpoint(clone):
    before = (clone.root / TABLE).read_bytes()
    (clone.root / TABLE).unlink()
    clone.run("dvc", "repro", "tables@table-2")
    assert (clone.root / TABLE).read_bytes() == before
    assert clone.run("git", "status", "--porcelain") == ""
    assert not list(clone.root.rglob("*.safetensors"))


def test_restoring_a_table_beside_checkpoints_trains_nothing(recorded, tmp_path):
    project = recorded.copy(tmp_path / "project")
    before = snapshot(project, f"results/{SCALE}/checkpoints", f"results/{SCALE}/cells")
    table = project.root / TABLE
    content = table.read_bytes()
    table.unlink()
    output = project.run("dvc", "repro", "tables@table-2")
    assert "Running stage 'tables@table-2'" in output
    assert table.read_bytes() == content
    assert snapshot(project, f"results/{SCALE}/checkpoints", f"results/{SCALE}/cells") == before


def test_dvc_runs_by_the_environment_beside_it_without_activation(clone):
    (clone.root / ".venv").symlink_to(sys.prefix)
    before = (clone.root / TABLE).read_bytes()
    (clone.root / TABLE).unlink()
    clone.run("env", "PATH=/usr/bin:/bin", ".venv/bin/dvc", "repro", "tables@table-2")
    assert (clone.root / TABLE).read_bytes() == before


def test_a_run_in_a_fresh_clone_is_an_exact_reproduction(clone):
    (clone.root / ".venv").mkdir()
    (clone.root / ".venv" / ".ready").touch()
    said = clone.run("make", "reproduce", timeout=900)
    assert clone.run("git", "status", "--porcelain") == ""
    assert "up to date" in clone.run("dvc", "status")
    assert re.search(r"^exact reproduction: all \d+ recorded files of scale quick are the same", said, re.MULTILINE)
    before = snapshot(clone, "results", "reports", "data")
    assert "exact reproduction" in clone.run("make", "reproduce", timeout=900)
    assert snapshot(clone, "results", "reports", "data") == before
    # The work of the cells is what was recorded as well, though no record of it is in git but its checksum.
    clone.run("make", "pointer")
    assert "modified" not in clone.run("dvc", "status")
    file = clone.root / paths.records_csv(SCALE)
    rows = [line.split(",") for line in file.read_text().splitlines()]
    rows[2][rows[0].index("test_metric")] = "50"
    file.write_text("\n".join(map(",".join, rows)) + "\n")
    said = clone.run("python", "-m", "stages.summary")
    assert re.search(r"^no exact reproduction: 1 of \d+ recorded files differ, and 1 cells$", said, re.MULTILINE)
    assert re.search(
        r"^classification/\S+/ifap/seed0: test_metric 50 instead of \d+.* \(\d+ % off\)$", said, re.MULTILINE
    )


def test_dvc_refuses_stale_results(clone):
    before = snapshot(clone, "reports")
    clone.edit_params(lambda raw: raw["scales"][SCALE]["evaluate"].update(latency_runs=9))
    output = clone.run("dvc", "repro", "tables@table-2", rc=None)
    assert "evaluate.latency_runs=3 (params.yaml: 9)" in output
    assert "ERROR" in output
    assert snapshot(clone, "reports") == before


def test_pull_and_sync_make_a_clone_as_good_as_the_original(clone, recorded):
    assert counts(planned(clone.snakemake("--dry-run")))["fetch"] == 1
    said = clone.run("python", "-m", "stages.sync", rc=2)
    assert re.search(rf"error: `dvc checkout` failed: .*run `make pull SCALE={SCALE}`", said)
    shutil.copytree(recorded.root / ".venv", clone.root / ".venv")
    (clone.root / ".venv" / ".ready").touch()
    clone.run("make", "pull")
    assert nothing_to_do(clone.snakemake("--dry-run"))
    assert "up to date" in clone.run("dvc", "status")
    assert clone.run("git", "status", "--porcelain") == ""
    assert "ran (commit" in clone.run("ifap", "status")
    clone.edit_params(lambda raw: raw["versions"].update(evaluate=2))
    assert counts(planned(clone.snakemake("--dry-run"))) == {"evaluate": 3, **COLLECTED}
    metadata = snapshot(clone, ".snakemake/metadata")
    assert metadata
    assert "evaluate.version=1 (params.yaml: 2)" in clone.run("python", "-m", "stages.sync", rc=2)
    assert snapshot(clone, ".snakemake/metadata") == metadata
