"""Curves as SVG: round numbers along the axes, points where their values are, words that are heard and not run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ifap.report.drawing import Dot, draw_curve, short_count, ticks


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.61, 0.79, [0.6, 0.65, 0.7, 0.75, 0.8]),
        (-3, 12, [-5, 0, 5, 10, 15]),
        (7, 7, [6.4, 6.6, 6.8, 7, 7.2, 7.4, 7.6]),
        (1e-6, 3e-6, [1e-6, 1.5e-6, 2e-6, 2.5e-6, 3e-6]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, wanted):
    found = ticks(low, high)
    assert found == pytest.approx(wanted)
    assert found[0] <= low
    assert found[-1] >= high


def test_points_lie_where_their_values_are():
    dots = [Dot(100, 80, "a"), Dot(50, 60, "b"), Dot(0, 40, "c", is_chosen=True)]
    root = ET.fromstring(draw_curve(dots, "x", "y"))
    across, down, size = zip(
        *((float(e.get("cx")), float(e.get("cy")), float(e.get("r"))) for e in root.iter() if e.tag.endswith("circle")),
        strict=True,
    )
    assert across[0] - across[1] == pytest.approx(across[1] - across[2])
    assert down[1] - down[0] == pytest.approx(down[2] - down[1])
    assert size == (4, 4, 7)


def test_words_are_escaped():
    picture = draw_curve([Dot(1, 2, "<b>"), Dot(2, 3, "&")], "<x>", '"y"')
    root = ET.fromstring(picture)
    assert "<b>" in root.get("aria-label")
    assert "<b>" not in picture


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (385_187_552, "385 M"), (4.1e9, "4.10 G"), (3.5e6, "3.50 M")],
)
def test_large_numbers_have_three_digits(value, text):
    assert short_count(value) == text
