"""Flow per cost: of two units that carry the same, the more expensive one goes first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.flow import Normalize, Site, flow_scores
from ifap.methods import METHODS
from ifap.methods.units import spread
from ifap.ranking import Budget, unit_costs


@METHODS.register("ifap_cost")
def cost_flow(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: Normalize,
    site: Site,
    seed: int,
    graph: Graph,
) -> dict[str, Tensor]:
    """Score units by their flow over the MACs that the network loses with them; `seed` is not used.

    The MACs are those of everything that goes with a unit, in all coupled and reading layers, in
    multiples of their mean over the units of the network.
    """
    flow = flow_scores(model, batches, normalize=normalize, site=site, graph=graph)
    lost = unit_costs(graph, Budget(graph))
    mean = lost.mean() if len(lost) else 1.0
    # A unit without any MACs would be priceless: it counts as costing a thousandth of the mean.
    costs = spread(graph, (lost / max(mean, 1.0)).clip(min=1e-3), pinned=1.0)
    return {
        name: value / costs[name].to(value.device, torch.float32) if name in costs else value
        for name, value in flow.items()
    }
