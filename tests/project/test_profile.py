"""Where the time goes: parts of a piece of work, and the figure of what is recorded."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from benchmarks import profile
from ifap.data import batches


def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_a_part_spends_in_another_counts_for_that_one_alone():
    parts = SimpleNamespace(inner=lambda: spend(0.04))

    def outer():
        spend(0.02)
        parts.inner()

    parts.outer = outer
    watch = profile.Watch()
    watch.measure(lambda: (spend(0.01), parts.outer()), [(parts, "inner", "inside"), (parts, "outer", "outside")])
    assert watch.seconds == pytest.approx({"inside": 0.04, "outside": 0.02, profile.REST: 0.01}, abs=0.005)
    assert parts.outer is outer


def test_reading_counts_what_items_take_and_not_what_is_done_with_them():
    def items():
        for number in range(2):
            spend(0.02)
            yield number

    watch = profile.Watch()
    for _ in watch.read("data", items()):
        spend(0.01)
    assert watch.seconds["data"] == pytest.approx(0.04, abs=0.005)


def test_every_part_is_a_function_that_is_there():
    for _, parts in profile.WORK.values():
        assert all(callable(getattr(owner, name)) for owner, name, _ in parts)
    assert profile.RECOVERY[0][:2] == (profile.distillation, "batches")
    assert profile.distillation.batches is batches


def test_the_figure_is_that_of_what_is_recorded(tmp_path):
    rows = profile.read_rows(profile.TABLE)
    assert {row["work"] for row in rows} == set(profile.WORK)
    for work in profile.WORK:
        assert sum(float(row["share"]) for row in rows if row["work"] == work) == pytest.approx(1, abs=0.001)
    profile.draw(rows, tmp_path / "profile.svg")
    assert (tmp_path / "profile.svg").read_bytes() == profile.FIGURE.read_bytes()
    assert profile.FIGURE.stat().st_size < 100_000
