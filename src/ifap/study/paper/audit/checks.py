"""All checks, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from ifap.study.paper.audit import across_tables, changes, coincidences, macs, parameters, trace
from ifap.study.paper.audit.findings import KINDS, SEVERITIES, Finding
from ifap.study.paper.audit.printed import Row, table_rows

Check = Callable[[Sequence[Row]], Iterator[Finding]]

PRINTED: tuple[Check, ...] = (
    changes.metric_changes,
    changes.mixed_conventions,
    changes.cost_changes,
    coincidences.equal_baselines,
    coincidences.twin_rows,
    coincidences.repeated_values,
    across_tables.differing_tables,
    parameters.fewer_than_embeddings,
    parameters.base_parameters,
    trace.straight_lines,
    trace.jumps,
)
"""The checks of printed numbers against one another; they need no torch."""
COUNTED: tuple[Check, ...] = (macs.reductions_beyond_rule, macs.base_macs, trace.unpruned_starts)
"""The checks against networks that are built and counted."""


def run_audit(claims: pd.DataFrame, checks: Sequence[Check] = PRINTED + COUNTED) -> list[Finding]:
    """Run checks, all by default, on claims of `ifap.study.paper.published.load_claims` or a part of them.

    The findings are by kind, the most severe first; there are none if all numbers fit together.
    """
    rows = table_rows(claims)
    found = [finding for check in checks for finding in check(rows)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    named = []
    for kind in KINDS:
        own = [finding for finding in found if finding.kind == kind]
        named += [replace(finding, name=f"{kind}-{number}") for number, finding in enumerate(own, start=1)]
    return named
