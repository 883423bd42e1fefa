"""The stages that fetch, train and measure: their files, their guards and their repeatability."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT

from ifap import plan
from ifap.errors import ConfigError, ResultsError
from ifap.saving import store
from ifap.study import paths
from ifap.study.models import builder_from_id
from ifap.study.paths import Cell
from ifap.study.report.provenance import measured_here
from ifap.study.rounding import rounded
from stages import baseline, evaluate, fetch, finetune
from stages.job import open_job

CELL = {"task": "classification", "dataset": "digits", "model": "resnet_tiny", "seed": 0}
BASELINE = Cell(method="baseline", **CELL)
PRUNED = Cell(method="ifap", **CELL)
PARAMS = Path("params.yaml")


def write_params(**changes):
    """Write the smallest grid, with some options of the fast scale changed."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick = raw["scales"]["quick"]
    quick["seeds"] = [0]
    quick["grid"].pop("text_classification", None)
    quick["grid"]["classification"].update(models=["resnet_tiny"], methods=["ifap"], only={})
    for step in ("baseline", "finetune", "prune"):
        quick[step] = {name: block for name, block in quick[step].items() if name in {"default", "recovery"}}
    for step in ("baseline", "finetune"):
        quick[step]["default"].update(epochs=1, warmup_epochs=0, **changes.get(step, {}))
    quick["datasets"]["digits"].update(changes.get("digits", {}))
    quick["evaluate"].update(latency_warmup=1, latency_runs=3)
    raw.update(scale="quick", published="quick", scales={"quick": quick}, tables={})
    PARAMS.write_text(yaml.safe_dump(raw))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project folder where fetch, baseline and evaluate have run."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params()
        fetch.main("digits", params=PARAMS)
        baseline.main(**CELL, params=PARAMS)
        evaluate.main(**CELL, method="baseline", params=PARAMS)
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A private copy of the finished project, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def final(cell):
    return paths.checkpoint_dir("quick", cell, "final")


def load(folder):
    builder = plan.read_plan(folder).builder
    return store.load(folder, lambda: builder_from_id(builder.id, builder.args))


def pretend_pruned():
    """Put a baseline where the prune stage would put its network."""
    job = open_job(PARAMS, None, PRUNED, "prune")
    shutil.copytree(final(BASELINE), job.checkpoint("pruned"), dirs_exist_ok=True)
    with job.run():
        pass


def test_metrics_say_what_was_measured_and_how(project):
    metrics = json.loads(paths.metrics_file("quick", BASELINE).read_text())
    job = open_job(PARAMS, None, BASELINE, "evaluate")
    assert set(metrics) == {
        "schema_version", "cell", "config", "metrics", "validation", "split_sizes", "data_checksum", "synthetic",
        "macs", "macs_nonzero", "params", "params_nonzero",
    }  # fmt: skip
    assert metrics["cell"] == {"scale": "quick", "method": "baseline", **CELL}
    assert metrics["config"] == job.config
    assert {name: entry["unit"] for name, entry in metrics["metrics"].items()} == {
        "top1": "%", "top5": "%", "loss": "nats", "ece": "%",
    }  # fmt: skip
    assert all(entry["split"] == "test" for entry in metrics["metrics"].values())
    assert set(metrics["validation"]) == {"top1", "top5", "loss"}
    assert metrics["split_sizes"] == {"train": 1079, "validation": 359, "test": 359}
    assert metrics["data_checksum"] == job.manifest()["checksum"]
    network = load(final(BASELINE))
    assert metrics["params"] == sum(parameter.numel() for parameter in network.parameters())
    assert 0 < metrics["params_nonzero"] <= metrics["params"] < metrics["macs"]
    assert metrics == rounded(metrics)
    cost = json.loads(paths.cost_file("quick", BASELINE, "evaluate").read_text())
    assert cost["latency"]["p10_ms"] <= cost["latency"]["median_ms"] <= cost["latency"]["p90_ms"]
    assert {"commit", "dirty", "versions", "hardware", "peak_memory_mb", "wall_seconds"} <= set(cost)
    came_to_be = measured_here("quick", BASELINE)
    assert set(came_to_be.wall_seconds) == {"baseline", "evaluate"}
    assert came_to_be.resume_count == 0


def test_the_saved_network_is_the_one_of_the_last_epoch(project):
    (row,) = csv.DictReader(paths.history_file("quick", BASELINE).open())
    job = open_job(PARAMS, None, BASELINE, "baseline")
    measured = job.task.evaluate(load(final(BASELINE)), job.split("validation"), 64)
    assert float(row["validation_metric"]) == rounded(measured["top1"])
    validation = json.loads(paths.metrics_file("quick", BASELINE).read_text())["validation"]
    assert validation["top1"] == rounded(measured["top1"])


def test_a_repeat_gives_the_same_bytes(project):
    names = [final(BASELINE) / "weights.safetensors", paths.history_file("quick", BASELINE)]
    before = [name.read_bytes() for name in names]
    torch.rand(5)
    baseline.main(**CELL, params=PARAMS)
    assert [name.read_bytes() for name in names] == before
    assert [path.name for path in paths.state_dir("quick", BASELINE, "baseline").iterdir()] == ["lock"]


def test_curves_are_beside_the_logs_and_change_no_result(project, monkeypatch):
    before = paths.history_file("quick", BASELINE).read_bytes()
    folder = paths.tensorboard_dir("quick", BASELINE, "baseline")
    assert not folder.exists()
    monkeypatch.setenv("IFAP_TENSORBOARD", "1")
    baseline.main(**CELL, params=PARAMS)
    assert [file.name.split(".")[:2] for file in folder.iterdir()] == [["events", "out"]]
    assert paths.history_file("quick", BASELINE).read_bytes() == before


def test_of_several_processes_the_others_write_nothing(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="stage evaluate runs in one process: leave out `accelerate launch`"):
        evaluate.main(**CELL, method="baseline", params=PARAMS)
    job = open_job(PARAMS, None, BASELINE, "baseline")
    before = paths.step_file("quick", BASELINE, "baseline").stat().st_mtime_ns
    with job.run(), job.run():  # two locks would be one too many
        pass
    assert paths.step_file("quick", BASELINE, "baseline").stat().st_mtime_ns == before


def test_only_evaluate_opens_the_test_split(project):
    paths.split_file("quick", "digits", "test").unlink()
    pretend_pruned()
    baseline.main(**CELL, params=PARAMS)
    finetune.main(**CELL, method="ifap", params=PARAMS)
    with pytest.raises(ResultsError, match=r"test\.safetensors not found"):
        evaluate.main(**CELL, method="baseline", params=PARAMS)


def test_finetune_trains_the_pruned_network_and_evaluate_adds_up_its_costs(project):
    pretend_pruned()
    finetune.main(**CELL, method="ifap", params=PARAMS)
    evaluate.main(**CELL, method="ifap", params=PARAMS)
    before, after = (load(final(cell)).state_dict() for cell in (BASELINE, PRUNED))
    assert before.keys() == after.keys()
    assert not torch.equal(before["head.weight"], after["head.weight"])
    metrics = json.loads(paths.metrics_file("quick", PRUNED).read_text())
    assert set(measured_here("quick", PRUNED).wall_seconds) == {"prune", "finetune", "evaluate"}
    assert metrics["config"]["finetune"]["epochs"] == 1


def test_a_stage_refuses_results_of_other_parameters(project):
    write_params(baseline={"lr": 0.01})
    with pytest.raises(ResultsError, match=r"stage baseline of .* ran with other parameters"):
        evaluate.main(**CELL, method="baseline", params=PARAMS)
    write_params(digits={"split_seed": 1})
    with pytest.raises(ResultsError, match="prepared with other options"):
        baseline.main(**CELL, params=PARAMS)


def test_a_stage_refuses_a_split_that_differs_from_the_manifest(project):
    shutil.copy(paths.split_file("quick", "digits", "test"), paths.split_file("quick", "digits", "train"))
    with pytest.raises(ResultsError, match="differs from its manifest"):
        baseline.main(**CELL, params=PARAMS)


def test_a_stage_says_what_must_run_first(project):
    with pytest.raises(ResultsError, match=r"run stage prune of .*ifap/seed0 first"):
        finetune.main(**CELL, method="ifap", params=PARAMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet_tny"}, "model 'resnet_tny': did you mean 'resnet_tiny'"),
        ({"seed": 5}, "seed '5': Valid: 0"),
        ({"method": "ifap"}, "stage baseline makes the unpruned network"),
    ],
)
def test_a_cell_outside_the_grid_is_refused(project, changes, message):
    with pytest.raises(ConfigError, match=message):
        baseline.main(**{**CELL, **changes}, params=PARAMS)


def test_a_data_set_outside_the_scale_is_refused(project):
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        fetch.main("digit", params=PARAMS)
