"""Whether a method differs from the reference: paired differences over seeds, with intervals and verdicts.

A seed gives data order, initialisation and baseline to every method alike, so that the difference of
two methods at one seed says more than the difference of their means. The t-test of those differences
is scipy's; p-values are corrected for the number of methods compared with the reference (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

LEVEL = 0.95
"""Of the confidence intervals; one minus it is the level of the tests."""
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference at this n"
ONE_SEED = "one seed: no statement"
NO_SPREAD = "the same difference at every seed: no statement"
NO_PARTNER = "no common seed: no statement"
KEYS = ("task", "dataset", "model", "target_kind", "target")
"""What two runs must have in common to be compared, beside the seed."""


@dataclass(frozen=True)
class Moments:
    """Mean and sample standard deviation (None for one value) of `n` values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A method minus the reference over the seeds that both have."""

    n: int  # Common seeds.
    mean: float | None  # In the unit of the values; None without a common seed.
    # Confidence interval of the mean by Student's t, not corrected for the number of methods; None where there is no
    # spread to estimate it from.
    low: float | None
    high: float | None
    p: float | None  # Two-sided p-value of the paired t-test.
    p_holm: float | None  # The same, corrected for the methods compared.
    verdict: str  # By `p_holm`, in words.


def moments(values: Sequence[float] | pd.Series[float]) -> Moments:
    """Return mean, sample standard deviation and number of values; raises a ValueError if there is none."""
    if not len(values):
        raise ValueError("no values to describe")
    series = pd.Series(values, dtype=float)
    return Moments(float(series.mean()), float(series.std(ddof=1)) if len(series) > 1 else None, len(series))


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Compare values by seed, before any correction for several comparisons; higher is better.

    Seeds that only one side has are left out. `p_holm` of the result is `p`, and its verdict that of a single
    comparison.
    """
    seeds = sorted(ours.keys() & reference.keys())
    pairs = [(ours[seed], reference[seed]) for seed in seeds]
    if not pairs:
        return Difference(0, None, None, None, None, None, NO_PARTNER)
    apart = [one - other for one, other in pairs]
    mean = math.fsum(apart) / len(apart)
    if len(pairs) == 1:
        return Difference(1, mean, None, None, None, None, ONE_SEED)
    if _are_one(apart, pairs):
        # Without spread the t statistic is infinite or undefined, which is no evidence at few seeds.
        return Difference(len(pairs), mean, None, None, None, None, NO_SPREAD if mean else NO_DIFFERENCE)
    test = stats.ttest_rel(*zip(*pairs, strict=True))
    low, high = test.confidence_interval(LEVEL)
    p = float(test.pvalue)
    return Difference(len(pairs), mean, float(low), float(high), p, p, verdict(mean, p))


def _are_one(apart: Sequence[float], pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether differences are the same but for the rounding of their subtraction."""
    size = max(max(abs(one), abs(other)) for one, other in pairs)
    return max(apart) - min(apart) <= 1e-12 * size


def verdict(mean: float, p: float) -> str:
    """Say in words what a mean difference and its corrected p-value show."""
    if p > 1 - LEVEL:
        return NO_DIFFERENCE
    return BETTER if mean > 0 else WORSE


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down procedure.

    Corrected values, in the order given: reject at a level where they are at most it.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def compare(values: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, Difference]:
    """Compare every method with the reference and correct for their number.

    `values` hold one value a seed for each method, all on one network and data set at one target. Returns every method
    but the reference. Methods without a p-value do not count for the correction.
    """
    found = {name: paired(own, values.get(reference, {})) for name, own in values.items() if name != reference}
    tested = [name for name, difference in found.items() if difference.p is not None]
    corrected = holm([p for name in tested if (p := found[name].p) is not None])
    for name, p in zip(tested, corrected, strict=True):
        found[name] = replace(found[name], p_holm=p, verdict=verdict(found[name].mean or 0.0, p))
    return found


def compare_runs(
    runs: pd.DataFrame, lines: Mapping[str, str], reference: str = "ifap"
) -> dict[tuple[Any, ...], Difference]:
    """Compare the methods of ``records.csv`` with the reference: same network, data set, target and seeds.

    Returns the differences by `KEYS` and the name in `runs` of the method. Rows without a target (unpruned networks)
    are left out. `lines` tells of which method each in `runs` is a point, see `ifap.study.grid.Grid.lines`.
    """
    found: dict[tuple[Any, ...], Difference] = {}
    pruned = runs.dropna(subset=["target_kind", "target", "test_metric"])
    for key, frame in pruned.groupby(list(KEYS), sort=False):
        by_method = {
            str(method): dict(zip(own["seed"].astype(int), own["test_metric"].astype(float), strict=True))
            for method, own in frame.groupby("method", sort=False)
        }
        own = next((method for method in by_method if lines.get(method, method) == reference), reference)
        found |= {(*key, method): difference for method, difference in compare(by_method, own).items()}
    return found
