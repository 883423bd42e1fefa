"""Options of `ifap.prune`, and helpers for the functions that it is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ifap.arguments import shown
from ifap.errors import ConfigError
from ifap.plan import Plan
from ifap.ranking import Aggregate
from ifap.results import Receipt, Target
from ifap.scores.flow import Normalize, Site

Recover = Callable[[nn.Module, nn.Module, int], object]
Validate = Callable[[nn.Module], float]
Pace = Literal["units", "macs"] | Sequence[float]
OnStep = Callable[[nn.Module, "Receipt"], None]
OnPhase = Callable[[str, int], None]
"""Called with what begins, such as ``score``, and the number of the iteration."""


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
    pace: Literal["units", "macs"]
    shares: tuple[float, ...] | None
    keep_embeddings: bool
    compensate: bool
    units: str
    outputs: tuple[str, ...] | None
    prove: bool
    method: str
    uniform: bool


def name_of_metric(validate: Validate) -> str:
    """Return the name of the metric of a function: its attribute ``metric``, or its own name."""
    name = str(getattr(validate, "metric", None) or getattr(validate, "__name__", "metric"))
    return name if name.isprintable() and "<" not in name else "metric"


def metric_of(found: Any) -> float:
    """Return what a user's `validate` returned as a number."""
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"validate must return a number, not {shown(found)}") from error


def fell_too_far(start: float | None, metric: float | None, max_drop: float | None) -> bool:
    """Return whether a metric fell by more than is allowed, or is not a number."""
    if max_drop is None or metric is None or start is None:
        return False
    if math.isnan(start):
        raise ConfigError("max_drop: validate returns nan for the unpruned network, so that no fall can be seen")
    return not metric >= start - max_drop


class Clock:
    """Seconds per phase of one iteration, each announced as it begins."""

    def __init__(self, on_phase: OnPhase | None = None, step: int = 0) -> None:
        self.seconds: dict[str, float] = {}
        self._on_phase, self._step = on_phase, step

    def announce(self, phase: str) -> None:
        """Say that a phase begins."""
        if self._on_phase is not None:
            self._on_phase(phase, self._step)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and add the time of the block to it; a block that raises adds none."""
        self.announce(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
