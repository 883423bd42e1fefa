"""The calls of `ifap.prune` that all score-based ways share, and the parts that several rivals need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ifap
from benchmarks.pretrained.case import Case, Way
from ifap.axes.tensors import named_tensors
from ifap.axes.units import Floats, Graph
from ifap.forward import Inputs
from ifap.methods import AnyMethod
from ifap.methods.taylor import gradients
from ifap.results import Pruned
from ifap.scores.energies import reading_norms
from ifap.scores.moments import averages
from ifap.scores.reading import readers
from ifap.study.methods.flows import relative_costs


def cut(
    case: Case,
    share: float,
    method: str | AnyMethod,
    *,
    compensate: bool,
    steps: int | None = 1,
    model: nn.Module | None = None,
    **options: Any,
) -> Pruned:
    """Prune a case by a method of `ifap`.

    Parameters
    ----------
    case : Case
        Network and data.
    share : float
        Of the MACs, to remove.
    method : str or callable
        See `ifap.prune`.
    compensate : bool
        Whether our compensation comes before each cut.
    steps : int, optional
        Iterations; None for what the method does by default.
    model : nn.Module, optional
        In place of the case's network.
    **options
        More of `ifap.prune`.
    """
    return ifap.prune(
        case.model if model is None else model,
        case.example,
        case.calibration,
        target=ifap.Target(macs=share),
        steps=steps,
        method=method,
        compensate=compensate,
        labelled=case.labelled,
        loss=case.loss,
        **case.options,
        **options,
    )


def by_score(method: str | AnyMethod, *, steps: int | None = 1) -> Way:
    """Return the way that cuts by the scores of a method."""

    def way(case: Case, share: float, *, compensate: bool) -> nn.Module:
        return cut(case, share, method, compensate=compensate, steps=steps).model

    return way


def within_groups(graph: Graph, values: Floats) -> Floats:
    """Return the rank of each unit among those of its width, from 0 to 1: the same share of each width goes."""
    found = np.empty(graph.num_units)
    for group in range(len(graph.groups)):
        members = np.flatnonzero(graph.group_of == group)
        order = np.argsort(values[members], kind="stable")
        found[members[order]] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    return found


def per_mac(graph: Graph, values: Floats) -> Floats:
    """Return values divided by the MACs that the network loses with a unit, relative to their mean."""
    return values / relative_costs(graph)


def read_channels(
    model: nn.Module, graph: Graph, batches: Iterable[Inputs]
) -> Iterator[tuple[str, np.ndarray[Any, Any], Tensor, Tensor, Tensor]]:
    """Yield for each layer that reads units what it sees of them.

    Yields
    ------
    (str, array, Tensor, Tensor, Tensor)
        Its name; the unit of each input channel, -1 where none can go; mean and variance of the channel over samples
        and positions; the squared norm of the weights that read it. Double precision.
    """
    read_by = {name: each for name, each in readers(model, graph).items() if each.reads_any}
    layers = {name: each.layer for name, each in read_by.items()}
    for name, (mean, variance) in moments(model, batches, layers).items():
        yield name, read_by[name].units, mean, variance, reading_norms(layers[name]).cpu()


def moments(model: nn.Module, batches: Iterable[Inputs], layers: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance over samples and positions of each input channel of layers."""
    found = averages(
        model, batches, layers, lambda rows: torch.stack([rows.double().sum(dim=0), rows.double().square().sum(dim=0)])
    )
    return {name: (mean, (square - mean.square()).clamp_min(0)) for name, (mean, square) in found.items()}


def by_unit(graph: Graph, units: np.ndarray[Any, Any], values: Tensor) -> tuple[Floats, Floats]:
    """Return for each unit the sum of the values of its channels, and their number."""
    free, totals = units >= 0, np.zeros(graph.num_units)
    np.add.at(totals, units[free], values.numpy()[free])
    numbers = np.bincount(units[free], minlength=graph.num_units).astype(np.float64)
    return totals, numbers


def first_order(model: nn.Module, graph: Graph, labelled: Iterable[tuple[Inputs, Tensor]], loss: Any) -> Floats:
    """Return for each unit the sum of abs(weight x gradient) over all weights that go with it.

    The gradient is that of the mean loss over the batches. Weights that make a unit, that read it and that only scale
    it count alike.
    """
    tensors = {name: tensor for name, tensor in named_tensors(model).items() if isinstance(tensor, nn.Parameter)}
    places = [
        (place, units)
        for found, units in zip(graph.structure.places, graph.unit_of, strict=True)
        for place in found
        if place.tensor in tensors and (units >= 0).any()
    ]
    names = sorted({place.tensor for place, _ in places})
    means = mean_gradients(model, [tensors[name] for name in names], labelled, loss)
    products = {
        name: (tensors[name].detach() * gradient).abs().double() for name, gradient in zip(names, means, strict=True)
    }
    totals = np.zeros(graph.num_units)
    for place, units in places:
        values = products[place.tensor].movedim(place.dim, 0).reshape(len(units), -1).sum(dim=1)
        totals += by_unit(graph, units, values)[0]
    return totals


def mean_gradients(
    model: nn.Module, weights: list[nn.Parameter], labelled: Iterable[tuple[Inputs, Tensor]], loss: Any
) -> list[Tensor]:
    """Return the gradients of the mean loss over batches; ``grad`` and ``requires_grad`` are as before."""
    totals, number = [torch.zeros_like(weight) for weight in weights], 0
    for found in gradients(model, weights, labelled, loss):
        for total, gradient in zip(totals, found, strict=True):
            if gradient is not None:
                total += gradient
        number += 1
    return [total / max(number, 1) for total in totals]
