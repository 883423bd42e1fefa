"""The coverage of public networks: its registry, its rows and its page. A handful of networks is pruned here."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks.coverage import __main__ as coverage
from benchmarks.coverage import measure, page, runner, table
from benchmarks.coverage.check import check, flat, same, twice
from benchmarks.coverage.registry import OWN, Network, find, installed, made, networks

QUICK = ("timm:mobilenetv3_small_050", "torchvision:squeezenet1_1", "transformers:bert", "transformers:llama")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row_of(network, tmp_path):
    row = {}
    measure.measure(network, tmp_path, row.update)
    measure.reload(network, tmp_path, row.update)
    return runner.judged(row)


@pytest.mark.parametrize("key", QUICK)
def test_a_network_is_pruned_and_passes_every_check(key, tmp_path):
    row = row_of(find(key), tmp_path)
    assert row["state"] == "reached", row
    assert row["achieved"] >= 0.5
    assert (row["reload"], row["shapes"], row["batch"], row["trains"]) == ("equal", "same", "yes", "yes")
    assert row["generates"] == ("yes" if key.endswith("llama") else "-")
    assert row["stays"]


@pytest.mark.parametrize("key", QUICK[1:3])
def test_builders_and_inputs_are_the_same_each_time(key):
    found = check(find(key))
    assert found["same"]
    assert found["finite"]
    assert (found["batch"], found["trains"]) == ("", "")


def test_keys_are_unique_and_name_their_package():
    assert set(OWN) <= set(installed())
    for package in coverage.PACKAGES:
        found = networks(package)
        assert all(key.startswith(f"{package}:") and network.package == package for key, network in found.items())
        listed = importlib.import_module(f"benchmarks.coverage.{package}_networks").NETWORKS
        assert len(found) == len(listed)
    assert len(networks("timm")) >= 98
    assert len(networks("transformers")) >= 150
    assert set(coverage.SMALL) <= {key for package in coverage.PACKAGES for key in networks(package)}


def test_specifications_of_inputs():
    generator = torch.Generator().manual_seed(0)
    found = made(
        {"x": (1, 2), "ids": ("ids", 9, 2, 5), "n": [3], "flag": True, "two": ((1, 2), ("ones", 3))}, generator
    )
    assert found["x"].shape == (1, 2)
    assert 3 <= int(found["ids"].min()) <= int(found["ids"].max()) < 9
    assert found["n"].tolist() == [3]
    assert found["flag"] is True
    assert [tensor.shape for tensor in found["two"]] == [(1, 2), (3,)]
    assert int((made(("marked", 120, 4, 2, 9), generator) == 120).sum()) == 8
    assert twice({"x": torch.ones(1, 2), "fixed": torch.ones(1)}, ("fixed",))["x"].shape == (2, 2)
    assert same(flat([{"a": torch.ones(2)}]), [torch.ones(2)])
    assert not same([torch.ones(2)], [torch.zeros(2)])


class Stubborn(torch.nn.Module):
    """Does not run."""

    def forward(self, x):
        raise ZeroDivisionError("on purpose")


def test_what_fails_is_a_row(tmp_path):
    network = Network("smp:stubborn", Stubborn, lambda generator: torch.ones(1))
    row = runner.judged(runner.run(network, measure.measure, tmp_path, timeout=60))
    assert row["state"] == "traceback"
    assert "on purpose" in row["reason"]
    endless = runner.run(network, _sleep, tmp_path, timeout=0.5)
    assert runner.judged(endless)["state"] == "timeout"


def _sleep(network, folder, note):
    import time

    note({"macs_before": 1})
    time.sleep(60)


def test_a_check_that_fails_makes_a_row_wrong():
    fine = {"state": "reached", "achieved": 0.5, "reload": "equal", "shapes": "same", "batch": "-", "trains": "no"}
    assert runner.judged({**fine, "generates": "yes"})["state"] == "reached"
    wrong = runner.judged({**fine, "generates": "IndexError: no"})
    assert (wrong["state"], wrong["reason"]) == ("wrong", "generates: IndexError: no")


def test_a_refusal_says_what_to_try_next():
    refusal = "TargetError: target macs=0.5 cannot be reached: at most 0.431; every layer keeps"
    assert measure._most([refusal]) == pytest.approx(0.429)
    assert measure._most([refusal, "again"]) == pytest.approx(0.401)
    assert measure._most([refusal, "again", "again"]) is None
    assert measure._most(["GraphError: nothing in this network can be pruned"]) is None


PARTLY = {
    "state": "partly",
    "achieved": 0.41,
    "reason": "TargetError: at most 0.412",
    "reload": "equal",
    "shapes": "same",
    "batch": "yes",
    "trains": "no",
    "generates": "-",
    "stays": "head 12.0% (it feeds an output (all))",
}


def test_rows_are_kept_resumed_and_shown(tmp_path, monkeypatch):
    measured, steps = [], []

    def ours(network, timeout, memory_gb, step):
        measured.append(network.key)
        steps.append(step)
        return {**PARTLY, "proof_difference": 1e-7, "proof_units": 12, "proof_exempt": "a reason: 3"}

    monkeypatch.setattr(coverage.runner, "ours", ours)
    monkeypatch.setattr(coverage.runner, "prepare", lambda package: None)
    out = tmp_path / "coverage.csv"
    options = {"package": "timm", "only": "timm:levit*", "out": out, "timeout": 1.0, "memory_gb": 1}
    coverage.main(**options)
    coverage.main(**options, resume=True)
    assert measured == ["timm:levit_128s"]
    coverage.main(**options, defaults=True)
    assert steps == [measure.measure, measure.measure_defaults]
    rows = table.read(out)
    assert list(rows) == measured[:1]
    assert set(rows[measured[0]]) == set(table.COLUMNS)
    text = page.render(list(rows.values()), list(rows.values()))
    for part in (
        "## The default method",
        "| timm | 1 | 0 | 1 |",
        "`timm:levit_128s` | partly |",
        "a reason: 3 units",
        "it feeds an output (all)",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 400
