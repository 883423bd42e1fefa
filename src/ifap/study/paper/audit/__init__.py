"""Check the published numbers against one another and against the networks they name; nothing is trained.

A finding says which printed numbers do not follow from which, and shows the arithmetic. It does not
say why: a slip of the pen, rounding at an earlier stage and tables from different runs look alike.
"""

from __future__ import annotations

from ifap.study.paper.audit.architectures import architecture
from ifap.study.paper.audit.changes import delta_conventions
from ifap.study.paper.audit.checks import PRINTED, run_audit
from ifap.study.paper.audit.findings import KINDS, SEVERITIES, Finding
from ifap.study.paper.audit.parameters import LANGUAGE
from ifap.study.paper.audit.report import findings_table, render_audit, summary, write_audit

__all__ = [
    "KINDS",
    "LANGUAGE",
    "PRINTED",
    "SEVERITIES",
    "Finding",
    "architecture",
    "delta_conventions",
    "findings_table",
    "render_audit",
    "run_audit",
    "summary",
    "write_audit",
]
