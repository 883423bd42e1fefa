"""What `ifap.prune` is told: its options, and the functions that a user hands it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ifap.flow import Normalize, Site
from ifap.plan import Plan
from ifap.ranking import Aggregate
from ifap.results import Receipt, Target

Recover = Callable[[nn.Module, nn.Module, int], object]
Validate = Callable[[nn.Module], float]
Pace = Literal["units", "macs"]
OnStep = Callable[[nn.Module, "Receipt"], None]


@dataclass(frozen=True)
class Options:
    """The arguments of `ifap.prune` that say how it prunes."""

    target: Target | None
    like: Plan | None
    steps: int
    alpha: float
    normalize: Normalize
    site: Site
    aggregate: Aggregate
    min_units: int
    max_layer_ratio: float
    spatial_only: bool
    round_to: int | None
    max_drop: float | None
    seed: int
    teacher: Literal["original", "previous"]
    pace: Pace
    keep_embeddings: bool
    compensate: bool
    units: str
    outputs: tuple[str, ...] | None
    prove: bool


class Clock:
    """Seconds per phase of one iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def measure(self, phase: str, function: Callable[[], Any]) -> Any:
        """Run `function` and add its time to `phase`."""
        start = time.perf_counter()
        result = function()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result
