"""The scale of the batch norm that follows (network slimming, Liu et al. 2017; a control).

Liu et al. train with an L1 penalty on the scales first; here they are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from ifap.axes.units import Graph
from ifap.forward import evaluation_mode
from ifap.methods import METHODS
from ifap.methods.units import map_units, with_heads
from ifap.scores.flow import forwards
from ifap.scores.weights import is_weighted


@METHODS.register("bn_scale")
def bn_scale(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score units by abs(gamma) of the batch norm that reads the layer's output; only `normalize` is used.

    Layers that no batch norm reads directly, and heads, get the norm of their weights, as in
    `magnitude`: comparable with the others only with ``normalize='layer'``.
    """
    norms = _norms_that_follow(model, batches)

    def score(name: str, rows: Tensor) -> Tensor:
        return (
            norms[name].weight.detach().float().abs()
            if name in norms
            else torch.linalg.vector_norm(rows.float(), dim=1)
        )

    return with_heads(model, graph, map_units(model, graph, score), normalize)


def _norms_that_follow(model: nn.Module, batches: Iterable[Any]) -> dict[str, _BatchNorm]:
    """Return for each layer the batch norm, with a scale, that reads its output; one batch is run."""
    found: dict[str, _BatchNorm] = {}
    made, handles = WeakIdKeyDictionary(), []

    def remember(name: str) -> Any:
        return lambda _module, _args, output: made.__setitem__(output, name)

    def look_up(module: _BatchNorm, args: tuple[Any, ...]) -> None:
        if args and args[0] in made:
            found[made[args[0]]] = module

    for name, module in model.named_modules():
        if is_weighted(module):
            handles.append(module.register_forward_hook(remember(name)))
        elif isinstance(module, _BatchNorm) and module.weight is not None:
            handles.append(module.register_forward_pre_hook(look_up))
    try:
        with evaluation_mode(model), torch.no_grad():
            next(forwards(model, batches))
    finally:
        for handle in handles:
            handle.remove()
    return found
