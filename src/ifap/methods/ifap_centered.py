"""Flow without what is constant: a unit that always says the same can be replaced by a bias."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.flow import Normalize, Site, flow_scores
from ifap.methods import METHODS


@METHODS.register("ifap_centered")
def centered_flow(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: Normalize,
    site: Site,
    seed: int,
    graph: Graph | None = None,
) -> dict[str, Tensor]:
    """Score units by their flow after the mean activation is taken off; `seed` is not used.

    The mean runs over samples and positions. The mean probability of an attention head is that of
    uniform attention, so that what counts is how far a head is from looking everywhere alike.
    """
    return flow_scores(model, batches, normalize=normalize, site=site, statistic="centered", graph=graph)
