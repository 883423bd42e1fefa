"""Score what has units: every layer with weights, every weight outside a layer, and heads as a whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Floats, Graph
from ifap.layers import modules_by_name, unit_weights
from ifap.scores.heads import head_weights, replace_heads
from ifap.scores.weights import is_weighted, weights_alone

Score = Callable[[str, Tensor], Tensor]
"""Name of a layer or weight, and its weights with one row an output, to one score a row."""


def map_units(model: nn.Module, graph: Graph, score: Score) -> dict[str, Tensor]:
    """Score the outputs of each convolution, linear layer and weight outside a layer.

    `score` returns one score a row of a weight. The keys are those of `ifap.flow_scores`.
    """
    layers = {name: unit_weights(m) for name, m in modules_by_name(model).items() if is_weighted(m)}
    return {name: score(name, rows) for name, rows in {**layers, **weights_alone(model, graph)}.items()}


def with_heads(model: nn.Module, graph: Graph, scores: dict[str, Tensor], normalize: str) -> dict[str, Tensor]:
    """Give heads the summed norms of their query, key and value weights, after all else is normalised."""
    scores = by_layer_mean(scores, normalize)
    heads = head_weights(model, graph)
    if normalize == "layer":
        heads = [value / value.mean().clamp_min(1e-30) for value in heads]
    return replace_heads(graph, scores, heads)


def by_layer_mean(scores: dict[str, Tensor], normalize: str) -> dict[str, Tensor]:
    """Divide each layer's scores by their mean if `normalize` is ``'layer'``; else leave them as they are."""
    if normalize != "layer":
        return scores
    return {name: value / value.mean().clamp_min(1e-30) for name, value in scores.items()}


def spread(graph: Graph, values: Floats, *, pinned: float) -> dict[str, Tensor]:
    """Give every position that a weight makes the value of its unit: the reverse of `ifap.ranking.unit_scores`.

    `values` has one value a unit; positions that belong to no unit get `pinned`. The keys are those of `map_units`.
    """
    padded = np.append(values, pinned)  # the unit -1 of a pinned position is the last entry
    return {name: torch.from_numpy(padded[graph.unit_of[slot]]) for slot, name in graph.weight_slots()}
