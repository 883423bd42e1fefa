"""Variants of the paper's flow that the study recorded: other statistics, per cost, and seen from who reads a unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Floats, Graph
from ifap.methods import METHODS
from ifap.methods.units import spread
from ifap.ranking import Budget, unit_costs
from ifap.scores.energies import energy_shares
from ifap.scores.flow import Normalize, Site, flow_scores

Scores = dict[str, Tensor]
Batches = Iterable[Any]


@METHODS.register("ifap_rms")
def rms_flow(
    model: nn.Module, batches: Batches, *, normalize: Normalize, site: Site, seed: int, graph: Graph | None = None
) -> Scores:
    """Score units by the root of the mean squared activation norm x the weight norm; `seed` is not used.

    Rare strong activations count for more than in the mean of norms.
    """
    return flow_scores(model, batches, normalize=normalize, site=site, statistic="rms", graph=graph)


@METHODS.register("ifap_centered")
def centered_flow(
    model: nn.Module, batches: Batches, *, normalize: Normalize, site: Site, seed: int, graph: Graph | None = None
) -> Scores:
    """Score units by their flow after the mean activation is taken off; `seed` is not used.

    A unit that always says the same can be replaced by a bias. The mean runs over samples and positions. The mean
    probability of an attention head is that of uniform attention, so that what counts is how far a head is from
    looking everywhere alike.
    """
    return flow_scores(model, batches, normalize=normalize, site=site, statistic="centered", graph=graph)


@METHODS.register("ifap_cost")
def cost_flow(
    model: nn.Module, batches: Batches, *, normalize: Normalize, site: Site, seed: int, graph: Graph
) -> Scores:
    """Score units by their flow over the MACs that the network loses with them; `seed` is not used.

    The MACs are those of everything that goes with a unit, in all coupled and reading layers, in multiples of their
    mean over the units of the network.
    """
    flow = flow_scores(model, batches, normalize=normalize, site=site, graph=graph)
    costs = spread(graph, relative_costs(graph), pinned=1.0)
    return {
        name: value / costs[name].to(value.device, torch.float32) if name in costs else value
        for name, value in flow.items()
    }


@METHODS.register("ifap_readers")
def flow_into_readers(
    model: nn.Module, batches: Batches, *, normalize: Normalize, site: Site, seed: int, graph: Graph
) -> Scores:
    """Score units by the share of what other layers read that comes from them; of the options none is used.

    To a layer that reads it, unit c brings the energy ``E[x_c^2] ||W_c||^2``, with W_c the weights that read it: the
    activation norm times the weight norm of `ifap.flow_scores`, squared, on the other side of the connection. Shares
    of each layer's energy are added up over the layers; their root, the flow, is divided by the root of the MACs
    that the network loses with the unit.
    """
    scores = np.sqrt(np.nan_to_num(energy_shares(model, graph, batches)) / relative_costs(graph))
    return {name: value.float() for name, value in spread(graph, scores, pinned=1.0).items()}


def relative_costs(graph: Graph) -> Floats:
    """Return the MACs that go with each unit in multiples of their mean; a unit without any would be priceless."""
    lost = unit_costs(graph, Budget(graph))
    return (lost / max(lost.mean() if len(lost) else 1.0, 1.0)).clip(min=1e-3)
