"""Whether printed changes of metric and costs follow from the printed values of their row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pandas as pd

from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.audit.printed import (
    SLACK,
    Printed,
    Row,
    by_table,
    example,
    having,
    ids,
    numeral,
    possible_change,
    relative_change,
    table_rows,
)
from ifap.study.paper.published import METRIC

CONVENTIONS = ["relative", "points", "both", "neither"]
WORDS = {"relative": "relative change", "points": "difference in points"}


def delta_conventions(claims: pd.DataFrame) -> pd.DataFrame:
    """Say of every printed metric change how it follows from the printed values.

    `id`, `table` and `convention`: ``relative``, ``points``, ``both`` or ``neither``.
    """
    rows = having(table_rows(claims), "metric_delta")
    found = [(row.values["metric_delta"].id, row.table, _convention(row)) for row in rows]
    return pd.DataFrame(found, columns=["id", "table", "convention"])


def _convention(row: Row) -> str:
    base, pruned, delta = row.metric
    change = possible_change(base, pruned)
    holds = (delta.holds(*change.relative, SLACK), delta.holds(*change.points, SLACK))
    return {(True, True): "both", (True, False): "relative", (False, True): "points", (False, False): "neither"}[holds]


def metric_changes(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find changes of the metric that are neither relative ones nor differences in points."""
    for row in having(rows, "metric_delta"):
        if _convention(row) == "neither":
            yield _metric_finding(row)


def _metric_finding(row: Row) -> Finding:
    base, pruned, delta = row.metric
    title = f"{row.where}: {base.text} to {pruned.text}, printed {delta.text}"
    lines = [
        f"relative  100 * ({pruned.text} - {base.text}) / {base.text} = {relative_change(base, pruned):+.2f} %",
        f"points    {pruned.text} - {base.text} = {pruned.number - base.number:+}",
        f"printed   {delta.text}",
    ]
    of_pruned = 100 * (pruned.number - base.number) / pruned.number
    is_inverse = delta.holds(of_pruned, of_pruned, SLACK)
    if is_inverse:
        title += "; it is relative to the pruned value"
        lines.append(f"holds     100 * ({pruned.text} - {base.text}) / {pruned.text} = {of_pruned:+.2f} %")
    else:
        lines.append(_needed(base, pruned, delta))
    return Finding("metric-delta", "minor" if is_inverse else "major", title, "\n".join(lines), ids([row], *METRIC))


def _needed(base: Printed, pruned: Printed, delta: Printed) -> str:
    """Say from which base, or to which pruned value, the printed change would follow."""
    factor = 1 + delta.number / 100
    before, after = pruned.number / factor, base.number * factor
    return f"needed    a base of {before:.2f} or a pruned value of {after:.2f} for {delta.text} %"


def mixed_conventions(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find tables with both changes that hold only as relative ones and only as differences."""
    for table, those in by_table(having(rows, "metric_delta")):
        found: dict[str, list[Row]] = defaultdict(list)
        for row in those:
            found[_convention(row)].append(row)
        if not (found["relative"] and found["points"]):
            continue
        fewer, more = sorted(WORDS, key=lambda name: len(found[name]))
        lines = [f"{name:<9} {len(found[name])} rows" for name in CONVENTIONS]
        lines += [f"only {fewer}: {example(row)}" for row in found[fewer][:3]]
        title = (
            f"Table {numeral(table)}: {len(found[more])} metric changes hold only as {WORDS[more]}, "
            f"{len(found[fewer])} only as {WORDS[fewer]}"
        )
        yield Finding("metric-convention", "minor", title, "\n".join(lines), ids(found[fewer], "metric_delta"))


def cost_changes(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find changes of MACs and parameters that follow from no values that round to the printed ones."""
    for row in rows:
        for cost, unit in (("gmacs", "GMACs"), ("params", "M parameters")):
            names = [f"{cost}_{part}" for part in ("base", "pruned", "delta")]
            if not row.values.keys() >= set(names):
                continue
            base, pruned, delta = (row.values[name] for name in names)
            low, high = possible_change(base, pruned).relative
            if delta.holds(low, high):
                continue
            arithmetic = (
                f"100 * ({pruned.text} - {base.text}) / {base.text} = {relative_change(base, pruned):+.2f} %\n"
                f"with {base.text} and {pruned.text} rounded: {low:+.2f} to {high:+.2f} %\n"
                f"printed {delta.text}, which stands for {delta.low} to {delta.high}"
            )
            title = f"{row.where}: {base.text} to {pruned.text} {unit}, printed {delta.text} %"
            yield Finding("cost-delta", "minor", title, arithmetic, ids([row], *names))
