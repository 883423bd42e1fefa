"""Equal values where different ones are expected."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import combinations

from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.audit.printed import Row, by_table, example, having, ids, numeral

RARE = 0.01
"""A coincidence that is expected less often than this is worth a finding."""
VALUES = ("metric_base", "metric_pruned")


def equal_baselines(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find two data sets of one table on which every shared network starts from the same value."""
    for table, those in by_table(having(rows, "metric_base")):
        bases: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in those:
            bases[row.dataset][row.model] = row
        for one, other in combinations(bases, 2):
            shared = [(bases[one][model], bases[other][model]) for model in bases[one] if model in bases[other]]
            if len(shared) < 2 or not all(_text(a, "metric_base") == _text(b, "metric_base") for a, b in shared):
                continue
            lines = [f"{a.model:<24} {one} {_from_to(a)}; {other} {_from_to(b)}" for a, b in shared]
            title = f"Table {numeral(table)}: the {len(shared)} baselines of {one} and {other} are equal"
            claims = ids([row for pair in shared for row in pair], "metric_base")
            yield Finding("equal-values", "minor", title, "\n".join(lines), claims)


def _text(row: Row, quantity: str) -> str:
    return row.values[quantity].text


def _from_to(row: Row) -> str:
    return " to ".join(_text(row, quantity) for quantity in VALUES)


def twin_rows(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find one network with the same base and pruned values, to one in the last of two or more decimals."""
    for one, other in combinations(having(rows, "metric_base"), 2):
        if (one.table, one.model) != (other.table, other.model):
            continue
        pairs = [(one.values[quantity], other.values[quantity]) for quantity in VALUES]
        unit = max(value.unit for pair in pairs for value in pair)
        if unit > Decimal("0.01") or any(abs(a.number - b.number) > unit for a, b in pairs):
            continue
        lines = [f"{row.dataset:<16} {_from_to(row)}, printed {_text(row, 'metric_delta')}" for row in (one, other)]
        same = "equal" if all(a.text == b.text for a, b in pairs) else f"equal within {unit}"
        title = (
            f"Table {numeral(one.table)}, {one.model}: base and pruned values on {one.dataset} and "
            f"{other.dataset} are {same}"
        )
        yield Finding("equal-values", "minor", title, "\n".join(lines), ids([one, other], *VALUES))


def repeated_values(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find a value that stands in more rows of one column than chance would put there."""
    for table, those in by_table(having(rows, "metric_base")):
        for quantity in VALUES:
            yield from _repeated(table, quantity, those)


def _repeated(table: int, quantity: str, rows: Sequence[Row]) -> Iterator[Finding]:
    numbers = [row.values[quantity].number for row in rows]
    places = int((max(numbers) - min(numbers)) / max(row.values[quantity].unit for row in rows)) + 1
    for number, times in Counter(numbers).items():
        expected = math.comb(len(rows), times) / places ** (times - 1)
        if times < 3 or expected > RARE:
            continue
        those = [row for row in rows if row.values[quantity].number == number]
        lines = [example(row) for row in those]
        lines.append(
            f"chance: {len(rows)} values spread over {places} places have {expected:.1g} groups of {times} equal "
            f"ones, C({len(rows)}, {times}) / {places}^{times - 1}"
        )
        title = f"Table {numeral(table)}: {_text(those[0], quantity)} is the {quantity} of {times} rows"
        yield Finding("equal-values", "minor", title, "\n".join(lines), ids(those, quantity))
