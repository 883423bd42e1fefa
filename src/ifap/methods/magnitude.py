"""L2 magnitude: the norm of the weights of a unit, without any data (a control)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.methods import METHODS
from ifap.methods.units import map_units, with_heads


@METHODS.register("magnitude")
def magnitude(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score units by the L2 norm of their weights; only `normalize` is used.

    ``'volume'`` has no meaning without activations and leaves the scores as they are.
    """
    scores = map_units(model, graph, lambda _, rows: torch.linalg.vector_norm(rows.float(), dim=1))
    return with_heads(model, graph, scores, normalize)
