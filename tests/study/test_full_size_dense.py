"""The full-size counts of Table III: which networks, which sizes, and one of them through the whole stage."""

from __future__ import annotations

import importlib

import pytest
from pydantic import ValidationError
from workflow_project import ROOT

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.models import MODELS
from ifap.study.paper.published import load_claims
from ifap.study.report.full_size import (
    DENSE_SIZES,
    Dense,
    DenseCount,
    counts_table,
    dense_networks,
    load_counts,
)

ROW = DenseCount(
    dataset="pascal_voc", model="fcn_vgg19_bn", classes=21, image_size=512, published=100.0, reduction_published=0.6,
    macs_base=90_000_000_000, params_base=40_000_000, nearest_size=544, macs_nearest=101_600_000_000,
    macs_pruned=36_000_000_000, params_pruned=9_000_000, reduction=0.6, ran="fcn_vgg19_bn at 64", ran_reduction=0.601,
    trains="yes", reloads="yes", note="", version=1,
)  # fmt: skip


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("stages.full_size.dense")


@pytest.fixture(scope="module")
def networks():
    return dense_networks(load_claims(ROOT / paths.published_claims()))


def test_the_27_networks_of_table_3(networks):
    assert len(networks) == 27
    assert {each.model for each in networks} == set(DENSE_SIZES)
    assert set(DENSE_SIZES) <= set(MODELS.names())
    assert all(0.5 < each.reduction_published < 0.7 for each in networks)
    first = networks[0]
    assert (first.dataset, first.model, first.published, first.reduction_published) == (
        "pascal_voc", "faster_rcnn_resnet50", 150.2, 0.59,
    )  # fmt: skip
    classes = {(each.dataset, each.model): each.classes for each in networks}
    assert classes["pascal_voc", "fcn_vgg19_bn"] == 21
    assert classes["pascal_voc", "yolov4_shufflenet_v2"] == 20
    assert classes["ade20k", "unet_resnet50"] == 150


def test_a_network_is_counted_at_the_size_that_comes_nearest(stage, networks):
    network = next(each for each in networks if each.model == "fcn_vgg19_bn")
    found = stage.counted(network)
    assert found["reduction"] == pytest.approx(network.reduction_published, abs=0.01)
    assert found["macs_base"] / 1e9 == pytest.approx(19.508 * (512 / 224) ** 2 + 0.15, rel=0.01)  # features and head
    off = abs(found["macs_nearest"] / 1e9 - network.published)
    for size in (found["nearest_size"] - 32, found["nearest_size"] + 32):
        assert abs(stage._macs(network.model, network.classes, size) / 1e9 - network.published) >= off


def test_a_network_with_weights_goes_through_everything(stage, networks, monkeypatch):
    monkeypatch.setitem(stage.STANDS_FOR, "faster_rcnn_resnet50", "faster_rcnn_tiny")
    monkeypatch.setitem(stage.SMALL, "faster_rcnn_resnet50", 64)
    found = stage.run(networks[0])
    assert found["ran"] == "faster_rcnn_tiny at 64"
    assert found["note"] == ""
    assert found["ran_reduction"] == pytest.approx(networks[0].reduction_published, abs=0.01)
    assert (found["trains"], found["reloads"]) == ("yes", "yes")


def test_a_size_that_cannot_be_reached_is_said(stage):
    assert not ROW.is_reachable
    assert stage._far(ROW) == (
        "no multiple of 32 px brings the unpruned network to within 1 % of the printed 100 GMACs: 544 px cost 101.6"
    )
    assert ROW.model_copy(update={"macs_nearest": 100_900_000_000}).is_reachable


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / paths.full_size_csv()
    path.parent.mkdir()
    path.write_text(counts_table([ROW]))
    assert load_counts(root=tmp_path) == {("pascal_voc", "fcn_vgg19_bn"): (2, ROW)}
    assert load_counts(root=tmp_path / "nowhere") == {}
    path.write_text(counts_table([ROW, ROW]))
    with pytest.raises(ResultsError, match="row 3, column model: pascal_voc/fcn_vgg19_bn is doubled"):
        load_counts(root=tmp_path)
    path.write_text(path.read_text().replace(",yes,yes,", ",perhaps,yes,"))
    with pytest.raises(ResultsError, match="row 2, trains"):
        load_counts(root=tmp_path)


def test_numbers_that_contradict_each_other_are_refused():
    values = ROW.model_dump()
    with pytest.raises(ValidationError, match="column reduction"):
        DenseCount.model_validate({**values, "reduction": 0.61})
    with pytest.raises(ValidationError, match="column note"):
        DenseCount.model_validate({**values, "reduction": None})


def test_the_recorded_networks_are_those_of_table_3(networks, stage):
    rows = [row for _, row in load_counts(root=ROOT).values() if row.KIND == "dense"]
    assert [(row.dataset, row.model) for row in rows] == [(each.dataset, each.model) for each in networks]
    for row, network in zip(rows, networks, strict=True):
        assert network == Dense.model_validate(row.model_dump(include=set(Dense.model_fields)))
        assert row.reduction == pytest.approx(row.reduction_published, abs=0.01)
        assert row.ran_reduction == pytest.approx(row.reduction_published, abs=0.01)
        assert (row.trains, row.reloads) == ("yes", "yes")
        assert row.note == ("" if row.is_reachable else stage._far(row))


@pytest.mark.parametrize(
    ("quantity", "value", "words"),
    [
        ("gmacs_base", 90.0, "no multiple of 32 px comes within 1 % of what is printed: 544 px cost 101.6"),
        ("gmacs_pruned", 36.0, "pruned to the printed reduction"),
        ("gmacs_delta", -60.0, "it can be reached, at whatever accuracy"),
    ],
)
def test_what_a_count_says_of_a_claim(quantity, value, words):
    claim = {"table": 3, "quantity": quantity}
    assert ROW.measured(claim) == pytest.approx(value)
    assert "at 512 px" in ROW.about(quantity)
    assert ROW.about(quantity).endswith(words)


def test_a_count_says_nothing_of_scores_and_of_other_tables():
    assert ROW.measured({"table": 3, "quantity": "metric_base"}) is None
    assert ROW.measured({"table": 2, "quantity": "gmacs_base"}) is None
