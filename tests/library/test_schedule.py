"""The schedule of the paper, and rho_0 solved for a wanted share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ifap
from ifap.schedule import rate, share_left, solve_rho_0


def test_published_constants_leave_a_fifth_of_a_percent():
    left = share_left(1, 30, 0.10, 1.5)
    assert left == pytest.approx(math.prod(1 - 0.1 * (1 + k / 30) ** 1.5 for k in range(1, 31)))
    assert round(100 * left, 1) == 0.2


def test_rate_grows_and_never_exceeds_one():
    rates = [rate(k, 30, 0.05, 1.5) for k in range(1, 31)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.05 * 2**1.5)
    assert rate(30, 30, 0.9, 1.5) == 1.0


@given(st.floats(0.01, 0.999), st.integers(1, 40), st.integers(0, 39), st.floats(0, 3))
def test_solved_rho_0_leaves_what_is_asked(left, steps, done, alpha):
    step = 1 + done % steps
    rho_0 = solve_rho_0(left, step, steps, alpha)
    assert 0 <= rho_0 <= 1
    assert share_left(step, steps, rho_0, alpha) == pytest.approx(left, abs=1e-6)


def test_removing_in_stages_leaves_the_same_as_at_once():
    rho_0, left = solve_rho_0(0.35, 1, 10, 1.5), 1.0
    for k in range(1, 11):
        left *= 1 - rate(k, 10, rho_0, 1.5)
    assert left == pytest.approx(0.35)


def test_far_more_iterations_than_units_end_in_time():
    network = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    x = torch.randn(8, 4)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=10**6, method="magnitude")
    assert 1 < len(pruned.receipts) <= 10
