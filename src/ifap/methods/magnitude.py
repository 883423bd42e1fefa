"""L2 magnitude: the norm of the weights of a unit, without any data (a control)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ifap.attention import head_weight_norms
from ifap.layers import weight_norms
from ifap.methods import METHODS
from ifap.methods.units import by_layer_mean, map_units


@METHODS.register("magnitude")
def magnitude(model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int) -> dict[str, Tensor]:
    """Score units by the L2 norm of their weights; only `normalize` is used.

    ``'volume'`` has no meaning without activations and leaves the scores as they are.
    """
    scores = map_units(model, layer=lambda _, module: weight_norms(module), heads=lambda _, m: head_weight_norms(m))
    return by_layer_mean(scores, normalize)
