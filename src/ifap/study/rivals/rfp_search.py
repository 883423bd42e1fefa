"""The search of RFP: which heads and neurons fit a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifap.costs import Cost, count_params, macs_by_module
from ifap.errors import TargetError
from ifap.results import Target
from ifap.study.rivals.blocks import Group, unit_price
from ifap.study.rivals.ranking import top

_NEARLY = 1e-9


@dataclass(frozen=True)
class Budget:
    """What the units may cost together."""

    kind: str  # ``macs`` or ``params``.
    whole: int  # Cost of the unpruned network, of which the target is a share.
    prices: list[float]  # Cost of one unit of each group.
    units: float  # Cost of all units; the rest of the network is not pruned.
    allowed: float  # What the kept units may cost.
    left: float  # Share of `whole` that may be left.

    @property
    def constraint(self) -> float:
        """The published constraint: the share of the units' cost that may be left."""
        return self.allowed / self.units


def budget_of(
    model: nn.Module, groups: Sequence[Group], example_inputs: Any, target: Target, before: Cost | None = None
) -> Budget:
    """Return what the units may cost for a target of the whole network.

    `example_inputs` are of the length that MACs are counted at. `before` is what the target is a reduction of, if that
    is not this network. Raises a TargetError if the best unit of each layer alone costs more; the message says how far
    it goes.
    """
    macs = macs_by_module(model, example_inputs)
    here = count_params(model) if target.kind == "params" else sum(macs.values())
    whole = here if before is None else getattr(before, target.kind)
    prices = [unit_price(group, model, target.kind, macs) for group in groups]
    units = sum(price * group.units for price, group in zip(prices, groups, strict=True))
    allowed = whole * (1 - target.share) - (here - units)
    if allowed < sum(prices):
        reach = 1 - (here - units + sum(prices)) / whole
        raise TargetError(
            f"target: {target.kind}={target.share:g} cannot be reached by removing heads and neurons: at most "
            f"{reach:.4f}; every layer keeps one"
        )
    return Budget(target.kind, whole, prices, units, allowed, 1 - target.share)


def search(importance: Sequence[Tensor], prices: Sequence[float], kinds: Sequence[str], allowed: float) -> list[Tensor]:
    """Return the units that are worth most together and cost no more than `allowed`, as boolean masks.

    Exact where all heads cost the same, and all neurons. `importance` is what each unit of each group is worth, not
    negative, of the shape (units,). `prices` are those of one unit of each group, and `kinds` says of each group
    whether it is ``heads`` or ``neurons``. Each group keeps its best unit; raises a TargetError if these cost more.
    """
    heads, neurons = (_Pool(importance, prices, kinds, kind) for kind in ("heads", "neurons"))
    best: tuple[float, int, int] | None = None
    for number in range(heads.least, len(heads.order) + 1):
        left = allowed - float(heads.costs[number])
        if left < float(neurons.costs[neurons.least]):
            break
        others = int(torch.searchsorted(neurons.costs, torch.tensor(left, dtype=torch.float64), right=True)) - 1
        worth = float(heads.worths[number] + neurons.worths[others])
        if best is None or worth > best[0]:
            best = (worth, number, others)
    if best is None:
        need = float(heads.costs[heads.least] + neurons.costs[neurons.least])
        raise TargetError(f"the budget is {allowed:g}, and the units that every layer keeps cost {need:g}")
    kept = [torch.zeros(len(values), dtype=torch.bool) for values in importance]
    for pool, number in ((heads, best[1]), (neurons, best[2])):
        for group, unit in pool.order[:number]:
            kept[group][unit] = True
    return kept


class _Pool:
    """All units of one kind, best first, and what the first n of them cost and are worth."""

    def __init__(self, importance: Sequence[Tensor], prices: Sequence[float], kinds: Sequence[str], kind: str) -> None:
        groups = [number for number, own in enumerate(kinds) if own == kind]
        sizes = [len(importance[number]) for number in groups]
        none = torch.empty(0, dtype=torch.float64)
        worth = torch.cat([none, *(importance[number].double().cpu() for number in groups)])
        price = torch.cat(
            [none, *(torch.full((n,), prices[g], dtype=torch.float64) for n, g in zip(sizes, groups, strict=True))]
        )
        spared = torch.cat([none, *(top(importance[number].cpu(), 1) for number in groups)])
        ranked = torch.argsort(worth / price, descending=True, stable=True)
        ranked = ranked[torch.argsort(spared[ranked], descending=True, stable=True)]
        units = [(group, unit) for group, size in zip(groups, sizes, strict=True) for unit in range(size)]
        zero = torch.zeros(1, dtype=torch.float64)
        self.order = [units[position] for position in ranked.tolist()]
        self.costs = torch.cat([zero, price[ranked].cumsum(0)])
        self.worths = torch.cat([zero, worth[ranked].cumsum(0)])
        self.least = int(spared.sum())
