"""First-order Taylor expansion of the loss in the weights (Molchanov et al. 2019; a control).

A layer's unit scores abs(sum of w * dL/dw over its weights), the mean over batches: how much the
loss would change, to first order, without the unit. Molchanov et al. square the sum, which orders
units alike within one batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifap.attention import num_heads, projection_layers
from ifap.errors import ScoreError
from ifap.layers import is_conv, unit_rows
from ifap.methods import METHODS
from ifap.methods.base import Loss
from ifap.methods.units import by_layer_mean, map_units
from ifap.splits import refuse_test
from ifap.tracing import call, device_of, evaluation_mode, to_device


@METHODS.register("taylor")
def taylor(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: str,
    site: str,
    seed: int,
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
    weights = {
        module: module.get_parameter("weight")
        for module in model.modules()
        if is_conv(module) or isinstance(module, nn.Linear)
    }
    totals: dict[str, Tensor] = {}
    number = 0
    for gradients in _gradients(model, list(weights.values()), labelled, loss):
        products = {
            module: unit_rows(module, (weight.detach() * gradient).float()).sum(dim=1)
            for (module, weight), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
        for name, value in _by_unit(model, products).items():
            totals[name] = totals[name] + value if name in totals else value
        number += 1
    if not number:
        raise ScoreError("labelled data are empty: give at least one batch of inputs and targets")
    for name, value in totals.items():
        if not torch.isfinite(value).all():
            raise ScoreError(f"layer '{name}': gradients are not finite on the labelled data")
    return by_layer_mean({name: value / number for name, value in totals.items()}, normalize)


def _gradients(
    model: nn.Module, weights: list[nn.Parameter], labelled: Iterable[tuple[Any, Any]], loss: Loss
) -> Iterable[tuple[Tensor | None, ...]]:
    """Yield the gradients of the loss of each batch; neither ``grad`` nor ``requires_grad`` is changed."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    where = device_of(model)
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for inputs, targets in labelled:
            with evaluation_mode(model), torch.enable_grad():
                value = loss(call(model, to_device(inputs, where)), to_device(targets, where))
                yield torch.autograd.grad(value, weights, allow_unused=True)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _by_unit(model: nn.Module, products: dict[nn.Module, Tensor]) -> dict[str, Tensor]:
    """Return abs(product) of each unit from the signed products of output positions; heads sum over theirs."""
    nothing = torch.empty(0)

    def heads(_: str, module: nn.Module) -> Tensor:
        parts = projection_layers(module) or [module.qkv]
        if any(part not in products for part in parts):
            return nothing
        signed = [products[part] for part in parts]  # type: ignore[index]
        if len({len(part) for part in signed}) > 1:  # grouped queries go with the keys and values that they share
            by_head = [part.unflatten(0, (num_heads(module), -1)).sum(dim=1) for part in signed]
            return torch.stack(by_head).sum(dim=0).abs()
        return torch.cat(signed).unflatten(0, (3, num_heads(module), -1)).sum(dim=(0, 2)).abs()

    def layer(_: str, module: nn.Module) -> Tensor:
        return products[module].abs() if module in products else nothing

    return {name: value for name, value in map_units(model, layer=layer, heads=heads).items() if len(value)}
