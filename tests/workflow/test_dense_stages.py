"""Cells of a detector, a segmenter and a generator: the same stages and files as any other, from images to records."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT

from ifap.study import paths
from ifap.study.config.params import TableParams
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.records import collect, load_records, records_table
from stages import baseline, evaluate, fetch, finetune, prune
from stages.job import open_job

PARAMS = Path("params.yaml")
TWIN = {"validation": 0.25, "split_seed": 0, "synthetic": {"classes": 2, "per_class": 4, "seed": 0}}
# The metric that each is watched by, and what is measured beside it.
WATCHED = {
    "detection": ("coco2017", "yolov4_shufflenet_tiny", "map", {"map50", "map75", "loss"}),
    "segmentation": ("coco2017", "unet_tiny", "miou", {"pixel_accuracy", "loss"}),
    "generation": ("coco2017", "vqgan_tiny", "fid_random", {"loss"}),
}
CELLS = [Cell(task, dataset, model, "ifap", 0) for task, (dataset, model, _, _) in WATCHED.items()]


def write_params():
    """Write a grid of three small networks on one set of scenes."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick = raw["scales"]["quick"]
    grid = {task: {"datasets": [dataset], "models": [model], "methods": ["ifap"]}
            for task, (dataset, model, _, _) in WATCHED.items()}  # fmt: skip
    quick.update(seeds=[0], grid=grid, datasets={"coco2017": TWIN})
    quick["models"] = {"default": {"image_size": 64}, "generation": {"image_size": 16}}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {name: block for name, block in quick[step].items() if name in {"default", "recovery"}}
    for step in ("baseline", "finetune"):
        quick[step]["default"] |= {"epochs": 1, "warmup_epochs": 0, "batch_size": 4}
    own = {"target": {"macs": 0.3}, "steps": 2, "min_units": 1, "calibration_samples": 4, "batch_size": 4}
    quick["prune"]["default"] |= own
    quick["prune"]["recovery"] |= {"batch_size": 4, "generation": {"feature_weight": 0.0}}
    quick["evaluate"].update(batch_size=4, latency_warmup=0, latency_runs=2)
    raw.update(scale="quick", published="quick", scales={"quick": quick}, tables={})
    PARAMS.write_text(yaml.safe_dump(raw))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project folder where the whole grid has run."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params()
        fetch.main("coco2017", params=PARAMS)
        for cell in CELLS:
            own = {"task": cell.task, "dataset": cell.dataset, "model": cell.model, "seed": 0, "params": PARAMS}
            baseline.main(**own)
            evaluate.main(**own, method="baseline")
            prune.main(**own, method="ifap")
            finetune.main(**own, method="ifap")
            evaluate.main(**own, method="ifap")
    return folder


@pytest.fixture
def project(measured, monkeypatch):
    monkeypatch.chdir(measured)
    return Grid(load_params(PARAMS), "quick")


def record(cell):
    return json.loads(paths.metrics_file("quick", cell).read_text())


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.task)
def test_the_record_says_what_is_watched_and_what_is_left(project, cell):
    _, _, primary, others = WATCHED[cell.task]
    for each in (cell.baseline, cell):
        found = record(each)
        assert found["primary"] == primary
        assert set(found["metrics"]) == set(found["validation"]) == {primary, *others}
        assert found["synthetic"]
        assert found["split_sizes"] == {"train": 6, "validation": 2, "test": 4}
    assert 1 - record(cell)["macs"] / record(cell.baseline)["macs"] >= 0.3


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.task)
def test_receipts_watch_the_same_metric_with_its_own_sign(project, cell):
    with paths.receipts_file("quick", cell).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    assert all(row["top1"] == "" and float(row["loss"]) == float(row["loss"]) for row in rows)
    assert all(float(row["metric_after"]) >= 0 for row in rows)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.task)
def test_the_network_that_was_saved_measures_the_same(project, cell):
    job = open_job(PARAMS, None, cell, "evaluate")
    classes = {"detection": 2, "segmentation": 3, "generation": 2}[cell.task]
    size = 16 if cell.task == "generation" else 64
    assert job.builder()[1] == {"num_classes": classes, "in_channels": 3, "image_size": size}
    assert job.example_inputs().shape == torch.Size([1, 3, size, size])
    found = job.task.evaluate(job.load("final")[1], job.split("test"), 4)
    primary = WATCHED[cell.task][2]
    assert found[primary] == pytest.approx(record(cell)["metrics"][primary]["value"], rel=1e-6)


def test_runs_and_table_come_from_the_records(project, monkeypatch):
    from ifap.study.report.tables import vision
    from ifap.study.report.tables.report import Report

    paths.records_csv("quick").write_text(records_table(collect(project)))
    runs = load_records("quick")
    assert list(runs["metric"]) == [WATCHED[task][2] for task in runs["task"]]
    monkeypatch.setattr(vision, "published_networks", lambda table: frozenset())
    table = vision.table_3("table-3", TableParams(title="Table III. Scenes"), Report(project, runs, runs.iloc[:0], []))
    headings = [row.items[0].text for row in table.rows if len(row.items) == 1]
    assert [text.partition(":")[0] for text in headings] == [
        "Object detection", "Image segmentation", "Image generation",
    ]  # fmt: skip
    shown = [row.items for row in table.rows if len(row.items) > 1]
    assert [items[1].text for items in shown] == ["yolov4_shufflenet_tiny", "unet_tiny", "vqgan_tiny"]
    own = runs[runs["method"] == "ifap"].set_index("task")
    assert [items[10].text for items in shown] == [f"{own.test_metric[task]:.2f}" for task in WATCHED]
