"""The benchmark of pruned networks in use: what it records and renders. No speed is asserted."""

from __future__ import annotations

import pytest
import torch
from claims_made_up import ROOT

from benchmarks import deployment, own_format, quantized
from ifap.errors import ConfigError

pytest.importorskip("onnxruntime")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A working directory, and as few rounds as possible."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deployment, "ROUNDS", (1, 1))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setattr(deployment, "configure", lambda seed, threads: torch.manual_seed(seed))
    monkeypatch.setattr(deployment, "NETWORKS", ("resnet_tiny", "mobilenet_tiny"))


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "ROUNDS", (1, 1))
        patch.setenv("PYTHONPATH", str(ROOT / "src"))
        patch.setattr(deployment, "configure", lambda seed, threads: torch.manual_seed(seed))
        return deployment.measure("resnet_tiny", 32)


def test_a_row_says_what_works_and_how_fast(rows):
    whole, free, rounded = rows
    assert [row["variant"] for row in rows] == list(deployment.VARIANTS)
    assert all(set(row) <= set(deployment.COLUMNS) for row in rows)
    assert all(row["trains"] and row["reloads"] and not row["note"] for row in rows)
    assert all(0 <= float(row["onnx_difference"]) <= 1e-4 for row in rows)
    assert free["ideal_speedup"] == pytest.approx(whole["macs"] / free["macs"], abs=1e-3)
    assert free["macs_left"] == pytest.approx(0.35, abs=0.01)
    assert rounded["macs_left"] <= 0.35
    for batch, layout in deployment.SETTINGS:
        names = {name: deployment.column(name, batch, layout) for name in ("ms", "rounds", "speedup", "share_of_ideal")}
        assert all(row[names["ms"]] > 0 and row[names["rounds"]] == 1 for row in rows)
        assert names["speedup"] not in whole
        assert free[names["share_of_ideal"]] == pytest.approx(free[names["speedup"]] / free["ideal_speedup"], abs=1e-3)


def test_rows_are_kept_and_the_page_follows_from_the_table(quick, rows, monkeypatch):
    measured = []

    def measure(name, size):
        measured.append(name)
        return [{**row, "network": name} for row in rows]

    monkeypatch.setattr(deployment, "measure", measure)
    deployment.main(only=["mobilenet_tiny"])
    page = deployment.PAGE.read_text()
    assert "Not measured yet: resnet_tiny." in page
    assert "batch 16, cl" in page
    deployment.main()
    assert measured == ["mobilenet_tiny", "resnet_tiny"]
    recorded = deployment.read_rows(deployment.TABLE)
    assert [row["network"] for row in recorded] == ["resnet_tiny"] * 3 + ["mobilenet_tiny"] * 3
    assert deployment.PAGE.read_text() == deployment.render(recorded)
    assert "Not measured yet" not in deployment.PAGE.read_text()
    deployment.main(only=["resnet_tiny"], again=True)
    assert len(measured) == 3
    with pytest.raises(ConfigError, match=r"unknown network 'resnet_tni': did you mean 'resnet_tiny'\?"):
        deployment.main(only=["resnet_tni"])


def test_what_does_not_work_is_said(quick, monkeypatch):
    monkeypatch.setattr(deployment, "TARGET", 0.9999)
    monkeypatch.setattr(deployment, "RELOAD", "raise SystemExit('made up')")
    monkeypatch.setattr(deployment, "SETTINGS", ())
    real = deployment.MODELS.get("resnet_tiny")

    class Frozen:
        @staticmethod
        def get(name):
            def build(**args):
                network = real(**args)
                next(network.parameters()).requires_grad_(requires_grad=False)
                return network

            return build

    monkeypatch.setattr(deployment, "MODELS", Frozen)
    whole, free, rounded = deployment.measure("resnet_tiny", 32)
    assert (whole["trains"], whole["reloads"]) == (False, False)
    assert "does not reload: made up; no finite gradient of " in whole["note"]
    assert all(row["note"].startswith("not pruned: target macs=0.9999 cannot be reached") for row in (free, rounded))
    deployment.write_csv(deployment.TABLE, [whole, free, rounded], deployment.COLUMNS)
    page = deployment.render(deployment.read_rows(deployment.TABLE))
    assert page.count("not pruned: ") == 2
    assert "| NO | NO |" in page
    assert deployment.NETWORKS[1] in page


@pytest.mark.skipif(not (ROOT / deployment.TABLE).exists(), reason="not measured here")
def test_the_recorded_page_is_that_of_the_recorded_tables():
    tables = (deployment.TABLE, quantized.TABLE, own_format.TABLE)
    page = deployment.render(*(deployment.read_rows(ROOT / table) for table in tables))
    assert (ROOT / deployment.PAGE).read_text() == page
