"""The full-size counts of Table III: which networks, which sizes, and one of them through the whole stage."""

from __future__ import annotations

import importlib

import pytest
from workflow_project import ROOT

from ifap import paths
from ifap.claims.published import load_claims
from ifap.models import MODELS


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("stages.dense_structure")


def test_the_27_networks_of_table_3(stage):
    networks = stage.wanted(load_claims(ROOT / paths.published_claims()))
    assert len(networks) == 27
    assert {each.model for each in networks} == set(stage.SIZES)
    assert set(stage.SIZES) <= set(MODELS.names())
    assert all(0.5 < each.reduction_printed < 0.7 for each in networks)
    first = networks[0]
    assert (first.dataset, first.model, first.printed, first.reduction_printed) == (
        "pascal_voc", "faster_rcnn_resnet50", 150.2, 0.59,
    )  # fmt: skip
    classes = {(each.dataset, each.model): each.classes for each in networks}
    assert classes["pascal_voc", "fcn_vgg19_bn"] == 21
    assert classes["pascal_voc", "yolov4_shufflenet_v2"] == 20
    assert classes["ade20k", "unet_resnet50"] == 150


def test_a_network_is_counted_at_the_size_that_comes_nearest(stage):
    network = next(
        each for each in stage.wanted(load_claims(ROOT / paths.published_claims())) if each.model == "fcn_vgg19_bn"
    )
    row = stage.counted(network)
    assert row.reduction == pytest.approx(row.reduction_printed, abs=0.01)
    assert row.macs_base / 1e9 == pytest.approx(19.508 * (512 / 224) ** 2 + 0.15, rel=0.01)  # features and head
    off = abs(row.macs_nearest / 1e9 - row.printed)
    for size in (row.nearest_size - 32, row.nearest_size + 32):
        assert abs(stage._giga(network, size) - row.printed) >= off


def test_a_network_with_weights_goes_through_everything(stage, monkeypatch):
    monkeypatch.setitem(stage.STANDS_FOR, "faster_rcnn_resnet50", "faster_rcnn_tiny")
    monkeypatch.setitem(stage.SMALL, "faster_rcnn_resnet50", 64)
    network = stage.wanted(load_claims(ROOT / paths.published_claims()))[0]
    found = stage.run(network)
    assert found["ran"] == "faster_rcnn_tiny at 64"
    assert found["note"] == ""
    assert found["ran_reduction"] == pytest.approx(network.reduction_printed, abs=0.01)
    assert found["trains"] is True
    assert found["reloads"] is True
