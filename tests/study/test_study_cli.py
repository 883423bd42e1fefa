"""The commands that the study adds to ``ifap``: status, estimate and doctor."""

from __future__ import annotations

import re
import shutil
import sys
from importlib import metadata

import pytest
import torch
from command_line import refused
from workflow_project import SCALE, fresh  # noqa: F401

import ifap
from ifap.plan import Builder
from ifap.saving.plans import unpruned_plan
from ifap.saving.store import write_network
from ifap.study import paths
from ifap.study.machine import gpu
from ifap.study.models import builder_from_id


def test_status_of_a_project_where_nothing_has_run(fresh, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(fresh.root)
    code, out, _ = command("status")
    assert code == 0
    said = out.splitlines()
    assert {f"  {cell}: missing" for cell in fresh.grid().cells()} <= set(said)
    assert "table-2: 3 cells: 3 missing" in said


def test_status_names_damaged_records(fresh, command, tmp_path, monkeypatch):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    monkeypatch.chdir(project.root)
    first, second, third = project.grid().cells()
    for cell, content in ((first, "{"), (second, "[]"), (third, '{"config": {}}')):
        paths.cell_dir(SCALE, cell).mkdir(parents=True)
        paths.metrics_file(SCALE, cell).write_text(content)
    code, out, _ = command("status", "--scale", SCALE)
    assert code == 0
    assert all(f"{cell}: damaged ({paths.metrics_file(SCALE, cell)})" in out for cell in (first, second))
    assert f"{third}: stale (" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "params.yaml not found: run from the project's root"),
        (["status", "--params", "other.yaml"], "other.yaml not found"),
    ],
)
def test_status_outside_a_project_is_one_line(tmp_path, command, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(command(*arguments))


def test_status_of_an_unknown_scale_is_one_line(fresh, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(fresh.root)
    assert "unknown scale 'quik': did you mean 'quick'?" in refused(command("status", "--scale", "quik"))


def test_estimate_starts_nothing(fresh, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(fresh.root)
    code, out, _ = command("estimate", "--scale", SCALE)
    assert code == 0
    assert {"table-2", "table-4", "all"} <= {line.split()[0] for line in out.splitlines()}
    assert not paths.scale_dir(SCALE).exists()
    assert "unknown scale 'quik': did you mean 'quick'?" in refused(command("estimate", "--scale", "quik"))


def examined(out):
    """Return what ``ifap doctor`` printed: name to what was found."""
    return dict(re.findall(r"^(?:\S+(?: sets)?)? +(\S+) +(\S.*?) *$", out, re.MULTILINE))


def test_doctor_says_what_is_installed_and_which_device(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(gpu.VISIBLE, "")
    code, out, _ = command("doctor")
    found = examined(out)
    assert code == 0
    assert found["torch-pruning"] == metadata.version("torch-pruning")
    assert found["ifap"] == ifap.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r".+, \d+ cores", found["processor"])
    assert found["devices"] == "none (CUDA_VISIBLE_DEVICES hides them): all runs on the CPU"
    assert re.fullmatch(r"\d+\.\d GB here", found["free"])
    assert "data sets" not in out


def test_doctor_says_what_a_scale_needs_and_where_it_runs(fresh, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(fresh.root)
    monkeypatch.setenv(gpu.VISIBLE, "")
    code, out, _ = command("doctor")
    found = examined(out)
    assert code == 0
    assert found["digits"].startswith("can be had; stage fetch prepares it: comes with scikit-learn")
    assert re.fullmatch(r"\d+\.\d\d GB more by estimate, 0\.00 GB are there", found["wanted"])
    assert "everything: baseline, prune, finetune, evaluate on one core each" in out
    assert "unknown scale 'quik': did you mean 'quick'?" in refused(command("doctor", "--scale", "quik"))


def test_doctor_fails_where_a_run_would(fresh, command, tmp_path, monkeypatch):  # noqa: F811
    project = fresh.copy(tmp_path / "project")
    project.edit_params(lambda raw: raw["scales"][SCALE]["models"]["default"].update(pretrained="nowhere.safetensors"))
    monkeypatch.chdir(project.root)
    monkeypatch.setenv(gpu.VISIBLE, "0,1")  # devices that torch cannot have
    monkeypatch.setenv(gpu.FOLDER, str(tmp_path / "locks"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    code, out, _ = command("doctor")
    said = " ".join(out.split())
    assert code == 1
    assert "wrong: cannot use the 2 GPUs that are here" in said
    assert "wrong: 0.0 GB here" in said
    assert "wrong: nowhere.safetensors not found: see docs/architectures.md" in said
    assert "1 model not known: free" in said
    assert "3 things would stop a run" in said


def test_a_network_of_the_study_is_exported_by_the_builder_in_the_plan(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = {"num_classes": 3, "in_channels": 1, "image_size": 16}
    network = builder_from_id("ifap:resnet_tiny", args)
    plan = unpruned_plan(network, torch.zeros(1, 1, 16, 16), Builder(id="ifap:resnet_tiny", args=args))
    write_network(network, plan, tmp_path / "whole")
    code, out, err = command("export", "whole", "--to", "whole.onnx")
    assert code == 0, err
    assert "wrote whole.onnx" in out
    assert (tmp_path / "whole.onnx").stat().st_size > 4 * plan.costs.params_after


def test_help_names_the_commands_of_the_study(command):
    _, out, err = command("--help")
    for name in ("status", "estimate", "doctor", "audit"):
        assert name in out + err
        assert command(name, "--help")[0] == 0
