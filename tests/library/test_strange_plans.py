"""Saved networks from strangers: bombs that chance does not make; `test_plan` has damage, `test_strangers` the rest."""

from __future__ import annotations

import json
import os
import time

import pytest
from networks import NETWORKS, prune

import ifap
from ifap import plan
from ifap.errors import PlanError
from ifap.example_inputs import can_be_saved
from ifap.saving import store
from ifap.study.models import builder_from_id

SOON = 20.0
"""Seconds of processor time that no refusal comes near to."""


@pytest.fixture(autouse=True)
def _soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < SOON


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    net = NETWORKS["residual"]
    ifap.save(prune(net.build(), net.inputs(), method="random"), folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(folder, change=None):
    """Change the text of the plan, and return the one error of loading it."""
    file = folder / plan.PLAN_FILE
    if change:
        file.write_text(change(file.read_text()))
    with pytest.raises(PlanError) as error:
        ifap.load(folder, NETWORKS["residual"].build)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def changed(**values):
    return lambda text: json.dumps(json.loads(text) | values)


def test_a_plan_that_is_a_pipe_is_refused(copied):
    (copied / plan.PLAN_FILE).unlink()
    os.mkfifo(copied / plan.PLAN_FILE)
    assert "not a plain file" in refused(copied)
    (copied / plan.PLAN_FILE).unlink()


def test_weights_that_are_a_device_are_refused(copied):
    (copied / store.WEIGHTS_FILE).unlink()
    (copied / store.WEIGHTS_FILE).symlink_to("/dev/zero")
    assert "not a plain file" in refused(copied)


def test_weights_of_any_size_are_not_read(copied, monkeypatch):
    size = (copied / store.WEIGHTS_FILE).stat().st_size
    monkeypatch.setattr(store, "_MAX_WEIGHTS_BYTES", size)
    ifap.load(copied, NETWORKS["residual"].build)
    monkeypatch.setattr(store, "_MAX_WEIGHTS_BYTES", size - 1)
    message = refused(copied)
    assert store.WEIGHTS_FILE in message
    assert "cannot be read" in message


def test_a_key_that_stands_twice_is_refused(copied):
    assert "'format' stands there twice" in refused(copied, lambda text: text.replace("{", '{"format": 1, ', 1))


def test_a_fingerprint_that_fits_everything_is_refused(copied):
    values = [float("inf"), *json.loads((copied / plan.PLAN_FILE).read_text())["fingerprint"][1:]]
    assert "fingerprint" in refused(copied, changed(fingerprint=values))


@pytest.mark.parametrize(
    "values",
    [
        {"kept": {"stem.0": {"out": ["x"] * 190_000}}},
        {"kept": {"stem.0": {"out": [-1] * 2_000_000}}},
        {"kept": {str(number): [] for number in range(100_000)}},
        {"fingerprint": [0.5] * 100_000},
        {"split_attention": ["x"] * 190_000},
        {"example_inputs": {"kind": "tensor", "shape": [2**62] * 500_000, "dtype": "float32"}},
        {"example_inputs": {"kind": "tensor", "shape": [1, 3, 1200, 1200], "dtype": "float32"}},
        {"example_inputs": {"kind": "tensor", "shape": [1, 20_000], "dtype": "int64", "high": 1}},
        {"example_inputs": {"kind": "tensor", "shape": [1], "dtype": "int64", "high": 2**63}},
    ],
    ids=["texts", "negative", "names", "fingerprint", "splits", "dimensions", "large", "tokens", "range"],
)
def test_a_plan_of_many_errors_is_one(copied, values):
    refused(copied, changed(**values))


def test_a_plan_of_many_small_parts_is_not_even_parsed(copied):
    assert "names and lists" in refused(copied, lambda _: "[" + "{}," * 500_000 + "0]")


def test_whether_example_inputs_can_be_saved_is_known_before_pruning():
    inputs = NETWORKS["plain"].inputs()
    assert can_be_saved(inputs)
    assert not can_be_saved(inputs[:1].expand(2**16, *inputs.shape[1:]))


def test_a_plan_cannot_ask_for_a_network_of_any_size():
    for name, value in (("num_classes", 25_001), ("image_size", 2048), ("in_channels", 65)):
        arguments = {"num_classes": 10, "in_channels": 3, "image_size": 32, name: value}
        with pytest.raises(PlanError, match=f"builder argument {name}"):
            builder_from_id("ifap:vgg19_bn", arguments)
