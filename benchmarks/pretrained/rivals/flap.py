"""FLAP (An et al. 2024): fluctuation of inputs times weights, standardised in each layer, and means into biases.

An input channel counts for ``Var[x_j] ||W_j||^2``, as a deviation from the mean of its layer in units of the layer's
spread; a head for the mean over its channels. Units are ranked over the whole network, and what a removed channel gives
on average goes into the bias of the layer that reads it, which gets one if it has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pretrained.case import Case
from benchmarks.pretrained.cutting import by_unit, cut, moments, read_channels
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.axes.units import Floats, Graph
from ifap.forward import private_copy
from ifap.layers import add_bias, modules_by_name
from ifap.methods.units import spread
from ifap.results import Pruned
from ifap.scores.reading import readers
from ifap.view import trace


def flap(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score units by standardised fluctuation; scores are moved so that none is negative."""
    values = fluctuations(model, graph, batches)
    return spread(graph, values - values.min(initial=0.0), pinned=1.0)


def fluctuations(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> Floats:
    """Return for each unit the mean standardised fluctuation of its channels, over all layers that read it."""
    totals, numbers = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for _, units, _, variance, norms in read_channels(model, graph, batches):
        metric = variance * norms
        summed, count = by_unit(graph, units, (metric - metric.mean()) / metric.std().clamp_min(1e-30))
        totals += summed
        numbers += count
    return totals / np.maximum(numbers, 1)


def _way(case: Case, share: float, *, compensate: bool) -> nn.Module:
    if compensate:
        return cut(case, share, flap, compensate=True).model
    model = with_biases(case)
    pruned = cut(case, share, flap, compensate=False, model=model)
    put_means(model, pruned, case.calibration)
    return pruned.model


def with_biases(case: Case) -> nn.Module:
    """Return a copy of the network in which linear layers that read units have a bias, of zeros where they had none."""
    model = private_copy(case.model)
    graph = trace(model, case.example, keep_embeddings=case.options.get("keep_embeddings", False))
    for each in readers(model, graph).values():
        if isinstance(each.layer, nn.Linear) and each.layer.bias is None and each.reads_any:
            add_bias(each.layer)
    return model


def put_means(model: nn.Module, pruned: Pruned, batches: Iterable[Any]) -> None:
    """Add to biases of the pruned network what the removed channels gave on average in the unpruned one."""
    before, after = modules_by_name(model), modules_by_name(pruned.model)
    lost = {
        name: np.setdiff1d(np.arange(before[name].weight.shape[1]), sides["in"])
        for name, sides in pruned.plan.kept.items()
        if "in" in sides and isinstance(before.get(name), nn.Linear)
    }
    for name, (mean, _) in moments(model, batches, {name: before[name] for name in lost}).items():
        gone = torch.from_numpy(lost[name])
        source, bias = before[name], after[name].bias
        added = source.weight.detach()[:, gone].double() @ mean[gone]
        kept = pruned.plan.kept[name].get("out")
        with torch.no_grad():
            bias += (added if kept is None else added[torch.tensor(kept)]).to(bias.dtype)


RIVALS.register("flap")(Rival(_way, "FLAP", ("transformer",)))
