"""Cells of methods that train with masks: the same stages and files as any other cell."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from workflow_project import tiny_params

from ifap import plan
from ifap.errors import ConfigError
from ifap.saving import store
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.config.recipes import LIMITS
from ifap.study.config.refining import mask_options
from ifap.study.config.rivals import RiglOptions
from ifap.study.grid import Grid
from ifap.study.machine.determinism import configure
from ifap.study.paths import Cell
from ifap.study.report.records import collect, records_table
from stages import baseline, evaluate, fetch, finetune, prune
from stages.job import open_job

CELL = {"task": "classification", "dataset": "digits", "model": "resnet_tiny", "seed": 0}
PARAMS = Path("params.yaml")
METHODS = ("ifap", "rigl", "pdp", "brief", "small_dense", "pdp_channel")


def cell(method):
    return Cell(method=method, **CELL)


def write_params(change=lambda quick: None):
    raw = tiny_params(methods=METHODS)
    quick = raw["scales"]["quick"]
    quick["variants"] = {"brief": {"method": "rigl", "options": {"update_every": 7}}}
    quick["methods"] = {"rigl": {"drop_fraction": 0.2}}
    change(quick)
    raw["tables"] = {}
    PARAMS.write_text(yaml.safe_dump(raw))
    return Grid(load_params(PARAMS), "quick")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project folder where the baseline was trained and measured."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params()
        fetch.main("digits", params=PARAMS)
        baseline.main(**CELL, params=PARAMS)
        evaluate.main(**CELL, method="baseline", params=PARAMS)
    return folder


@pytest.fixture
def project(measured, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(measured, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("method", ["rigl", "pdp"])
def test_a_cell_of_masks_runs_through_all_stages(project, method):
    for stage in (prune, finetune, evaluate):
        stage.main(**CELL, method=method, params=PARAMS)
    base, metrics = (json.loads(paths.metrics_file("quick", cell(m)).read_text()) for m in ("baseline", method))
    # Dense kernels do all products; what is left in theory is a column of its own.
    assert (metrics["macs"], metrics["params"]) == (base["macs"], base["params"])
    assert 0.49 * base["macs"] < metrics["macs_nonzero"] <= 0.5 * base["macs"] + 1
    folder = paths.checkpoint_dir("quick", cell(method), "final")
    masks, record = store.read_masks(folder), plan.read_plan(folder)
    model = open_job(PARAMS, None, cell(method), "evaluate").load("final")[1]
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert {name: layer.kept for name, layer in record.sparsity.items()} == {n: int(m.sum()) for n, m in masks.items()}
    # The budget of recovery and fine-tuning was used in one run.
    receipts = list(csv.DictReader(paths.receipts_file("quick", cell(method)).open()))
    assert len(receipts) == 1 + 2 + 2 * 1 + 1
    assert float(receipts[-1]["top1"]) == float(receipts[-1]["metric_after"]) == metrics["validation"]["top1"]
    assert list(csv.DictReader(paths.history_file("quick", cell(method)).open())) == []
    full = json.loads(paths.receipts_json("quick", cell(method)).read_text())
    assert full[-1]["history"][-1]["validation_metric"] == metrics["validation"]["top1"]
    assert full[-1]["training_macs"] <= full[-1]["dense_training_macs"]
    assert full[0]["widths"]["head"] == 10
    assert set(json.loads(paths.flow_json("quick", cell(method)).read_text())) >= {"head"}


@pytest.mark.parametrize("method", ["small_dense", "pdp_channel"])
def test_a_cell_that_cuts_channels_in_its_own_training_runs_through_all_stages(project, method):
    for stage in (prune, finetune, evaluate):
        stage.main(**CELL, method=method, params=PARAMS)
    base, metrics = (json.loads(paths.metrics_file("quick", cell(m)).read_text()) for m in ("baseline", method))
    assert 0.45 * base["macs"] < metrics["macs"] == metrics["macs_nonzero"] <= 0.5 * base["macs"]
    assert metrics["params"] < base["params"]
    assert not plan.read_plan(paths.checkpoint_dir("quick", cell(method), "final")).sparsity
    receipts = list(csv.DictReader(paths.receipts_file("quick", cell(method)).open()))
    assert [int(row["macs"]) for row in receipts] == [base["macs"], metrics["macs"]]
    full = json.loads(paths.receipts_json("quick", cell(method)).read_text())
    assert float(receipts[-1]["metric_after"]) == full[-1]["history"][-1]["validation_metric"]
    # From the untrained network the whole budget in one run; from the trained one that of the recovery.
    epochs, trained = (2 + 2 * 1 + 1, metrics["macs"]) if method == "small_dense" else (2 * 1, base["macs"])
    samples = metrics["split_sizes"]["train"]
    assert metrics["training_macs"] == metrics["dense_training_macs"] == 3 * epochs * samples * trained
    fine_tuned = list(csv.DictReader(paths.history_file("quick", cell(method)).open()))
    assert len(fine_tuned) == (0 if method == "small_dense" else 1)
    config = write_params().config(cell(method), "prune")["prune"]
    assert set(LIMITS) < set(config)
    assert "recovery" not in config


def test_the_same_small_dense_network_comes_again(project):
    file = paths.checkpoint_dir("quick", cell("small_dense"), "pruned") / "weights.safetensors"
    prune.main(**CELL, method="small_dense", params=PARAMS)
    before = file.read_bytes()
    torch.rand(5)
    prune.main(**CELL, method="small_dense", params=PARAMS)
    assert file.read_bytes() == before


def test_the_records_are_collected_without_pretending_a_smaller_network(project):
    for stage in (prune, finetune, evaluate):
        stage.main(**CELL, method="rigl", params=PARAMS)
    table = records_table(collect(write_params(), allow_missing=True)).splitlines()
    row = next(row for row in csv.DictReader(table) if row["method"] == "rigl")
    assert float(row["macs_reduction"]) == 0
    assert int(row["macs_nonzero"]) < 0.51 * int(row["macs"])
    # Updates of the masks cost a dense gradient, all other steps three sparse forwards.
    spent, theory = int(row["training_macs"]), int(row["training_macs_theoretical"])
    assert spent == 3 * 5 * int(row["train_size"]) * int(row["macs"])
    assert 0.5 * spent < theory < 0.6 * spent


def test_a_repeat_gives_the_same_bytes(project):
    file = paths.checkpoint_dir("quick", cell("rigl"), "pruned") / "weights.safetensors"
    prune.main(**CELL, method="rigl", params=PARAMS)
    before = file.read_bytes()
    torch.rand(5)
    prune.main(**CELL, method="rigl", params=PARAMS)
    assert file.read_bytes() == before


def test_it_starts_from_the_network_that_the_baseline_started_from(project, monkeypatch):
    started = []

    class Done(Exception):  # noqa: N818 (ends the stage)
        pass

    def method(context):
        started.extend([context.build(), context.build(), context.recipe])
        raise Done

    monkeypatch.setattr("ifap.study.rivals.SPARSE.get", lambda name: method)
    with pytest.raises(Done):
        prune.main(**CELL, method="rigl", params=PARAMS)
    configure(0)
    first = open_job(PARAMS, None, cell("baseline"), "baseline").build()
    for network in started[:2]:
        assert all(map(torch.equal, network.state_dict().values(), first.state_dict().values()))
    assert started[2] == write_params().training(cell("baseline")).model_copy(update={"epochs": 5})


def test_fine_tuning_keeps_the_masks(project, monkeypatch):
    monkeypatch.setattr(RiglOptions, "start", "baseline")
    grid = write_params()
    assert (grid.masked_training(cell("rigl")).epochs, grid.training(cell("rigl")).epochs) == (2, 1)
    prune.main(**CELL, method="rigl", params=PARAMS)
    finetune.main(**CELL, method="rigl", params=PARAMS)
    pruned, final = (paths.checkpoint_dir("quick", cell("rigl"), name) for name in ("pruned", "final"))
    masks = store.read_masks(final)
    assert masks
    assert all(map(torch.equal, masks.values(), store.read_masks(pruned).values()))
    assert (pruned / "weights.safetensors").read_bytes() != (final / "weights.safetensors").read_bytes()


def test_options_of_a_method_are_in_the_configuration_of_its_own_cells_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, other = write_params(), write_params(lambda quick: quick.update(methods={"rigl": {"end_share": 0.5}}))
    for method, changed in (("ifap", False), ("pdp", False), ("rigl", True), ("brief", True)):
        before, after = (grid.config(cell(method), "evaluate") for grid in (plain, other))
        assert (before != after) == changed, method
        assert ("options" in before["prune"]) == (mask_options(plain.variant(cell(method)).method) is not None)
    assert plain.config(cell("rigl"), "prune")["prune"]["options"]["drop_fraction"] == 0.2
    assert plain.config(cell("brief"), "prune")["prune"]["options"]["update_every"] == 7
    assert plain.config(cell("rigl"), "prune")["prune"]["training"]["epochs"] == 2 + 2 * 1 + 1
    assert plain.config(cell("rigl"), "finetune")["finetune"]["epochs"] == 0
    assert plain.config(cell("ifap"), "finetune")["finetune"]["epochs"] == 1
    # Nothing of the pruning loop is in it: another exponent would change nothing.
    steeper = write_params(lambda quick: quick["prune"]["default"].update(alpha=2.0))
    assert steeper.config(cell("rigl"), "evaluate") == write_params().config(cell("rigl"), "evaluate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"rigl": {"drop_fractoin": 0.3}}}, r"drop_fractoin: unknown key: did you mean 'drop_fraction'"),
        ({"methods": {"rigll": {}}}, r"rigll: unknown key: did you mean 'rigl'"),
        ({"methods": {"pdp": {"warmup_share": 0.6}}}, r"warmup_share and ramp_share together must not exceed 1"),
        ({"variants": {"brief": {"method": "rigl", "options": {"end_share": 2}}}}, r"brief\.options: end_share"),
        ({"variants": {"brief": {"method": "ifap", "options": {"a": 1}}}}, r"'ifap' has no options of its own"),
    ],
)
def test_wrong_options_are_named(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        write_params(lambda quick: quick.update(change))
