"""From layer scores to the units that go: aggregate, rank globally, respect floors, meet a budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ifap.attention import SplitAttention, fused_attention, head_dim, projections
from ifap.costs import Cost, count_params
from ifap.errors import ScoreError
from ifap.graph import Graph, Indices
from ifap.latency import LatencyModel, Widths, layer_widths
from ifap.layers import macs_scale_with_input, modules_by_name, sides

Aggregate = Literal["mean", "sum", "max"]
AGGREGATES = ("mean", "sum", "max")
Floats = npt.NDArray[np.float64]
_MOST_BY_SPEED = 2.0


def unit_scores(graph: Graph, model: nn.Module, scores: Mapping[str, Tensor], aggregate: Aggregate = "mean") -> Floats:
    """Aggregate layer scores over everything that must go together.

    Parameters
    ----------
    graph : Graph
        The units of `model`.
    model : nn.Module
        The network that was scored.
    scores : mapping of str to Tensor
        Layer name to one score a unit (a head, for an attention module).
    aggregate : {'mean', 'sum', 'max'}
        How the scores of coupled producers become the score of the unit that couples them. Inside
        one producer (a head, a group of a grouped convolution) positions are averaged.

    Returns
    -------
    array, shape (units,)
        NaN where no scored layer produces the unit.
    """
    totals, counts = np.zeros(graph.num_units), np.zeros(graph.num_units)
    highest = np.full(graph.num_units, -np.inf)
    for slot, values in _scored_slots(graph, model, scores):
        units = graph.unit_of[slot]
        if len(values) != len(units):
            raise ScoreError(f"layer '{graph.slots[slot].name}': {len(values)} scores for {len(units)} units")
        free = units >= 0
        if not free.any():
            continue
        first = units[free].min()  # the units of one layer lie close together
        number = np.bincount(units[free] - first)
        present = np.flatnonzero(number)
        mean = np.bincount(units[free] - first, weights=values[free])[present] / number[present]
        present += first
        totals[present] += mean
        counts[present] += 1
        highest[present] = np.maximum(highest[present], mean)
    if aggregate == "max":
        return np.where(counts > 0, highest, np.nan)
    scale = np.maximum(counts, 1) if aggregate == "mean" else 1.0
    return np.where(counts > 0, totals / scale, np.nan)


def _scored_slots(graph: Graph, model: nn.Module, scores: Mapping[str, Tensor]) -> list[tuple[int, Floats]]:
    """Return the output slots that have scores, and one score a position."""
    modules, fused, found = modules_by_name(model), fused_attention(model), []
    for name, values in scores.items():
        array = values.detach().cpu().double().numpy()
        module = modules.get(name)
        if module is not None and (found_parts := projections(module)) is not None:
            slot, array = graph.slot(f"{name}.{found_parts.value}", "out"), np.repeat(array, head_dim(module))
        elif name in fused:
            slot, array = graph.slot(f"{name}.qkv", "out"), np.tile(np.repeat(array, int(fused[name].head_dim)), 3)  # type: ignore[arg-type]
        else:
            slot = graph.slot(name, "out")
        if slot is not None:
            found.append((slot, array))
    return found


class Budget:
    """What a network would cost at other widths, without cutting it.

    MACs and weights of a layer are proportional to its output width and, unless its channels are
    grouped, to its input width; attention products are proportional to the number of heads.

    Parameters
    ----------
    graph : Graph
        The units of `model`.
    model : nn.Module
        The network as it is.
    layer_macs : mapping of str to int
        MACs of each module itself; see `ifap.costs.macs_by_module`.
    timer : LatencyModel, optional
        What predicts the time of a forward, where that is to fall.
    """

    def __init__(
        self, graph: Graph, model: nn.Module, layer_macs: Mapping[str, int], timer: LatencyModel | None = None
    ) -> None:
        self._timer = timer
        self._timed = [] if timer is None else _timed_slots(graph, layer_widths(model), timer.names)
        self._widths = np.maximum(graph.widths().astype(float), 1.0)
        rows = [row for row in _cost_rows(graph, model, layer_macs) if row.first is not None]
        self._first = np.array([row.first for row in rows], dtype=np.int64)
        self._second = np.array([-1 if row.second is None else row.second for row in rows], dtype=np.int64)
        self._macs = np.array([row.macs for row in rows], dtype=float)
        self._params = np.array([row.params for row in rows], dtype=float)
        self._fixed = Cost(
            macs=sum(layer_macs.values()) - int(self._macs.sum()),
            params=count_params(model) - int(self._params.sum()),
        )

    def predict(self, widths: Floats) -> Cost:
        """Return the cost of the network at the given slot widths."""
        share = widths / self._widths
        scale = share[self._first] * np.where(self._second >= 0, share[self._second], 1.0)
        return Cost(
            macs=self._fixed.macs + round(float(self._macs @ scale)),
            params=self._fixed.params + round(float(self._params @ scale)),
            latency=None if self._timer is None else self._timer.predict(self._layer_widths(widths)),
        )

    def _layer_widths(self, widths: Floats) -> dict[str, tuple[float, float]]:
        return {
            name: tuple(own if slot is None else float(widths[slot]) for slot, own in pairs)  # type: ignore[misc]
            for name, pairs in self._timed
        }


def _timed_slots(graph: Graph, widths: Widths, names: list[str]) -> list[tuple[str, list[tuple[int | None, float]]]]:
    """Return the slots of the outputs and inputs of layers, each with its present width; None where there is none."""
    found = []
    for name in names:
        out, inner = graph.slot(name, "out"), graph.slot(name, "in")
        # What a depthwise convolution reads is what it makes.
        is_one_sided = inner is None and widths[name][0] == widths[name][1]
        found.append((name, [(out, widths[name][0]), (out if is_one_sided else inner, widths[name][1])]))
    return found


def unit_costs(graph: Graph, budget: Budget, kind: str = "macs") -> Floats:
    """Return what of a cost the network loses with one unit, alone, of the group of each: shape (units,)."""
    widths = graph.widths().astype(float)
    whole = getattr(budget.predict(widths), kind)
    by_group = [whole - getattr(budget.predict(widths - positions), kind) for positions in graph.positions_per_unit()]
    return np.array(by_group, dtype=float)[graph.group_of]


def by_speed(graph: Graph, budget: Budget) -> Floats:
    """Return what to multiply scores by where time is to fall: below 1 for units whose products are slow.

    It is the MACs over the time that the network loses with a unit, relative to the median unit. A factor of
    two either way is the most: units ranked by what they save alone would empty the layers that cost much.
    """
    time = np.maximum(unit_costs(graph, budget, "latency"), 1e-12)
    speed = unit_costs(graph, budget) / time
    middle = float(np.median(speed)) or 1.0
    return np.clip(speed / middle, 1 / _MOST_BY_SPEED, _MOST_BY_SPEED)


@dataclass(frozen=True)
class _CostRow:
    first: int | None
    second: int | None
    macs: int
    params: int


def _cost_rows(graph: Graph, model: nn.Module, layer_macs: Mapping[str, int]) -> list[_CostRow]:
    rows, fused = [], fused_attention(model)
    counted: set[nn.Parameter] = set()
    for name, module in modules_by_name(model).items():
        macs = layer_macs.get(name, 0)
        if isinstance(module, SplitAttention):
            rows.append(_CostRow(graph.slot(f"{name}.out", "in"), None, macs, 0))
        elif (parts := projections(module)) is not None:
            rows.append(_CostRow(graph.slot(f"{name}.{parts.value}", "out"), None, macs, 0))
        elif name in fused:
            rows.append(_CostRow(graph.slot(f"{name}.proj", "in"), None, macs, 0))
        elif sides(module):
            rows += _layer_rows(graph, name, module, macs, counted)
            counted.update(value for value in module._parameters.values() if value is not None)
    for slot_index, slot in enumerate(graph.slots):
        if slot.side.startswith("dim"):
            tensor = _parameter(model, slot.name)
            rows.append(_CostRow(slot_index, None, 0, tensor.numel() if tensor is not None else 0))
    return rows


def _layer_rows(graph: Graph, name: str, module: nn.Module, macs: int, counted: set[nn.Parameter]) -> list[_CostRow]:
    out = graph.slot(name, "out")
    inner = graph.slot(name, "in") if macs_scale_with_input(module) else None
    own = {key: value for key, value in module._parameters.items() if value is not None and value not in counted}
    weight = own.pop("weight").numel() if "weight" in own else 0
    return [_CostRow(out, inner, macs, weight), _CostRow(out, None, 0, sum(p.numel() for p in own.values()))]


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent)._parameters.get(leaf)


class Ranking:
    """The global order of units, and which of them a given number or budget removes.

    Parameters
    ----------
    graph : Graph
        The units.
    scores : array, shape (units,)
        Low goes first; ties go by unit number. Units without a score (NaN) stay.
    floors : array, shape (groups,)
        Units that each group keeps.
    budget : Budget
        Costs at other widths.
    round_to : int, optional
        Keep the positions of every group that loses units a multiple of this.
    """

    def __init__(
        self, graph: Graph, scores: Floats, floors: Indices, budget: Budget, round_to: int | None = None
    ) -> None:
        self._graph, self._budget, self._round_to = graph, budget, round_to
        self._sizes = graph.units_per_group()
        self._per_unit = graph.positions_per_unit()
        self.scores = scores
        order = np.argsort(scores, kind="stable")  # NaN comes last
        order = order[: len(order) - int(np.isnan(scores).sum())]
        self._by_group = self._sorted_groups(order)
        is_candidate = np.zeros(len(scores), dtype=bool)
        for group, units in enumerate(self._by_group):
            is_candidate[units[: max(0, self._sizes[group] - floors[group])]] = True
        self._order = order[is_candidate[order]]
        self._order_groups = graph.group_of[self._order]

    @property
    def num_candidates(self) -> int:
        """How many units may go at most."""
        return len(self._order)

    def removed_per_group(self, count: int) -> Indices:
        """Return how many units each group loses when the `count` lowest go, rounded if asked for."""
        lost = np.bincount(self._order_groups[:count], minlength=len(self._sizes))
        if self._round_to is None:
            return lost
        return np.array([self._rounded(group, number) for group, number in enumerate(lost)], dtype=np.int64)

    def cost(self, count: int) -> Cost:
        """Return what the network would cost without the `count` lowest units."""
        return self.cost_of(self.removed_per_group(count))

    def cost_of(self, lost: Indices) -> Cost:
        """Return what the network would cost without `lost` units of each group."""
        return self._budget.predict(self._graph.widths() - lost @ self._per_unit)

    def spare(self, lost: Indices, kind: str, goal: float) -> Indices:
        """Give back what the budget allows, the highest scores first.

        Whole heads and rounded widths are coarse: the lowest units that meet a budget together may
        undercut it by far.

        Parameters
        ----------
        lost : array, shape (groups,)
            Units that each group loses.
        kind : {'macs', 'params', 'latency'}
            Which cost.
        goal : float
            Upper bound of that cost.

        Returns
        -------
        array, shape (groups,)
            As `lost`, with as many blocks given back as fit.
        """
        lost = lost.copy()
        by_group = zip(self._by_group, lost, strict=True)
        last_cut = [self.scores[units[count - 1]] if count else -math.inf for units, count in by_group]
        for group in np.argsort(last_cut, kind="stable")[::-1]:
            while lost[group] > 0:
                fewer = lost.copy()
                fewer[group] = self._fewer(int(group), int(lost[group]))
                if getattr(self.cost_of(fewer), kind) > goal:
                    break
                lost = fewer
        return lost

    def _fewer(self, group: int, lost: int) -> int:
        """Return the next smaller number of units that a group may lose."""
        return lost - 1 if self._round_to is None else max(0, self._rounded(group, lost - 1))

    def units(self, lost: Indices) -> Indices:
        """Return the lowest units of each group, as many as `lost` says."""
        chosen = [units[:number] for units, number in zip(self._by_group, lost, strict=True)]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)

    def smallest_count(self, kind: str, goal: float) -> int | None:
        """Return the smallest count whose cost is at most `goal`, or None if none is.

        Parameters
        ----------
        kind : {'macs', 'params', 'latency'}
            Which cost.
        goal : float
            Upper bound of that cost.
        """
        if getattr(self.cost(self.num_candidates), kind) > goal:
            return None
        counts = range(self.num_candidates)
        return bisect.bisect_left(counts, True, key=lambda count: getattr(self.cost(count), kind) <= goal)

    def at_least_one(self, count: int) -> int:
        """Return the smallest count from `count` on that removes any unit at all."""
        counts = range(self.num_candidates)
        return bisect.bisect_left(counts, True, lo=count, key=lambda n: bool(self.removed_per_group(n).any()))

    def _sorted_groups(self, order: Indices) -> list[Indices]:
        """Return the units of each group in the given order."""
        order = order[np.argsort(self._graph.group_of[order], kind="stable")]
        bounds = np.searchsorted(self._graph.group_of[order], np.arange(len(self._sizes) + 1))
        return [order[bounds[g] : bounds[g + 1]] for g in range(len(self._sizes))]

    def _rounded(self, group: int, lost: int) -> int:
        width = self._graph.groups[group].width
        assert self._round_to is not None
        block = self._round_to // math.gcd(self._round_to, width)
        alive = -(-int(self._sizes[group] - lost) // block) * block
        return max(0, int(self._sizes[group]) - alive)


def floors(graph: Graph, original: Indices, min_units: int, max_layer_ratio: float) -> Indices:
    """Return how many units each group must keep.

    Parameters
    ----------
    graph : Graph
        The units as they are.
    original : array, shape (groups,)
        Units of each group in the unpruned network.
    min_units : int
        Positions (channels) that every layer keeps; one head is wide enough for any such floor.
    max_layer_ratio : float
        Largest share of a group's original units that may go in all.
    """
    widths = np.array([group.width for group in graph.groups], dtype=np.int64)
    by_count = -(-min_units // np.maximum(widths, 1)) if len(widths) else widths
    by_ratio = np.ceil(original * (1.0 - max_layer_ratio) - 1e-9).astype(np.int64)
    return np.maximum(np.maximum(by_count, by_ratio), 1)
