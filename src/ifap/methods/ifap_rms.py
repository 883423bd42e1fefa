"""Flow by the second moment: rare strong activations count for more than in the mean of norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.flow import Normalize, Site, flow_scores
from ifap.methods import METHODS


@METHODS.register("ifap_rms")
def rms_flow(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: Normalize,
    site: Site,
    seed: int,
    graph: Graph | None = None,
) -> dict[str, Tensor]:
    """Score units by the root of the mean squared activation norm x the weight norm; `seed` is not used."""
    return flow_scores(model, batches, normalize=normalize, site=site, statistic="rms", graph=graph)
