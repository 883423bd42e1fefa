"""Paired differences against scipy and hand-made numbers."""

import math

import pandas as pd
import pytest
from scipy import stats

from ifap.study.report import statistics as own

IFAP = {0: 90.0, 1: 91.0, 2: 89.5, 3: 90.5}
LOWER = {0: 88.0, 1: 89.5, 2: 87.0, 3: 88.0}


def test_mean_and_sample_deviation():
    found = own.moments([1.0, 2.0, 4.0])
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert found.sd == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert own.moments([5.0]) == own.Moments(5.0, None, 1)
    with pytest.raises(ValueError, match="no values"):
        own.moments([])


def test_paired_differences_are_those_of_scipy():
    found = own.paired(LOWER, IFAP)
    apart = [-2.0, -1.5, -2.5, -2.5]
    assert (found.n, found.mean) == (4, pytest.approx(-2.125))
    assert found.p == pytest.approx(stats.ttest_1samp(apart, 0.0).pvalue)
    half = stats.t.ppf(0.975, 3) * math.sqrt(sum((x + 2.125) ** 2 for x in apart) / 3) / 2
    assert (found.low, found.high) == (pytest.approx(-2.125 - half), pytest.approx(-2.125 + half))
    assert found.verdict == "worse"
    assert own.paired(IFAP, LOWER).verdict == "better"


def test_only_common_seeds_count():
    found = own.paired({0: 88.0, 2: 87.0, 9: 1.0}, {**IFAP, 8: 2.0})
    assert found == own.paired({0: 88.0, 2: 87.0}, {0: 90.0, 2: 89.5})
    assert found.n == 2
    assert own.paired({0: 1.0}, {1: 1.0}) == own.Difference(0, None, None, None, None, None, own.NO_PARTNER)


def test_one_seed_makes_no_statement():
    found = own.paired({0: 88.0}, IFAP)
    assert found == own.Difference(1, -2.0, None, None, None, None, "one seed: no statement")


def test_two_seeds_give_a_wide_interval():
    found = own.paired({0: 88.0, 1: 90.0}, IFAP)  # differences -2 and -1: t = -3 with one degree of freedom
    assert (found.low, found.high) == (
        pytest.approx(-1.5 - 12.7062 / 2, abs=1e-3),
        pytest.approx(-1.5 + 12.7062 / 2, abs=1e-3),
    )
    assert found.p == pytest.approx(2 * (0.5 - math.atan(3) / math.pi))
    assert found.verdict == "no difference at this n"


@pytest.mark.parametrize("seeds", [2, 4])
def test_without_spread_there_is_no_interval_and_no_winner(seeds):
    reference = {seed: IFAP[seed] for seed in range(seeds)}
    same = own.paired(reference, reference)
    assert same == own.Difference(seeds, 0.0, None, None, None, None, "no difference at this n")
    shifted = own.paired({seed: value - 0.1 for seed, value in reference.items()}, reference)  # not exact in binary
    assert (shifted.n, shifted.mean, shifted.p) == (seeds, pytest.approx(-0.1), None)
    assert shifted.verdict == "the same difference at every seed: no statement"


def test_holm_by_hand():
    # Smallest first: 3 * 0.01, 2 * 0.02, 1 * 0.03, never falling.
    assert own.holm([0.02, 0.01, 0.03]) == [pytest.approx(0.04), pytest.approx(0.03), pytest.approx(0.04)]
    assert own.holm([0.5, 0.9]) == [1.0, 1.0]
    assert own.holm([]) == []


def test_the_correction_can_take_a_verdict_back():
    one = {0: 89.5, 1: 90.0, 2: 89.2, 3: 90.0}
    alone = own.compare({"ifap": IFAP, "a": one}, "ifap")["a"]
    several = own.compare({"ifap": IFAP, "a": one, "b": {s: v - 0.001 for s, v in one.items()}, "c": LOWER}, "ifap")
    assert set(several) == {"a", "b", "c"}
    assert alone.verdict == "worse"
    assert alone.p == several["a"].p
    assert 0.025 < alone.p < 0.05 < several["a"].p_holm
    assert several["a"].verdict == "no difference at this n"
    assert several["c"].verdict == "worse"
    assert several["a"].mean == alone.mean


def test_comparisons_without_a_p_value_do_not_weigh():
    both = own.compare({"ifap": IFAP, "a": LOWER, "b": {0: 1.0}}, "ifap")
    assert both["a"].p_holm == both["a"].p
    assert both["b"].verdict == own.ONE_SEED


def frame(rows):
    columns = ["task", "dataset", "model", "method", "seed", "target_kind", "target", "test_metric"]
    return pd.DataFrame([("classification", "digits", "net", *row) for row in rows], columns=columns)


def test_runs_are_compared_at_the_same_target_only():
    rows = [("baseline", seed, None, None, 95.0) for seed in IFAP]
    for seed in IFAP:
        rows += [("ifap", seed, "macs", 0.6, IFAP[seed]), ("ifap_m30", seed, "macs", 0.3, 93.0 + 0.1 * seed)]
        rows += [("rigl", seed, "macs", 0.6, LOWER[seed]), ("rigl_m30", seed, "macs", 0.3, 92.0 + 0.3 * seed)]
        rows += [("lth", seed, "params", 0.6, 50.0 + seed)]
    lines = {"ifap": "ifap", "ifap_m30": "ifap", "rigl": "rigl", "rigl_m30": "rigl", "lth": "lth"}
    found = own.compare_runs(frame(rows), lines)
    named = {key[-1]: difference for key, difference in found.items()}
    assert named == {
        "rigl": own.paired(LOWER, IFAP),
        "rigl_m30": own.paired({s: 92 + 0.3 * s for s in IFAP}, {s: 93 + 0.1 * s for s in IFAP}),
        "lth": own.Difference(0, None, None, None, None, None, "no common seed: no statement"),
    }
    assert next(iter(found))[:5] == ("classification", "digits", "net", "macs", 0.6)


def test_no_runs_make_no_comparisons():
    assert own.compare_runs(frame([]), {}) == {}
