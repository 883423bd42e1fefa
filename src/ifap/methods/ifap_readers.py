"""Flow into the layers that read a unit, per cost: what the rest of the network would miss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap import compensate as readers
from ifap.axes.units import Graph
from ifap.flow import Normalize, Site
from ifap.layers import modules_by_name
from ifap.methods import METHODS
from ifap.methods.units import spread
from ifap.ranking import Budget, Floats, unit_costs


@METHODS.register("ifap_readers")
def flow_into_readers(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: Normalize,
    site: Site,
    seed: int,
    graph: Graph,
) -> dict[str, Tensor]:
    """Score units by the share of what other layers read that comes from them; of the options none is used.

    To a layer that reads it, unit c brings the energy ``E[x_c^2] ||W_c||^2``, with W_c the weights that read it: the
    activation norm times the weight norm of `ifap.flow_scores`, squared, on the other side of the connection. Shares
    of each layer's energy are added up over the layers; their root, the flow, is divided by the root of the MACs
    that the network loses with the unit.
    """
    lost = unit_costs(graph, Budget(graph))
    costs = (lost / max(lost.mean(), 1.0) if len(lost) else lost).clip(min=1e-3)
    scores = np.sqrt(_shares(model, graph, batches) / costs)
    return {name: value.float() for name, value in spread(graph, scores, pinned=1.0).items()}


def _shares(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> Floats:
    """Return for each unit the energy that it brings to its readers, in shares of all that each reads."""
    modules, units = modules_by_name(model), readers.readers(model, graph)
    totals = np.zeros(graph.num_units)
    for name, mean in readers.mean_squares(model, batches, units).items():
        energy = mean.cpu() * readers.reading_norms(modules[name]).cpu()
        share = (energy / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)).numpy()
        can_go = units[name] >= 0
        np.add.at(totals, units[name][can_go], share[can_go])
    return totals
