"""Numbers as tables print them: units, decimals, spreads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from ifap.study.templates import MINUS, NO_VALUE, PLUS_MINUS

PREFIXES = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}


@dataclass(frozen=True)
class Unit:
    """A unit for all counts of one table: a prefix and the decimals that go with it."""

    prefix: str
    decimals: int

    def text(self, count: float) -> str:
        """Print a count in this unit."""
        return fixed(count / PREFIXES[self.prefix], self.decimals)


def choose_unit(counts: Iterable[float]) -> Unit:
    """Choose the largest unit in which every count shows at least three significant digits.

    At most three decimals are used, so the smallest count is at least 0.1 in the unit.
    """
    smallest = min((count for count in counts if count > 0), default=1.0)
    prefix = next((prefix for prefix, size in PREFIXES.items() if smallest >= 0.1 * size), "")
    if not prefix:
        return Unit("", 0)
    return Unit(prefix, min(3, max(0, 2 - math.floor(math.log10(smallest / PREFIXES[prefix])))))


def fixed(value: float, decimals: int) -> str:
    """Print a number with fixed decimals and a true minus sign; a rounded zero has no sign."""
    if math.isnan(value):
        return NO_VALUE
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def spread(values: pd.Series[float], show: Callable[[float], str]) -> str:
    """Print the mean of one value a seed, and their standard deviation where there are several."""
    mean = show(float(values.mean()))
    return f"{mean} {PLUS_MINUS} {show(float(values.std(ddof=1)))}" if len(values) > 1 else mean
