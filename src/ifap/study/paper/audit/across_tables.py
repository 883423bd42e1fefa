"""Whether tables that print the same network on the same data set agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from ifap.study.paper.audit.findings import SEVERITIES, Finding
from ifap.study.paper.audit.printed import Printed, Row, numeral

SAME_MODEL = {"BERT": "BERT Base", "GPT-2": "GPT-2 Base", "T5": "T5 Base"}
SAME_DATASET = {"Cifar-10": "CIFAR-10"}


class Place(NamedTuple):
    """Where a value of a cell is printed."""

    table: int
    value: Printed


class Disagreement(NamedTuple):
    """Two tables that print different values for one cell: a network on a data set."""

    cell: str
    quantity: str
    one: Place
    other: Place

    @property
    def places(self) -> tuple[Place, Place]:
        """Both places."""
        return self.one, self.other

    @property
    def is_cut_off(self) -> bool:
        """Whether one value is the other with digits cut off."""
        coarse, fine = sorted((self.one.value, self.other.value), key=lambda value: value.unit, reverse=True)
        return coarse.cuts_off(fine.number)

    @property
    def severity(self) -> str:
        """Pruned networks may be of another size, those of Table I in particular; unpruned ones may not."""
        if self.quantity.endswith("_base"):
            return "minor" if self.is_cut_off else "major"
        return "info" if 1 in {self.one.table, self.other.table} else "minor"

    @property
    def text(self) -> str:
        """The two values, how far they are apart and what rounding explains."""
        (table, one), (other_table, other) = self.one, self.other
        apart, rounding = abs(one.number - other.number), (one.half + other.half).normalize()
        cut = "; digits cut off instead of rounded" if self.is_cut_off else ""
        return (
            f"{one.text} in Table {numeral(table)}, {other.text} in Table {numeral(other_table)}: "
            f"{apart} apart, rounding explains {rounding:f}{cut}"
        )


def differing_tables(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare the tables; the pruned networks of Table I, whose size is not printed, are compared as one."""
    unsized: list[Disagreement] = []
    sized: dict[str, list[Disagreement]] = defaultdict(list)
    for each in _disagreements(rows):
        (unsized if each.severity == "info" else sized[each.cell]).append(each)
    for cell, found in sized.items():
        severity = min((each.severity for each in found), key=SEVERITIES.index)
        tables = [numeral(table) for table in sorted({place.table for each in found for place in each.places})]
        values = f"{found[0].quantity.replace('_', ' ')} {found[0].one.value.text} and {found[0].other.value.text}"
        title = f"{cell}: Tables {', '.join(tables[:-1])} and {tables[-1]} differ, {values}"
        yield _gather(found, severity, title, [f"{each.quantity:<13} {each.text}" for each in found])
    if unsized:
        compared = len({each.cell for each in unsized})
        title = f"Table I: {compared} pruned results of 'Ours' differ from those of other tables"
        lines = [f"{each.cell:<24} {each.text}" for each in unsized]
        lines.append("Table I prints no MACs or parameters: its pruned networks may be of another size")
        yield _gather(unsized, "info", title, lines)


def _gather(found: Sequence[Disagreement], severity: str, title: str, lines: Sequence[str]) -> Finding:
    claims = dict.fromkeys(place.value.id for each in found for place in each.places)
    return Finding("across-tables", severity, title, "\n".join(lines), tuple(claims))


def _disagreements(rows: Sequence[Row]) -> Iterator[Disagreement]:
    for cell, quantities in _cells(rows).items():
        for quantity, places in quantities.items():
            for one, other in combinations(places, 2):
                if one.value.high < other.value.low or other.value.high < one.value.low:
                    yield Disagreement(cell, quantity, one, other)


def _cells(rows: Sequence[Row]) -> dict[str, dict[str, list[Place]]]:
    """Gather what all tables print for a network on a data set, by quantity."""
    cells: dict[str, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    steps = [row.step for row in rows if row.step is not None]
    ends = {min(steps, default=0): "base", max(steps, default=0): "pruned"}
    for row in rows:
        dataset, model = SAME_DATASET.get(row.dataset, row.dataset), SAME_MODEL.get(row.model, row.model)
        cell = cells[f"{dataset}, {model}"]
        for quantity, value in _comparable(row, ends):
            cell[quantity].append(Place(row.table, value))
    return cells


def _comparable(row: Row, ends: dict[int, str]) -> Iterator[tuple[str, Printed]]:
    """Return the values of a row that other tables print too, by the names that those have."""
    if row.method in {"Baseline", "Ours"}:
        yield "metric_base" if row.method == "Baseline" else "metric_pruned", row.values["metric"]
    elif row.step in ends:
        yield f"metric_{ends[row.step]}", row.values["top1"]
        yield f"gmacs_{ends[row.step]}", row.values["gmacs"]
    elif not row.method and row.step is None:
        yield from row.values.items()
