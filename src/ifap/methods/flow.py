"""Flow to the output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ifap.axes.units import Graph
from ifap.fisher import unit_fisher
from ifap.methods import METHODS
from ifap.methods.base import defaults
from ifap.ranking import Floats


@METHODS.register("flow")
@defaults(steps=1, compensate=True, per_cost=True)
def flow_to_output(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> Floats:
    """Score units by the KL divergence that replacing each by its mean is expected to cost."""
    return unit_fisher(model, graph, batches, seed=seed)
