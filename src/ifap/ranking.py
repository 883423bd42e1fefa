"""Choose the units to remove: aggregate layer scores, rank them globally, respect floors, meet a budget."""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from ifap.axes.units import Floats, Graph, Indices
from ifap.costs import Cost
from ifap.errors import ScoreError, counted
from ifap.latency import LatencyModel, Widths

Aggregate = Literal["mean", "sum", "max"]
AGGREGATES = ("mean", "sum", "max")
_MOST_BY_SPEED = 2.0


def unit_scores(graph: Graph, scores: Mapping[str, Tensor], aggregate: Aggregate = "mean") -> Floats:
    """Aggregate scores over everything that must go together.

    `scores` maps a layer, or a weight outside a layer, to one score a position of its outputs; see `ifap.flow_scores`.
    `aggregate` says how the scores of coupled producers become the score of the unit that couples them. Inside one
    producer (a head, a group of a grouped convolution) positions are averaged. The result has the shape (units,), and
    is NaN where no scored layer produces the unit.
    """
    totals, counts = np.zeros(graph.num_units), np.zeros(graph.num_units)
    highest = np.full(graph.num_units, -np.inf)
    for slot, name in sorted(graph.weight_slots()):
        if name not in scores:
            continue
        values, units = scores[name].detach().cpu().double().numpy(), graph.unit_of[slot]
        if len(values) != len(units):
            raise ScoreError(f"layer '{name}': {counted(len(values), 'score')} for {counted(len(units), 'unit')}")
        present, mean = _means(values, units)
        totals[present] += mean
        counts[present] += 1
        highest[present] = np.maximum(highest[present], mean)
    if aggregate == "max":
        return np.where(counts > 0, highest, np.nan)
    scale = np.maximum(counts, 1) if aggregate == "mean" else 1.0
    return np.where(counts > 0, totals / scale, np.nan)


def _means(values: Floats, units: Indices) -> tuple[Indices, Floats]:
    """Return the units that have positions, and the mean value over the positions of each."""
    if units[0] >= 0 and np.array_equal(units, np.arange(units[0], units[0] + len(units))):  # a position each: most are
        return units, values
    free = units >= 0
    if not free.any():
        return units[:0], values[:0]
    first = units[free].min()  # the units of one layer lie close together
    number = np.bincount(units[free] - first)
    present = np.flatnonzero(number)
    mean = np.bincount(units[free] - first, weights=values[free])[present] / number[present]
    return present + first, mean


class Budget:
    """Predicted cost of a network at other widths, without cutting it.

    `timer` predicts the time of a forward, if that is to fall; then `widths` holds the present widths of its layers
    (`ifap.latency.layer_widths`).
    """

    def __init__(self, graph: Graph, timer: LatencyModel | None = None, widths: Widths | None = None) -> None:
        self._graph, self._timer = graph, timer
        self._counts = graph.units_per_group().astype(float)
        self._timed = [] if timer is None or widths is None else _timed_slots(graph, widths, timer.names)
        if timer is not None:
            self._slot_widths, self._per_unit = graph.widths().astype(float), graph.positions_per_unit()

    def predict(self, counts: Floats) -> Cost:
        """Return the cost of the network with so many units left in each group."""
        forms = self._graph.structure.forms
        latency = None
        if self._timer is not None:
            widths = self._slot_widths - (self._counts - counts) @ self._per_unit
            latency = self._timer.predict(self._layer_widths(widths))
        return Cost(macs=forms.total_macs(counts), params=forms.params(counts), latency=latency)

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
    """Return the cost saved by removing one unit of each unit's group: shape (units,)."""
    counts = graph.units_per_group().astype(float)
    whole = getattr(budget.predict(counts), kind)
    one_less = np.eye(len(counts))
    by_group = [whole - getattr(budget.predict(counts - one), kind) for one in one_less]
    return np.array(by_group, dtype=float)[graph.group_of]


def by_speed(graph: Graph, budget: Budget) -> Floats:
    """Return a factor for each score where the target is a latency: below 1 for units whose products are slow.

    It is the MACs over the time that the network loses with a unit, relative to the median unit. A factor of
    two either way is the most: units ranked by what they save alone would empty the layers that cost much.
    """
    time = np.maximum(unit_costs(graph, budget, "latency"), 1e-12)
    speed = unit_costs(graph, budget) / time
    middle = float(np.median(speed)) or 1.0
    return np.clip(speed / middle, 1 / _MOST_BY_SPEED, _MOST_BY_SPEED)


class Ranking:
    """The global order of units, and which of them a given number or budget removes.

    Units of axes that must keep the same number go in lots: the lowest of each, then the second of each.

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
    per_cost : bool
        Divide each score by the multiply-accumulates that its lot saves, at the widths that are left when it goes.
    """

    def __init__(
        self,
        graph: Graph,
        scores: Floats,
        floors: Indices,
        budget: Budget,
        round_to: int | None = None,
        *,
        per_cost: bool = False,
    ) -> None:
        self._graph, self._budget = graph, budget
        self._sizes = graph.units_per_group()
        self.scores = scores
        order = np.argsort(scores, kind="stable")  # NaN comes last
        order = order[: len(order) - int(np.isnan(scores).sum())]
        self._by_group = self._sorted_groups(order)
        self._class_of, self._classes = _classes(graph)
        self._blocks = [self._block(members, round_to) for members in self._classes]
        self._lot_scores, self._order = self._lots(floors)
        if per_cost:
            self._lot_scores, self._order = self._by_cost()

    def without_score(self) -> list[str]:
        """Return the names of the axes that stay because none of their units has a score."""
        scored = {int(group) for group in self._graph.group_of[np.flatnonzero(~np.isnan(self.scores))]}
        return [group.name for number, group in enumerate(self._graph.groups) if number not in scored]

    def _lots(self, floors: Indices) -> tuple[list[Floats], Indices]:
        """Return the scores of the lots of each class, and the class of each lot in the order in which they go."""
        scores: list[Floats] = []
        first_units: list[Indices] = []
        for members in self._classes:
            most = min(len(self._by_group[g]) for g in members)
            most = max(0, min([most, *(int(self._sizes[g] - floors[g]) for g in members)]))
            lowest = [self._by_group[g][:most] for g in members]
            units = lowest[0] if len(lowest) == 1 else np.stack(lowest).min(axis=0)
            own = [self.scores[each] for each in lowest]
            scores.append(own[0] if len(own) == 1 else np.mean(own, axis=0))
            first_units.append(units)
        classes = np.repeat(np.arange(len(scores)), [len(each) for each in scores])
        order = np.lexsort((np.concatenate(first_units), np.concatenate(scores))) if scores else classes
        return scores, classes[order].astype(np.int64)

    def _by_cost(self) -> tuple[list[Floats], Indices]:
        """Order lots by score per saved MAC at the current widths. Returns the same as `_lots`."""
        lost = np.zeros(len(self._classes), dtype=np.int64)
        worth: list[list[float]] = [[] for _ in self._classes]
        order: list[int] = []
        whole = self._value(lost, "macs")
        while len(order) < len(self._order):
            prices = self._prices(lost)
            waiting = [
                (scores[number] * len(members) / price, index)
                for index, (scores, number, members, price) in enumerate(
                    zip(self._lot_scores, lost, self._classes, prices, strict=True)
                )
                if number < len(scores)
            ]
            heapq.heapify(waiting)
            saved = 0.0
            while waiting and saved < _SAME_PRICE * whole:
                value, index = heapq.heappop(waiting)
                order.append(index)
                worth[index].append(value)
                lost[index] += 1
                saved += prices[index]
                if lost[index] < len(self._lot_scores[index]):
                    score = self._lot_scores[index][lost[index]] * len(self._classes[index])
                    heapq.heappush(waiting, (score / prices[index], index))
        return [np.array(values) for values in worth], np.array(order, dtype=np.int64)

    def _prices(self, lost: Indices) -> Floats:
        """Return the multiply-accumulates that one more lot of each class saves; never nothing."""
        whole = self._value(lost, "macs")
        found = np.zeros(len(lost))
        for index in np.flatnonzero(lost < [len(scores) for scores in self._lot_scores]):
            more = lost.copy()
            more[index] += 1
            found[index] = whole - self._value(more, "macs")
        return np.maximum(found, _LEAST_PRICE * max(found.mean(), 1.0))

    @property
    def num_candidates(self) -> int:
        """How many lots may go at most."""
        return len(self._order)

    def removed_per_group(self, count: int) -> Indices:
        """Return how many units each group loses when the `count` lowest lots go, rounded if asked for."""
        return self._lost(count)[self._class_of]

    def cost(self, count: int) -> Cost:
        """Return what the network would cost without the `count` lowest lots."""
        return self.cost_of(self.removed_per_group(count))

    def cost_of(self, lost: Indices) -> Cost:
        """Return what the network would cost without `lost` units of each group."""
        return self._budget.predict((self._sizes - lost).astype(float))

    def nearest(self, count: int, kind: str, goal: float) -> Indices:
        """Return the loss of each group for which a cost is as near to `goal` as found, from below.

        Whole heads, groups and rounded widths are coarse: the lowest lots that meet a budget together may undercut it
        by far. Lots with the highest scores are given back first. Where that is not enough, the lots that cost most are
        spared and finer ones of higher scores go instead. `count` lots meet the budget; `goal` is the upper bound of
        the cost.
        """
        best = self._spare(self._lost(count), kind, goal)
        reached = self._value(best, kind)
        whole = self._value(np.zeros(len(self._classes), dtype=np.int64), kind)
        if whole and (goal - reached) / whole < _CLOSE:
            return best[self._class_of]
        for number in self._coarsest(best, kind):
            other = self._without(number, best, count, kind, goal)
            if other is not None and reached < (value := self._value(other, kind)) <= goal:
                best, reached = other, value
        return best[self._class_of]

    def _lost(self, count: int) -> Indices:
        lost = np.bincount(self._order[:count], minlength=len(self._classes))
        return np.array([self._rounded(number, int(each)) for number, each in enumerate(lost)], dtype=np.int64)

    def _value(self, lost: Indices, kind: str) -> float:
        return float(getattr(self.cost_of(lost[self._class_of]), kind))

    def _spare(self, lost: Indices, kind: str, goal: float) -> Indices:
        """Keep as many lots as the budget allows, those of the highest scores first."""
        lost = lost.copy()
        last_cut = [
            scores[count - 1] if count else -math.inf for scores, count in zip(self._lot_scores, lost, strict=True)
        ]
        for number in np.argsort(last_cut, kind="stable")[::-1]:
            while lost[number] > 0:
                fewer = lost.copy()
                fewer[number] = self._fewer(int(number), int(lost[number]))
                if self._value(fewer, kind) > goal:
                    break
                lost = fewer
        return lost

    def _coarsest(self, lost: Indices, kind: str) -> list[int]:
        """Return the classes whose lots cost most, among those that lose any."""
        whole = self._value(lost, kind)
        saved = {}
        for number in np.flatnonzero(lost):
            fewer = lost.copy()
            fewer[number] = self._fewer(int(number), int(lost[number]))
            saved[int(number)] = self._value(fewer, kind) - whole
        return sorted(saved, key=lambda number: -saved[number])[:_TRIALS]

    def _without(self, spared: int, lost: Indices, count: int, kind: str, goal: float) -> Indices | None:
        """Spare a lot of one class and remove the next lots of other classes until the goal is met, or return None."""
        lost = lost.copy()
        lost[spared] = self._fewer(spared, int(lost[spared]))
        asked = np.bincount(self._order[:count], minlength=len(self._classes))
        for number in self._order[count:]:
            if number == spared:
                continue
            asked[number] += 1
            lost[number] = max(lost[number], self._rounded(int(number), int(asked[number])))
            if self._value(lost, kind) <= goal:
                return self._spare(lost, kind, goal)
        return None

    def _fewer(self, number: int, lost: int) -> int:
        """Return the next smaller number of lots that a class may lose."""
        return max(0, self._rounded(number, lost - 1))

    def units(self, lost: Indices) -> Indices:
        """Return the lowest units of each group, as many as `lost` says."""
        chosen = [units[:number] for units, number in zip(self._by_group, lost, strict=True)]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)

    def smallest_count(self, kind: str, goal: float) -> int | None:
        """Return the smallest count whose cost is at most `goal`, or None if none is."""
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

    def _block(self, members: Sequence[int], round_to: int | None) -> int:
        """Return what the number of units of a class must stay a multiple of."""
        structure = self._graph.structure
        block = 1
        for group in members:
            if round_to is not None:
                block = math.lcm(block, round_to // math.gcd(round_to, structure.groups[group].width))
            block = math.lcm(block, structure.multiples.get(group, 1))
        return block

    def _rounded(self, number: int, lost: int) -> int:
        block, size = self._blocks[number], int(self._sizes[self._classes[number][0]])
        if block == 1:
            return lost
        return max(0, size - -(-(size - lost) // block) * block)


_CLOSE = 0.01  # of a cost: a target is met to within one percentage point where units are fine enough
_TRIALS = 5
_SAME_PRICE = 0.002  # of all multiply-accumulates: prices are found anew each time that so many have gone
_LEAST_PRICE = 1e-3  # of the mean: a unit that saves nothing would have no price


def _classes(graph: Graph) -> tuple[Indices, list[tuple[int, ...]]]:
    """Return the class number of each group, and the members of each class."""
    of_group = graph.structure.classes()
    number = {members: index for index, members in enumerate(dict.fromkeys(of_group))}
    return np.array([number[members] for members in of_group], dtype=np.int64), [*number]


def floors(graph: Graph, original: Indices, min_units: int, max_layer_ratio: float) -> Indices:
    """Return how many units each group must keep.

    `original` holds the units of each group in the unpruned network, of shape (groups,). Every layer keeps `min_units`
    positions (channels); one head is wide enough for any such floor. At most the share `max_layer_ratio` of a group's
    original units may go in all.
    """
    widths = np.array([group.width for group in graph.groups], dtype=np.int64)
    by_count = -(-min_units // np.maximum(widths, 1)) if len(widths) else widths
    by_ratio = np.ceil(original * (1.0 - max_layer_ratio) - 1e-9).astype(np.int64)
    return np.maximum(np.maximum(by_count, by_ratio), 1)
