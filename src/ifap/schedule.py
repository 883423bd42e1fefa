"""The schedule of the paper: iteration k of T removes rho_k = rho_0 (1 + k/T)^alpha of the remaining units.

The published constants (rho_0 = 0.10, T = 30, alpha = 1.5) would leave 0.2 % of the units, so
rho_0 is not a setting here: it is solved such that T iterations end on the wanted reduction.
"""

from __future__ import annotations

import math


def rate(step: int, steps: int, rho_0: float, alpha: float) -> float:
    """Return rho_k, the share of the remaining units that iteration `step` (1..`steps`) removes."""
    return min(1.0, rho_0 * (1.0 + step / steps) ** alpha)


def share_left(step: int, steps: int, rho_0: float, alpha: float) -> float:
    """Return the share of units that is left after iterations `step`..`steps`."""
    return math.prod(1.0 - rate(k, steps, rho_0, alpha) for k in range(step, steps + 1))


def solve_rho_0(left: float, step: int, steps: int, alpha: float) -> float:
    """Find rho_0 such that iterations `step`..`steps` leave the share `left` of the units.

    `left` is a share, in [0, 1], of the units that now remain. Iterations count from 1; `step` is the next one, and
    `steps` their number T. Bisection finds rho_0 to the last bit that matters.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if share_left(step, steps, middle, alpha) > left:
            low = middle
        else:
            high = middle
    return high
