"""First-order Taylor expansion of the loss in the weights (Molchanov et al. 2019; a control).

A layer's unit scores abs(sum of w * dL/dw over its weights), the mean over batches: how much the
loss would change, to first order, without the unit. Molchanov et al. square the sum, which orders
units alike within one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.state import State
from ifap.axes.tensors import named_tensors
from ifap.axes.units import Graph
from ifap.data import pairs, refuse_test
from ifap.errors import ScoreError
from ifap.forward import device_of, evaluation_mode, on_batch, placed, run_batch, scalar, to_device
from ifap.layers import unit_rows
from ifap.methods import METHODS
from ifap.methods.base import Loss
from ifap.methods.units import by_layer_mean
from ifap.scores.heads import replace_heads
from ifap.scores.weights import by_unit, is_weighted, rows_along


@METHODS.register("taylor")
def taylor(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: str,
    site: str,
    seed: int,
    graph: Graph,
    labelled: Iterable[tuple[Any, Any]] | None = None,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """Score units by abs(sum of weight x gradient); `batches`, `site` and `seed` are not used.

    Gradients are those of the network in evaluation mode. Layers that the loss does not depend on
    get no score, so that they stay.
    """
    if labelled is None or loss is None:
        missing = (
            "labelled=(batches of inputs and targets)" if labelled is None else "loss=(outputs, targets) -> scalar"
        )
        raise ScoreError(f"method 'taylor' needs labels and a loss: give {missing} to ifap.prune")
    refuse_test(labelled, "scoring")
    weights, rows = _weights(model, graph)
    totals: dict[str, Tensor] = {}
    number = 0
    for found in gradients(model, list(weights.values()), labelled, loss):
        products = {
            name: rows[name]((weight.detach() * gradient).float()).sum(dim=1)
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
            if gradient is not None
        }
        for name, value in _with_heads(graph, products).items():
            totals[name] = totals[name] + value if name in totals else value
        number += 1
    if not number:
        raise ScoreError("labelled data are empty: give at least one batch of inputs and targets")
    for name, value in totals.items():
        if not torch.isfinite(value).all():
            raise ScoreError(f"layer '{name}': gradients are not finite on the labelled data")
    return by_layer_mean({name: value / number for name, value in totals.items()}, normalize)


def gradients(
    model: nn.Module, weights: list[nn.Parameter], labelled: Iterable[tuple[Any, Any]], loss: Loss
) -> Iterable[tuple[Tensor | None, ...]]:
    """Yield the gradients of the loss of each batch; neither ``grad`` nor ``requires_grad`` is changed."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    where, state = device_of(model), State(model)
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for number, (inputs, targets) in enumerate(pairs(labelled, "labelled"), start=1):
            with evaluation_mode(model), torch.enable_grad():
                found = run_batch(model, placed(inputs, where, number, "labelled"), number, "labelled")
                with on_batch(number, "labelled"):
                    value = scalar(loss(found, to_device(targets, where)))
                yield torch.autograd.grad(value, weights, allow_unused=True)
            state.restore()
    finally:
        state.restore()
        for weight in frozen:
            weight.requires_grad_(False)


def _weights(model: nn.Module, graph: Graph) -> tuple[dict[str, nn.Parameter], dict[str, Callable[[Tensor], Tensor]]]:
    """Return the weights that make units, and what gives a tensor of the shape of each one row a unit."""
    weights: dict[str, nn.Parameter] = {}
    rows: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if is_weighted(module) and weight is not None:
            weights[name], rows[name] = weight, partial(unit_rows, module)
    tensors = named_tensors(model)
    for _, name, dim, key in graph.structure.producers:
        weight = tensors.get(name)
        if isinstance(weight, nn.Parameter):
            weights[key] = weight
            rows[key] = partial(rows_along, dim=dim)
    return weights, rows


def _with_heads(graph: Graph, products: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return abs(product) of each position; heads first add the signed products of all their positions up."""
    totals = np.abs(by_unit(graph, products))
    heads = [totals[list(dict.fromkeys(units[units >= 0].tolist()))] for units in graph.heads]
    scores = {name: value.abs() for name, value in products.items()}
    return replace_heads(graph, scores, [torch.from_numpy(values).float() for values in heads])
