"""The same share of every layer, whatever its weights: the widths of a smaller network of the same shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.methods import METHODS
from ifap.methods.units import spread


@METHODS.register("uniform")
def uniform(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score unit i of n of a group (one width of the network) by (i + 1/2) / n; only `graph` is used."""
    sizes = graph.units_per_group()
    order = np.argsort(graph.group_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
    rank = np.empty(graph.num_units)
    rank[order] = np.arange(graph.num_units) - starts[graph.group_of[order]]
    return spread(graph, (rank + 0.5) / np.maximum(sizes, 1)[graph.group_of], pinned=1.0)
