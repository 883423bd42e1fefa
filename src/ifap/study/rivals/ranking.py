"""Exact choices of the largest values: by index, never by threshold, so that counts are met and ties are settled."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ifap.seeds import derive_seed
from ifap.study.rivals.base import Masks
from ifap.study.rivals.density import Prices


def top(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest scores; of equal ones the first in memory win."""
    flat = scores.flatten()
    if not 0 < count < len(flat):
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    # Selecting takes a fraction of the time of sorting, and some methods choose in every step.
    last = flat.kthvalue(len(flat) - count + 1).values
    mask = flat > last
    mask[(flat == last).nonzero().flatten()[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


def affordable(magnitudes: Mapping[str, Tensor], alive: Masks, priced: Prices, goal: float, floor: float = 0.0) -> int:
    """Return how many of the largest weights of all layers together cost no more than `goal`.

    `magnitudes` are absolute weights, and `alive` says which of them may be kept. For `floor` see `global_top`.
    """
    counts = {name: int(alive[name].sum()) for name in magnitudes}
    total = sum(counts.values())
    # A cost is whole numbers up to rounding far below one weight.
    allowed = goal + 1e-6 * priced.whole / max(1, total) - priced.fixed
    price = max(priced.each[name] for name in magnitudes)
    if price > 0 and all(priced.each[name] == price for name in magnitudes):
        # Nothing to rank, which takes minutes for a hundred million weights.
        return max(0, min(total, math.floor(allowed / price)))
    each = torch.cat([torch.full((counts[name],), priced.each[name], dtype=torch.float64) for name in magnitudes])
    ranked = _ranked(magnitudes, alive, floor)
    return int((each[ranked.cpu()].cumsum(0) <= allowed).sum())


def global_top(magnitudes: Mapping[str, Tensor], alive: Masks, count: int, floor: float = 0.0) -> Masks:
    """Keep the `count` largest alive weights of all layers together.

    The largest of each layer come first, up to `floor`, a share of its size. Layers whose weights are
    small by their initialisation, such as depthwise convolutions, would vanish at modest targets and
    cut the network in two; `ifap.prune` has floors for the same reason.
    """
    pool, first = _pooled(magnitudes, alive, floor)
    spared = int(first.sum())
    if count <= spared:
        chosen = top(pool.masked_fill(~first, -torch.inf), count)
    else:
        chosen = first | top(pool.masked_fill(first, -torch.inf), count - spared)
    masks: Masks = {}
    parts = chosen.split([int(alive[name].sum()) for name in magnitudes])
    for name, part in zip(magnitudes, parts, strict=True):
        masks[name] = torch.zeros_like(alive[name]).masked_scatter_(alive[name], part)
    return masks


def regrow(weight: Tensor, gradient: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return a mask that lost its `count` smallest weights and gained as many positions of large gradient.

    Positions that were just dropped may be gained again; the number of kept weights stays.
    """
    active = int(mask.sum())
    none = torch.full_like(weight, -torch.inf)
    kept = top(torch.where(mask, weight.detach().abs(), none), active - count)
    return kept | top(torch.where(kept, none, gradient.detach().abs()), count)


def random_masks(shapes: Mapping[str, torch.Size], kept: Mapping[str, int], seed: int) -> Masks:
    """Return masks with so many random positions kept; they depend on `seed` and the layer's name alone."""
    masks = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "mask", name))
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask[torch.randperm(shape.numel(), generator=generator)[: kept[name]]] = True
        masks[name] = mask.view(shape)
    return masks


def _ranked(magnitudes: Mapping[str, Tensor], alive: Masks, floor: float) -> Tensor:
    """Return the alive positions of all layers together: first what no layer goes without, then the rest."""
    pool, first = _pooled(magnitudes, alive, floor)
    ranked = torch.argsort(pool, descending=True, stable=True)
    spared = first[ranked]
    return torch.cat([ranked[spared], ranked[~spared]])


def _pooled(magnitudes: Mapping[str, Tensor], alive: Masks, floor: float) -> tuple[Tensor, Tensor]:
    """Return the alive values of all layers together, and which of them no layer goes without."""
    pools = {name: value.detach()[alive[name]] for name, value in magnitudes.items()}
    first = torch.cat([top(pool, math.ceil(floor * alive[name].numel())) for name, pool in pools.items()])
    return torch.cat(list(pools.values())), first
