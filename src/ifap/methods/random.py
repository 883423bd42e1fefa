"""Random scores: the control that any method must beat."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifap.attention import num_heads
from ifap.layers import sides
from ifap.methods import METHODS
from ifap.methods.units import map_units


@METHODS.register("random")
def random(model: nn.Module, batches: Iterable[Any], *, normalize: str, site: str, seed: int) -> dict[str, Tensor]:
    """Score units by uniform random numbers that depend on `seed` and the layer's name alone."""

    def draw(name: str, units: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        return torch.rand(units, generator=generator)

    return map_units(
        model,
        layer=lambda name, module: draw(name, sides(module)["out"]),
        heads=lambda name, module: draw(name, num_heads(module)),
    )
