"""Structured Wanda (Sun et al. 2023, as FLAP's authors extend it to channels and heads).

A weight counts for ``abs(W_ij) ||x_j||``; an input channel for the mean of that over the outputs; a head for the sum
over its channels. The same share of each width goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.pretrained.cutting import by_score, by_unit, read_channels, within_groups
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.axes.units import Floats, Graph
from ifap.layers import modules_by_name, weight_by_group
from ifap.methods.units import spread


def wanda_structured(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score units by Wanda's product, and rank them within each width."""
    return spread(graph, within_groups(graph, products(model, graph, batches)), pinned=1.0)


def products(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> Floats:
    """Return for each unit the mean abs(W) that reads it times the root mean square of what is read, added up."""
    modules, totals = modules_by_name(model), np.zeros(graph.num_units)
    for name, units, mean, variance, _ in read_channels(model, graph, batches):
        values = _mean_sizes(modules[name]) * (variance + mean.square()).sqrt()
        totals += by_unit(graph, units, values)[0]
    return totals


def _mean_sizes(module: Any) -> Tensor:
    """Return the mean absolute weight that reads each input channel: shape (inputs,)."""
    return weight_by_group(module).double().abs().mean(dim=(1, 3)).flatten()


RIVALS.register("wanda_structured")(
    Rival(by_score(wanda_structured), "Wanda, structured, the same share of each width", ("transformer",))
)
