"""Numbers as records keep them: rounded, so that equal results are equal bytes."""

from __future__ import annotations

from typing import Any

DIGITS = 12
"""Significant digits of a number in the work of a cell; the same sums in another order differ behind them."""
GATHERED_DIGITS = 9
"""The same in the files that gather a scale, whose differences and shares are taken of the former."""


def rounded(value: Any) -> Any:
    """Return a value with every float in it rounded to `DIGITS` significant digits, in mappings and lists as well."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value
