"""The curve of a metric over the multiply-accumulates: one run, and the smallest network within a given loss."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

import ifap
from ifap.errors import TargetError
from ifap.sweeping import smallest_within

IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TARGETS = (0.2, 0.4, 0.6, 0.8)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


NETWORK = network()
UNIT = (3 * 9 * 100 + 9 * 16 * 64) / 190_736  # share of the MACs that the dearest channel takes along
WANTED = NETWORK(IMAGES).detach()


def likeness(model):
    """How close the outputs are to those of the unpruned network, 100 at best."""
    with torch.no_grad():
        return 100 - 100 * float((model(IMAGES) - WANTED).abs().mean() / WANTED.abs().mean())


likeness.metric = "likeness (%)"


def sweep(**options):
    return ifap.sweep(NETWORK, IMAGES[:1], [IMAGES], **{"validate": likeness, "targets": TARGETS} | options)


@pytest.fixture(scope="module")
def curve():
    return sweep()


def test_each_iteration_is_a_point_at_its_target(curve):
    assert [point.iteration for point in curve.points] == [0, 1, 2, 3, 4]
    for row, share in zip(curve.rows()[1:], TARGETS, strict=True):
        assert share <= row["macs_removed"] < share + UNIT
        assert row["drop"] == curve.points[0].metric_after - row["metric_after"]
    assert (curve.metric, curve.smallest, curve.ended) == ("likeness (%)", None, "")


def test_a_number_of_targets_is_spread_evenly():
    for targets in (3, np.array([0.3, 0.6, 0.9]), iter([0.3, 0.6, 0.9])):
        shares = [row["macs_removed"] for row in sweep(targets=targets).rows()]
        for share, wanted in zip(shares, (0, 0.3, 0.6, 0.9), strict=True):
            assert wanted <= share < wanted + UNIT


def test_the_smallest_network_within_the_loss_is_the_one_of_its_point(curve):
    drops = [row["drop"] for row in curve.rows()]
    allowed = sorted(drops[1:])[1]  # two points are within, two are not
    found = sweep(max_drop=allowed)
    chosen = max(number for number, drop in enumerate(drops) if drop <= allowed)
    assert 0 < chosen < 4
    assert [point.macs for point in found.points] == [point.macs for point in curve.points]
    assert found.smallest.after.macs == curve.points[chosen].macs
    assert found.smallest.proof.holds
    assert len(found.smallest.receipts) == chosen + 1
    assert likeness(found.smallest.model) == curve.points[chosen].metric_after


def test_no_point_within_the_loss_is_no_network():
    assert sweep(max_drop=0.0, targets=(0.5, 0.8)).smallest is None


def test_the_smallest_is_the_last_that_is_within():
    """A metric may recover: the loss of a point in between does not matter."""
    points = [ifap.Receipt(n, 100 - n, 10, metric_after=m) for n, m in enumerate((9.0, 8.5, 3.0, 8.2, 7.0))]
    assert smallest_within(points, 1.0) == 3
    assert smallest_within(points, 0.5) == 1
    assert smallest_within(points, 0.1) is None
    assert smallest_within(points, None) is None


def test_a_killed_sweep_goes_on_and_ends_the_same(tmp_path, curve):
    calls = []

    class KilledError(Exception):
        pass

    def kill(model, receipt):
        calls.append(receipt.iteration)
        if receipt.iteration == 3 and len(calls) == 4:
            raise KilledError

    with pytest.raises(KilledError):
        sweep(folder=tmp_path, on_step=kill, max_drop=50.0)
    assert not (tmp_path / "curve.csv").exists()
    found = sweep(folder=tmp_path, on_step=kill, max_drop=50.0)
    assert calls == [0, 1, 2, 3, 3, 4]
    assert found.rows() == curve.rows()
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["macs"]) for row in rows] == [point.macs for point in curve.points]
    assert float(rows[2]["metric_after"]) == curve.points[2].metric_after


def test_the_picture_shows_every_point_and_marks_the_smallest(tmp_path, curve):
    drops = sorted(row["drop"] for row in curve.rows()[1:])
    found = sweep(max_drop=drops[1])
    root = ET.fromstring(found.to_svg())
    circles = [each for each in root.iter() if each.tag.endswith("circle")]
    assert len(circles) == 5
    assert [float(each.get("r")) for each in circles].count(7) == 1
    across = [float(each.get("cx")) for each in circles]
    assert across == sorted(across, reverse=True)
    assert "likeness (%)" in root.get("aria-label")


def test_the_curve_ends_where_the_network_cannot_get_smaller():
    found = sweep(targets=(0.3, 0.5, 0.9), max_layer_ratio=0.5)
    assert 2 <= len(found.points) < 4
    assert "target macs=0.9 cannot be reached: at most" in found.ended
    with pytest.raises(TargetError, match=r"macs=0\.9 cannot be reached"):
        sweep(targets=(0.9,), max_layer_ratio=0.5)


def test_recovery_is_part_of_every_point():
    def recover(model, teacher, step):
        with torch.no_grad():
            model[-1].bias += step

    found = sweep(recover=recover, targets=(0.3, 0.6))
    assert all(point.metric_before != point.metric_after for point in found.points[1:])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": 0}, "at least one share"),
        ({"targets": (0.5, 0.4)}, "the shares must rise"),
        ({"targets": (-0.1, 0.4)}, "the shares must rise"),
        ({"targets": (0.4, 1.0)}, "must lie between 0 and 1"),
        ({"max_drop": -1.0}, "max_drop must not be negative"),
        ({"steps": 3}, "sweep sets steps itself"),
    ],
)
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(TargetError, match=said) as caught:
        sweep(**options)
    assert "\n" not in str(caught.value)


def test_another_loss_needs_another_folder(tmp_path, curve):
    drops = sorted(row["drop"] for row in curve.rows()[1:])
    sweep(folder=tmp_path, max_drop=drops[0])
    with pytest.raises(TargetError, match="another max_drop"):
        sweep(folder=tmp_path, max_drop=drops[2])
