"""Pictures and pages without a plotting library: SVG and HTML from templates that escape every value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).with_name("templates")
_WIDTH, _HEIGHT = 440, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 16, 46
_MOST_TICKS = 5


@dataclass(frozen=True)
class Dot:
    """One point of a curve.

    Parameters
    ----------
    x, y : float
        Its values.
    said : str
        What the point is, for whoever points at it or hears the picture.
    is_chosen : bool
        Whether it is the one that the picture is about.
    """

    x: float
    y: float
    said: str
    is_chosen: bool = False


def environment() -> Environment:
    """Return the templates of this package: every value is escaped, an unknown name is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["share"] = lambda value: "< 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"
    found.filters["count"] = lambda value: f"{value:,}"
    found.filters["short"] = short_count
    found.filters["digits"] = three_digits
    found.filters["breakable"] = lambda name: Markup(re.sub(r"([._/:])", r"\1<wbr>", str(escape(name))))
    return found


def short_count(value: float) -> str:
    """Return a large number with three digits, such as ``4.1 G``."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{three_digits(value / size)} {prefix}"
    return three_digits(value) if value % 1 else f"{value:.0f}"


def three_digits(value: float) -> str:
    """Return a number with three digits, zeros at the end included."""
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def draw_curve(dots: Sequence[Dot], x_label: str, y_label: str, floor: float | None = None) -> str:
    """Draw points joined by a line.

    The points must be finite and in order. `floor` is a value of y that is drawn as a dashed line. Returns one
    ``<svg>`` element that needs no other file.
    """
    levels = [dot.y for dot in dots] + ([floor] if floor is not None else [])
    x_ticks, y_ticks = ticks(0.0, max(dot.x for dot in dots)), ticks(min(levels), max(levels))

    def across(x: float) -> float:
        return round(_LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT), 1)

    def down(y: float) -> float:
        return round(_TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _TOP - _BOTTOM), 1)

    return (
        environment()
        .get_template("curve.svg.j2")
        .render(
            width=_WIDTH,
            height=_HEIGHT,
            left=_LEFT,
            right=_WIDTH - _RIGHT,
            top=_TOP,
            bottom=_HEIGHT - _BOTTOM,
            x_label=x_label,
            y_label=y_label,
            x_ticks=[(across(x), f"{x:g}") for x in x_ticks],
            y_ticks=[(down(y), f"{y:g}") for y in y_ticks],
            dots=[(across(dot.x), down(dot.y), dot) for dot in dots],
            floor=None if floor is None else down(floor),
        )
    )


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers that enclose a range, at most about five."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = 10 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    step = next(step * times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= _MOST_TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def skyline(values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the outlines of columns before and after, on a common scale of 100, for a picture without words.

    Each column is a pair (before, after); neither is negative.
    """
    most = max((before for before, _ in values), default=0.0) or 1.0
    return {
        "columns": len(values),
        "heights": [
            (number, round(100 * b / most, 2), round(100 * a / most, 2)) for number, (b, a) in enumerate(values)
        ],
    }
