"""LLM-Pruner's first-order score (Ma et al. 2023): abs(weight x gradient) over everything that a unit takes along.

*Local* is the paper's own allocation: the same share of each width, without the first three blocks and the last one.
*Global* ranks all units of the network together, each per MAC that goes with it, which the paper does not do and which
makes it stronger.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.pretrained.cutting import by_score, first_order, per_mac, within_groups
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.axes.units import Floats, Graph
from ifap.methods.base import Loss
from ifap.methods.units import spread

KEPT_FIRST, KEPT_LAST = 3, 1
_BLOCK = re.compile(r"\.(\d+)\.")


def local(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: str,
    site: str,
    seed: int,
    graph: Graph,
    labelled: Iterable[tuple[Any, Any]],
    loss: Loss,
) -> dict[str, Tensor]:
    """Rank units within each width, the widths of the outer blocks last of all."""
    values = within_groups(graph, first_order(model, graph, labelled, loss))
    return spread(graph, values + np.isin(graph.group_of, outer(graph)), pinned=1.0)


def over_all(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: str,
    site: str,
    seed: int,
    graph: Graph,
    labelled: Iterable[tuple[Any, Any]],
    loss: Loss,
) -> dict[str, Tensor]:
    """Rank all units together, by what they are worth per MAC."""
    return spread(graph, _scaled(per_mac(graph, first_order(model, graph, labelled, loss))), pinned=1.0)


def _scaled(values: Floats) -> Floats:
    return values / max(float(values.mean()), 1e-30)


def outer(graph: Graph) -> list[int]:
    """Return the groups of the first three blocks and the last one, by the first number in the name of each."""
    numbers = {
        group.index: int(found.group(1)) for group in graph.groups if (found := _BLOCK.search(f".{group.name}."))
    }
    last = max(numbers.values(), default=0)
    return [group for group, number in numbers.items() if number < KEPT_FIRST or number > last - KEPT_LAST]


RIVALS.register("llm_pruner_local")(
    Rival(by_score(local), "LLM-Pruner's Taylor, the same share of each width", ("transformer",))
)
RIVALS.register("llm_pruner_global")(
    Rival(by_score(over_all), "LLM-Pruner's Taylor per MAC, over all widths", ("transformer",))
)
