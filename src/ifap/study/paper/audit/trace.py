"""The pruning trace of Table IV, step by step."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ifap.study.paper.audit.architectures import TORCHVISION, parameter_count
from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.audit.printed import MILLION, Printed, Row, ids

LINE_STEPS = 10  # fewer steps than this may lie on a line by chance
JUMP = 3  # a step this many times its neighbours
CLASSES = {"Cifar-10": 10, "CIFAR-10": 10, "CIFAR-100": 100}


def traces(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each network that is printed step by step, in order."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.step is not None:
            found[row.dataset, row.model].append(row)
    return [sorted(trace, key=lambda row: row.step or 0) for trace in found.values()]


def _differences(values: Sequence[Printed]) -> list[Decimal]:
    return [after.number - before.number for before, after in pairwise(values)]


def _joined(values: Sequence[Decimal]) -> str:
    return " ".join(map(str, values))


# --- Straight lines ------------------------------------------------------------------------------


class Line(NamedTuple):
    """A straight line through a part of a trace."""

    start: int
    stop: int
    slope: float
    residual: float

    @property
    def steps(self) -> int:
        """How many values it goes through."""
        return self.stop - self.start


def straight_lines(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find quantities that fall by equal amounts in many steps."""
    for trace in traces(rows):
        for quantity in trace[0].values:
            line = _longest_line([row.values[quantity] for row in trace])
            if line.steps >= LINE_STEPS and line.slope != 0:
                yield _line_finding(trace, quantity, line)


def _line_finding(trace: Sequence[Row], quantity: str, line: Line) -> Finding:
    values = [row.values[quantity] for row in trace]
    here, shown = trace[line.start : line.stop], values[line.start : line.stop]
    first, last = here[0].step, here[-1].step
    lines = [
        f"steps {first} to {last}: {' '.join(value.text for value in shown)}",
        f"differences: {_joined(_differences(shown))}",
        f"line: {line.slope:+.4f} a step, no value farther than {line.residual:.4f} from it; "
        f"rounding explains {shown[0].half}",
    ]
    if before := _differences(values[: line.start + 1]):
        lines.append(f"differences before step {first}: between {min(before)} and {max(before)}")
    lines.append(
        "a step removes whole channels, and by the stated schedule a share of those that remain: equal amounts "
        "in all steps do not follow from it"
    )
    title = f"{here[0].where}: {quantity} of steps {first} to {last} lie on a straight line"
    return Finding("trace", "minor", title, "\n".join(lines), ids(here, quantity))


def _longest_line(values: Sequence[Printed]) -> Line:
    """Return the longest part whose values are those of one straight line, rounded."""
    numbers = np.array([float(value.number) for value in values])
    best = Line(0, 1, 0.0, 0.0)
    for start in range(len(values)):
        for stop in range(start + 2, len(values) + 1):
            line = Line(start, stop, *_straightest(numbers[start:stop]))
            if line.residual > float(values[start].half) + 1e-9:
                break
            best = max(best, line, key=lambda each: each.steps)
    return best


def _straightest(numbers: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the slope of the line whose largest distance is least, and that distance.

    The best line is parallel to one through two of the points.
    """
    places = np.arange(len(numbers))
    first, second = np.triu_indices(len(numbers), 1)
    slopes = (numbers[second] - numbers[first]) / (second - first)
    off = numbers - slopes[:, None] * places
    spread = off.max(axis=1) - off.min(axis=1)
    best = int(spread.argmin())
    return float(slopes[best]), float(spread[best]) / 2


# --- Jumps ---------------------------------------------------------------------------------------


def jumps(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find steps in which the MACs fall by far more than around them and the parameters do not."""
    for trace in traces(rows):
        if not trace[0].values.keys() >= {"params", "gmacs"}:
            continue
        changes = {name: _differences([row.values[name] for row in trace]) for name in ("gmacs", "params")}
        for place in range(len(trace) - 1):
            ratios = {name: _against_neighbours(values, place) for name, values in changes.items()}
            if ratios["gmacs"] >= JUMP and ratios["params"] < JUMP / 2:
                yield _jump_finding(trace, place, changes, ratios)


def _jump_finding(
    trace: Sequence[Row], place: int, changes: dict[str, list[Decimal]], ratios: dict[str, float]
) -> Finding:
    low, high = max(0, place - 3), place + 5
    around = trace[low:high]
    lines = [f"steps {around[0].step} to {around[-1].step}"]
    for name, values in changes.items():
        printed = " ".join(row.values[name].text for row in around)
        lines.append(f"{name:<7} {printed}; differences {_joined(values[low : high - 1])}")
    before, after = trace[place], trace[place + 1]
    title = (
        f"{after.where}: GMACs change by {changes['gmacs'][place]} in step {after.step}, {ratios['gmacs']:.1f} "
        f"times as much as around it, parameters by {changes['params'][place]}, {ratios['params']:.1f} times"
    )
    return Finding("trace", "info", title, "\n".join(lines), ids([before, after], "gmacs"))


def _against_neighbours(changes: Sequence[Decimal], place: int) -> float:
    around = [abs(change) for change in (*changes[max(0, place - 3) : place], *changes[place + 1 : place + 4])]
    usual = statistics.median(around) if around else Decimal(0)
    return float(abs(changes[place]) / usual) if usual else 0.0


# --- Beginnings ----------------------------------------------------------------------------------


def unpruned_starts(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find traces that begin with the unpruned network, so that they show one iteration less than steps."""
    for trace in traces(rows):
        row = trace[0]
        if row.model not in TORCHVISION or row.dataset not in CLASSES or "params" not in row.values:
            continue
        name, classes, printed = TORCHVISION[row.model], CLASSES[row.dataset], row.values["params"]
        whole = parameter_count(row.model, classes)
        exact = Decimal(whole) / MILLION
        if not printed.holds(exact, exact):
            continue
        arithmetic = (
            f"{name} with {classes} classes: {whole:,} = {exact:.2f} M parameters; printed {printed.text} M\n"
            f"steps {row.step} to {trace[-1].step} hold {len(trace) - 1} changes, not {len(trace)}"
        )
        title = f"{row.where}: step {row.step} is the unpruned network, so {len(trace) - 1} iterations are shown"
        yield Finding("trace", "info", title, arithmetic, (printed.id,))
