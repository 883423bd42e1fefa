"""Visit what has units: every layer with weights, and every attention module as a set of heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ifap.attention import fused_attention, head_dim, num_heads, projection_layers, projections
from ifap.graph import Graph
from ifap.layers import is_conv, modules_by_name, sides
from ifap.ranking import Floats

Score = Callable[[str, nn.Module], Tensor]


def map_units(model: nn.Module, *, layer: Score, heads: Score) -> dict[str, Tensor]:
    """Score each layer and each attention module of a network that is being pruned.

    Parameters
    ----------
    model : nn.Module
        The network.
    layer : callable
        ``layer(name, module)`` returns one score an output unit of a convolution or linear layer.
    heads : callable
        ``heads(name, module)`` returns one score a head of an attention module.

    Returns
    -------
    dict of str to Tensor
        The keys of `ifap.flow_scores`.
    """
    fused = fused_attention(model)
    inside: set[nn.Module] = set()
    scores: dict[str, Tensor] = {}
    for name, module in modules_by_name(model).items():
        if projection_layers(module):
            inside.update(projection_layers(module))
            scores[name] = heads(name, module)
        elif name in fused:
            inside.add(module.qkv)
            scores[name] = heads(name, module)
        elif module not in inside and (is_conv(module) or isinstance(module, nn.Linear)):
            scores[name] = layer(name, module)
    return scores


def by_layer_mean(scores: dict[str, Tensor], normalize: str) -> dict[str, Tensor]:
    """Divide each layer's scores by their mean if `normalize` is ``'layer'``; else leave them as they are."""
    if normalize != "layer":
        return scores
    return {name: value / value.mean().clamp_min(1e-30) for name, value in scores.items()}


def spread(graph: Graph, model: nn.Module, values: Floats, *, pinned: float) -> dict[str, Tensor]:
    """Give every scored layer the values of the units that it produces: the reverse of `unit_scores`.

    Parameters
    ----------
    graph : Graph
        The units of `model`.
    model : nn.Module
        The network as it is.
    values : array, shape (units,)
        One value a unit.
    pinned : float
        The value of positions that belong to no unit.

    Returns
    -------
    dict of str to Tensor
        As `map_units`.
    """
    padded = np.append(values, pinned)  # the unit -1 of a pinned position is the last entry

    def positions(name: str, width: int) -> Tensor:
        slot = graph.slot(name, "out")
        units = np.full(width, -1) if slot is None else graph.unit_of[slot]
        return torch.from_numpy(padded[units])

    def heads(name: str, module: nn.Module) -> Tensor:
        # A head is one unit, so that its first position in one projection speaks for it.
        parts = projections(module)
        layer = f"{name}.qkv" if parts is None else f"{name}.{parts.value}"
        width = head_dim(module)
        return positions(layer, 3 * num_heads(module) * width)[::width][: num_heads(module)]

    return map_units(model, layer=lambda name, module: positions(name, sides(module)["out"]), heads=heads)
