"""Printed values: what rounding hides, and the rows of the tables that they stand in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import pandas as pd

from ifap.study.paper.published import METRIC, NUMERALS

SLACK = Decimal("0.06")
"""How far a printed metric change may be off beyond the rounding of the values it is computed from."""
MILLION = 1_000_000


@dataclass(frozen=True)
class Printed:
    """A published value with the digits it was printed with."""

    id: str
    text: str

    @property
    def number(self) -> Decimal:
        """The value."""
        return Decimal(self.text)

    @property
    def unit(self) -> Decimal:
        """One in the last printed place."""
        exponent = self.number.as_tuple().exponent
        assert isinstance(exponent, int)
        return Decimal(1).scaleb(exponent)

    @property
    def half(self) -> Decimal:
        """How far rounding may have moved the value."""
        return self.unit / 2

    @property
    def low(self) -> Decimal:
        """The least that is printed like this when rounded."""
        return self.number - self.half

    @property
    def high(self) -> Decimal:
        """The most that is printed like this when rounded."""
        return self.number + self.half

    def holds(self, low: Decimal, high: Decimal, slack: Decimal = Decimal(0)) -> bool:
        """Whether a number between `low` and `high` may be printed like this."""
        allowed = max(self.half, slack)
        return low - allowed <= self.number <= high + allowed

    def cuts_off(self, number: Decimal) -> bool:
        """Whether this is a positive number with digits cut off instead of rounded."""
        return self.number <= number < self.number + self.unit


@dataclass(frozen=True)
class Row:
    """One row of a published table."""

    table: int
    dataset: str
    model: str
    method: str
    step: int | None
    values: Mapping[str, Printed]

    @property
    def where(self) -> str:
        """The row in words."""
        return f"Table {numeral(self.table)}, {self.dataset}, {self.model}"

    @property
    def metric(self) -> tuple[Printed, Printed, Printed]:
        """The metric before and after pruning, and its change."""
        base, pruned, delta = (self.values[name] for name in METRIC)
        return base, pruned, delta


def table_rows(claims: pd.DataFrame) -> list[Row]:
    """Gather claims by the row of the table they stand in."""
    rows: dict[tuple[int, str, str, str, int | None], dict[str, Printed]] = defaultdict(dict)
    for claim in claims.to_dict("records"):
        step = None if pd.isna(claim["step"]) else int(claim["step"])
        key = (int(claim["table"]), claim["dataset"], claim["model"], claim["method"], step)
        rows[key][claim["quantity"]] = Printed(claim["id"], claim["value"])
    return [Row(*key, values) for key, values in rows.items()]


def having(rows: Iterable[Row], quantity: str) -> list[Row]:
    """Return the rows that print a quantity."""
    return [row for row in rows if quantity in row.values]


def by_table(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Return the tables in order, each with its rows."""
    return [(table, [row for row in rows if row.table == table]) for table in sorted({row.table for row in rows})]


def ids(rows: Iterable[Row], *quantities: str) -> tuple[str, ...]:
    """Return the ids of the claims that rows print."""
    return tuple(row.values[quantity].id for row in rows for quantity in quantities)


def numeral(table: int) -> str:
    """Return the number of a table as the paper prints it."""
    return NUMERALS[table - 1]


class Change(NamedTuple):
    """All values that a change can have, given the rounding of what it is computed from."""

    relative: tuple[Decimal, Decimal]
    points: tuple[Decimal, Decimal]


def possible_change(base: Printed, pruned: Printed) -> Change:
    """Return between what the change from one printed value to another lies."""
    points = (pruned.low - base.high, pruned.high - base.low)
    if base.low <= 0:  # a base that may be zero: any relative change
        return Change((Decimal("-Infinity"), Decimal("Infinity")), points)
    relative = [
        100 * (after - before) / before for before in (base.low, base.high) for after in (pruned.low, pruned.high)
    ]
    return Change((min(relative), max(relative)), points)


def relative_change(base: Printed, pruned: Printed) -> Decimal:
    """Return the change from one printed value to another in percent, as printed."""
    return 100 * (pruned.number - base.number) / base.number


def example(row: Row) -> str:
    """Return a row's metric and its change, computed both ways, in words."""
    base, pruned, delta = row.metric
    points = pruned.number - base.number
    return (
        f"{row.dataset}, {row.model}: {base.text} to {pruned.text} is {relative_change(base, pruned):+.2f} % "
        f"or {points:+} points; printed {delta.text}"
    )
