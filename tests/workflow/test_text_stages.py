"""A cell of a language model: the same stages and files as any other, from sentences to its record and tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from places import ROOT

from ifap.errors import ConfigError
from ifap.study import paths
from ifap.study.config.params import TableParams
from ifap.study.config.reading import load_params
from ifap.study.data.base import read_manifest
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.records import collect, load_records, records_table
from ifap.study.report.tables.language import table_5
from ifap.study.report.tables.report import Report
from stages import baseline, evaluate, fetch, finetune, prune
from stages.job import open_job

CELL = {"task": "text_classification", "dataset": "agreement", "model": "bert_tiny", "seed": 0}
BASELINE, PRUNED = Cell(method="baseline", **CELL), Cell(method="ifap", **CELL)
PARAMS = Path("params.yaml")
TWIN = {"validation": 0.25, "split_seed": 0, "synthetic": {"classes": 2, "per_class": 40, "seed": 0}}


def write_params(change=lambda quick: None):
    """Write a grid of one small language model."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick = raw["scales"]["quick"]
    axes = {"datasets": ["agreement"], "models": ["bert_tiny"], "methods": ["ifap"]}
    quick.update(seeds=[0], grid={"text_classification": axes}, datasets={"agreement": TWIN})
    quick["models"] = {"text": {"max_length": 12, "tokenizer": "word", "vocab_size": 100}}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {name: block for name, block in quick[step].items() if name in {"default", "recovery"}}
    quick["baseline"]["text"] = {"epochs": 1, "warmup_epochs": 0, "batch_size": 16}
    quick["finetune"]["text"] = {"epochs": 1, "batch_size": 16}
    quick["prune"]["text"] = {"target": {"macs": 0.3}, "steps": 2, "calibration_samples": 16, "batch_size": 16}
    quick["evaluate"].update(latency_warmup=0, latency_runs=2)
    change(quick)
    raw.update(scale="quick", published="quick", scales={"quick": quick}, tables={})
    PARAMS.write_text(yaml.safe_dump(raw))
    return Grid(load_params(PARAMS), "quick")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project folder where the whole grid has run."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params()
        fetch.main("agreement", params=PARAMS)
        baseline.main(**CELL, params=PARAMS)
        evaluate.main(**CELL, method="baseline", params=PARAMS)
        prune.main(**CELL, method="ifap", params=PARAMS)
        finetune.main(**CELL, method="ifap", params=PARAMS)
        evaluate.main(**CELL, method="ifap", params=PARAMS)
    return folder


@pytest.fixture
def project(measured, monkeypatch):
    monkeypatch.chdir(measured)
    return Grid(load_params(PARAMS), "quick")


def record(cell):
    return json.loads(paths.metrics_file("quick", cell).read_text())


def test_the_record_says_what_is_watched(project):
    for cell in (BASELINE, PRUNED):
        found = record(cell)
        assert found["primary"] == "accuracy"
        assert set(found["metrics"]) == {"accuracy", "f1", "mcc", "loss", "ece"}
        assert set(found["validation"]) == {"accuracy", "f1", "mcc", "loss"}
        assert found["synthetic"]
        assert found["split_sizes"] == {"train": 60, "validation": 20, "test": 40}
    assert 1 - record(PRUNED)["macs"] / record(BASELINE)["macs"] >= 0.3


def test_receipts_watch_the_same_metric(project):
    with paths.receipts_file("quick", PRUNED).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    assert all(row["top1"] == "" and row["loss"] for row in rows[1:])
    assert rows[-1]["metric_after"]


def test_runs_and_table_come_from_the_records(project):
    collected = collect(project)
    paths.records_csv("quick").write_text(records_table(collected))
    runs = load_records("quick")
    assert list(runs["metric"]) == ["accuracy", "accuracy"]
    own = runs[runs["method"] == "ifap"].iloc[0]
    assert own["test_metric"] == pytest.approx(record(PRUNED)["metrics"]["accuracy"]["value"])
    base = record(BASELINE)["metrics"]["accuracy"]["value"]
    assert own["metric_delta"] == pytest.approx(own["test_metric"] - base)
    assert own["test_top1"] != own["test_top1"]  # there is none
    table = table_5("table-5", TableParams(title="Table V. Texts"), Report(project, runs, runs.iloc[:0], []))
    (row,) = table.rows
    assert [item.text for item in row.items[:4]] == ["bert_tiny", "agreement (synthetic)", "IFAP", "accuracy (%)"]
    assert row.items[5].text == f"{own['test_metric']:.2f}"


def test_the_network_that_was_saved_reads_the_same_tokens(project):
    job = open_job(PARAMS, None, PRUNED, "evaluate")
    manifest = read_manifest(paths.dataset_dir("quick", "agreement"))
    identifier, arguments = job.builder()
    assert identifier == "ifap:bert_tiny"
    assert arguments == {
        "head": "classification", "num_labels": 2, "max_length": 12,
        "vocab_size": manifest["readers"]["bert_tiny"]["vocab_size"],
    }  # fmt: skip
    network = job.load("final")[1]
    found = job.task.evaluate(network, job.split("test"), 8)
    assert found["accuracy"] == pytest.approx(record(PRUNED)["metrics"]["accuracy"]["value"])


def test_another_tokenizer_needs_another_fetch(measured, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(measured / "data")
    write_params(lambda quick: quick["models"]["text"].update(vocab_size=50))
    with pytest.raises(Exception, match="prepared with other options: run the fetch stage again"):
        open_job(PARAMS, None, BASELINE, "baseline").split("train")


def test_a_set_of_texts_is_for_its_own_task(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    axes = {"datasets": ["agreement"], "models": ["bert_tiny"], "methods": ["ifap"]}
    write_params(lambda quick: quick.update(grid={"cloze": axes}))
    with pytest.raises(ConfigError, match="'agreement' is not made for task 'cloze'"):
        _ = open_job(PARAMS, None, BASELINE._replace(task="cloze"), "baseline").task
