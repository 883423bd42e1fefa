"""The audit in print: ``audit.md``, ``audit.csv`` and a summary for the terminal."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from ifap.errors import ConfigError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.paper.audit.changes import CONVENTIONS, delta_conventions
from ifap.study.paper.audit.checks import run_audit
from ifap.study.paper.audit.findings import KINDS, SEVERITIES, Finding
from ifap.study.paper.audit.printed import numeral
from ifap.study.paper.published import load_claims


def write_audit(path: Path) -> list[Finding]:
    """Audit a file of claims, write ``audit.md`` and ``audit.csv``, and return the findings."""
    claims = load_claims(path)
    findings = run_audit(claims)
    template = paths.templates_dir() / "audit.md.j2"
    if not template.exists():
        raise ConfigError(f"{template} not found: run this in the project's folder")
    atomic_write_text(paths.audit_file("md"), render_audit(claims, findings))
    atomic_write_text(paths.audit_file("csv"), findings_table(findings))
    return findings


def render_audit(claims: pd.DataFrame, findings: Sequence[Finding], templates: Path | None = None) -> str:
    """Render ``audit.md``: a summary, then the findings by kind."""
    from ifap.study.templates import environment

    jinja = environment("md", templates)
    jinja.filters["code"] = lambda text: Markup(f"`{text}`")
    jinja.filters["verbatim"] = Markup
    conventions = delta_conventions(claims)
    counts = pd.crosstab(conventions["table"], conventions["convention"]).reindex(columns=CONVENTIONS, fill_value=0)
    return jinja.get_template("audit.md.j2").render(
        claims=len(claims),
        kinds=[(kind, KINDS[kind], [f for f in findings if f.kind == kind]) for kind in KINDS],
        severities=SEVERITIES,
        conventions=[(numeral(int(table)), *row) for table, *row in counts.itertuples()],
        urgent=[finding for finding in findings if finding.severity == "major"],
        concerned=_concerned(findings),
        source=paths.published_claims(),
    )


def findings_table(findings: Iterable[Finding]) -> str:
    """Return the text of ``audit.csv``: one row a finding, its claims separated by semicolons."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("finding", "kind", "severity", "title", "arithmetic", "claims"))
    for finding in findings:
        arithmetic = " | ".join(" ".join(line.split()) for line in finding.arithmetic.splitlines())
        head = (finding.name, finding.kind, finding.severity, finding.title)
        writer.writerow((*head, arithmetic, ";".join(finding.claims)))
    return text.getvalue()


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings by kind and severity, as text."""
    width = max(len(kind.title) for kind in KINDS.values())
    lines = [f"{'':<{width}}  {'  '.join(SEVERITIES)}"]
    for name, kind in KINDS.items():
        counts = Counter(finding.severity for finding in findings if finding.kind == name)
        numbers = "  ".join(f"{counts[severity]:>{len(severity)}}" for severity in SEVERITIES)
        lines.append(f"{kind.title:<{width}}  {numbers}")
    return "\n".join([*lines, f"{len(findings)} findings about {_concerned(findings)} claims"])


def _concerned(findings: Iterable[Finding]) -> int:
    """Return about how many claims there is a finding."""
    return len({claim for finding in findings for claim in finding.claims})
