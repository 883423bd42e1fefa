"""IFAP: flow, the product of activation norm and weight norm (the paper's method)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.methods import METHODS
from ifap.scores.flow import Normalize, Site, flow_scores


@METHODS.register("ifap")
def flow(
    model: nn.Module, batches: Iterable[Any], *, normalize: Normalize, site: Site, seed: int, graph: Graph | None = None
) -> dict[str, Tensor]:
    """Score units by their flow; `seed` is not used."""
    return flow_scores(model, batches, normalize=normalize, site=site, graph=graph)
