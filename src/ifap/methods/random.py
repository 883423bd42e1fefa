"""Random scores: the control that any method must beat."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.methods import METHODS
from ifap.methods.units import map_units
from ifap.scores.heads import replace_heads


@METHODS.register("random")
def random(
    model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int, graph: Graph
) -> dict[str, Tensor]:
    """Score units by uniform random numbers that depend on `seed` and the layer's name alone."""

    def draw(name: str, units: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        return torch.rand(units, generator=generator)

    scores = map_units(model, graph, lambda name, rows: draw(name, len(rows)))
    calls = zip(graph.structure.attention, graph.heads, strict=True)
    return replace_heads(graph, scores, [draw(call.module, len(set(units[units >= 0]))) for call, units in calls])
