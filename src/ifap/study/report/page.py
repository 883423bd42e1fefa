"""The report's page of one scale: verdicts first, then comparison, tables, figures, audit, costs and environment.

One file: styles, script and figures are in it, so that it opens offline; it links to the records.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import pandas as pd

from ifap.errors import ResultsError
from ifap.files import read_bounded
from ifap.study import paths
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.paper.audit.findings import KINDS, SEVERITIES
from ifap.study.paper.published import COUNTS, NUMERALS
from ifap.study.paper.vocabulary import METRICS
from ifap.study.paths import Cell
from ifap.study.report import LOSSES
from ifap.study.report.csv_files import MOST_BYTES
from ifap.study.report.estimate import table_cells
from ifap.study.report.evidence import evidence
from ifap.study.report.figures import Picture
from ifap.study.report.judge import Judged, Verdict
from ifap.study.report.provenance import Provenance
from ifap.study.report.tables.model import Table
from ifap.study.report.tables.networks import link, origin
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import VERDICT, label
from ifap.study.templates import environment

VERDICTS: tuple[str, ...] = get_args(Verdict)
MOST_DRAWN = 2**18
"""Bytes of a figure that a page holds as a drawing."""
MOST_WIDE = 1600
"""Pixels of a figure that a page holds as a photograph."""
UNQUOTED = " /:;=,()+-.!*@$_~?"
"""What a data URL in an attribute may hold as it is."""
MOST_TARGETS = 5
"""Targets that a page lists one by one."""


@dataclass(frozen=True)
class Outcome:
    """What one method did to one network, in words for the summary."""

    method: str
    macs: str
    score: str
    delta: str
    href: str = ""


@dataclass(frozen=True)
class Network:
    """One network on one data set in the summary."""

    name: str
    dataset: str
    base: str
    outcomes: tuple[Outcome, ...]
    href: str = ""
    metric: str = ""
    """What is measured, where it is not top-1 accuracy, and that less of it is better."""


@dataclass(frozen=True)
class Summary:
    """What the page says first."""

    scale: str
    verdict: str
    ran: str
    target: str
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Measured:
    """One published number beside what was measured."""

    where: str
    quantity: str
    published: str
    measured: str
    verdict: str
    reason: str
    href: str


@dataclass(frozen=True)
class Verdicts:
    """How many claims of each table have which verdict, and every claim."""

    names: tuple[str, ...]
    counts: tuple[tuple[str, tuple[int, ...]], ...]
    claims: tuple[Measured, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """Claims of all tables, by verdict."""
        return tuple(sum(column) for column in zip(*(numbers for _, numbers in self.counts), strict=True))

    @property
    def counted(self) -> tuple[Measured, ...]:
        """Claims about costs that were counted on full-size networks, not taken from a run."""
        return tuple(claim for claim in self.claims if f"{paths.full_size_csv()}#" in claim.href)

    @property
    def reachable(self) -> int:
        """How many of them hold by construction, since the network was pruned to the printed number."""
        return sum(claim.verdict == "reachable" for claim in self.counted)


@dataclass(frozen=True)
class Kind:
    """The findings of one check of the audit."""

    title: str
    about: str
    findings: tuple[Mapping[str, str], ...]

    @property
    def severities(self) -> str:
        """How many findings of each severity, in words."""
        counts = ((sum(f["severity"] == name for f in self.findings), name) for name in SEVERITIES)
        return ", ".join(f"{count} {name}" for count, name in counts if count)


@dataclass(frozen=True)
class Cost:
    """What one cell or one table took."""

    name: str
    cells: str
    seconds: float
    memory: float
    href: str = ""

    @property
    def wall(self) -> str:
        """Wall time with a unit."""
        if self.seconds < 600:
            return f"{self.seconds:.1f} s"
        return f"{self.seconds / 60:.0f} min" if self.seconds < 36_000 else f"{self.seconds / 3600:.1f} h"

    @property
    def peak(self) -> str:
        """Peak memory with a unit."""
        return f"{self.memory:,.0f} MB" if self.memory > 0 else "not measured"


def load_findings(*, root: Path = Path()) -> list[dict[str, str]] | None:
    """Read the findings of the audit; None where it has not run, a malformed file is an error."""
    shown = paths.audit_file("csv")
    try:
        text = read_bounded(root / shown, MOST_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"malformed {shown}: {error}") from None
    for number, row in enumerate(rows, start=2):
        for column in ("finding", "kind", "severity", "title", "arithmetic", "claims"):
            if row.get(column) is None:
                raise ResultsError(f"malformed {shown}: row {number}: column {column} is missing")
    return rows


def render_page(
    report: Report,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    templates: Path | None = None,
    *,
    findings: Sequence[Mapping[str, str]] | None = None,
    provenance: Mapping[Cell, Provenance] | None = None,
) -> str:
    """Render ``index.html`` of one scale: one file, nothing loaded from the network or from beside it.

    The figures become part of the page. `templates` is the folder of the templates, the project's by default;
    `findings` are those of the audit in the published numbers. `provenance` is how the records came to be, as far as
    that is recorded.
    """
    grid, runs, provenance = report.grid, report.runs, provenance or {}
    jinja = environment("html", templates)
    jinja.filters |= {"inline": _inline, "label": label}
    return jinja.get_template("index.html.j2").render(
        evidence=evidence(report, provenance),
        opening=[picture for picture in pictures if picture.name == LOSSES],
        summary=summarize(grid, runs),
        verdicts=summarize_claims(report.claims, grid.scale) if report.claims else None,
        tables=[replace(table, detail=None) for table in tables],
        comparisons=[table.detail for table in tables if table.detail is not None],
        comparison_file=paths.comparison_csv(grid.scale).name,
        pictures=[picture for picture in pictures if picture.name != LOSSES],
        formats=TABLE_FORMATS,
        records=_to(paths.records_csv(grid.scale), grid.scale),
        records_page=paths.records_page(grid.scale).name,
        measured_file=_to(paths.measured_csv(grid.scale), grid.scale),
        full_size=paths.full_size_csv(),
        audit=None if findings is None else _kinds(findings),
        audit_file=_to(paths.audit_file("md"), grid.scale),
        table_costs=table_costs(grid, provenance) if provenance else (),
        cell_costs=cell_costs(runs, provenance),
        environment=_environment(provenance),
    )


def summarize(grid: Grid, runs: pd.DataFrame) -> Summary:
    """Sum up what ran and how it ended."""
    cells = grid.cells()
    pruned = sum(not cell.is_baseline for cell in cells)
    done = int((runs["method"] != "baseline").sum())
    base_done = len(runs) - done
    seeds = ", ".join(str(seed) for seed in grid.options.seeds)
    ran = f"{done} of {pruned} pruned and {base_done} of {len(cells) - pruned} unpruned networks; seed {seeds}"
    verdict = "see the tables" if grid.scale == "paper" else VERDICT
    return Summary(grid.scale, verdict, ran, _target(runs), _networks(grid, runs))


def summarize_claims(claims: Sequence[Judged], scale: str) -> Verdicts:
    """Count the verdicts of each table and lay out every claim."""
    found = Counter((claim.table, claim.verdict) for claim in claims)
    counts = tuple(
        (f"Table {numeral}", tuple(found[number, verdict] for verdict in get_args(Verdict)))
        for number, numeral in zip(COUNTS, NUMERALS, strict=True)
    )
    return Verdicts(VERDICTS, counts, tuple(_measured(claim, scale) for claim in claims))


def table_costs(grid: Grid, provenance: Mapping[Cell, Provenance]) -> tuple[Cost, ...]:
    """Sum up wall time and peak memory of the cells that each table needs; then of all."""
    groups = {grid.table(name).title: cells for name, cells in table_cells(grid).items()}
    groups["All cells, each once"] = grid.cells()
    costs = []
    for title, cells in groups.items():
        found = [provenance[cell] for cell in cells if cell in provenance]
        memory = max((own.peak_memory_mb or 0.0 for own in found), default=0.0)
        costs.append(Cost(title, f"{len(found)} of {len(cells)}", float(sum(own.seconds for own in found)), memory))
    return tuple(costs)


def cell_costs(runs: pd.DataFrame, provenance: Mapping[Cell, Provenance]) -> tuple[Cost, ...]:
    """Return wall time and peak memory of every recorded cell, as far as they are known."""
    rows = ((Cell.of(row), row) for row in runs.to_dict("records"))
    return tuple(
        Cost(
            str(cell),
            "1",
            provenance[cell].seconds,
            provenance[cell].peak_memory_mb or 0.0,
            link(row["record"], row["scale"]),
        )
        for cell, row in rows
        if cell in provenance
    )


def _kinds(findings: Sequence[Mapping[str, str]]) -> tuple[Kind, ...]:
    of_kind: dict[str, list[Mapping[str, str]]] = {kind: [] for kind in KINDS}
    for finding in findings:
        of_kind.setdefault(finding["kind"], []).append(finding)
    return tuple(
        Kind(KINDS[name].title if name in KINDS else name, KINDS[name].about if name in KINDS else "", tuple(found))
        for name, found in of_kind.items()
        if found
    )


def _measured(claim: Judged, scale: str) -> Measured:
    where = " / ".join(name for name in (claim.dataset, claim.model, claim.method) if name)
    step = f", step {claim.step}" if claim.step else ""
    spread = f" \N{PLUS-MINUS SIGN} {claim.sd:.5g}" if claim.sd is not None else ""
    several = f" (n={claim.n})" if claim.n > 1 else ""
    href = claim.records.split(";")[0]
    return Measured(
        f"{NUMERALS[claim.table - 1]} / {where}{step}",
        claim.quantity,
        f"{claim.value} {claim.unit}",
        "" if claim.mean is None else f"{claim.mean:.5g}{spread}{several}",
        claim.verdict,
        claim.reason,
        link(href, scale) if href else "",
    )


def _environment(provenance: Mapping[Cell, Provenance]) -> list[tuple[str, str]]:
    """Lay out the environment of the first record, and every commit that any record names."""
    if not provenance:
        return []
    first = next(iter(provenance.values()))
    commits = dict.fromkeys(own.commit_in_words for own in provenance.values())
    hardware = [(f"hardware: {name}", str(value)) for name, value in first.hardware.items()]
    versions = [(f"version: {name}", str(value)) for name, value in first.versions.items()]
    return [("commit", ", ".join(commits)), *hardware, *versions]


def _inline(picture: Picture) -> str:
    """Return a figure as a data URL, without comments, indentation and far decimals: a third shorter than in base64.

    A large figure, such as of generated images or of many layers, is a WebP image: a page stays small, and the whole
    files are beside it.
    """
    if len(picture.files["svg"]) > MOST_DRAWN:
        return "data:image/webp;base64," + base64.b64encode(_webp(picture.files["png"])).decode()
    text = re.sub(r"<!--.*?-->", "", picture.files["svg"].decode(), flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    text = re.sub(r"([1-9]\d*\.\d\d)\d+", r"\1", text)  # hundredths of a pixel
    return "data:image/svg+xml," + quote(text, safe=UNQUOTED)


def _target(runs: pd.DataFrame) -> str:
    """Say what was asked for; of many targets the ends."""
    known = runs[["target_kind", "target"]].dropna().drop_duplicates()
    words = {"macs": "MACs", "params": "parameters"}
    parts = []
    for kind, targets in known.groupby("target_kind", sort=False)["target"]:
        shares = [f"{100 * target:g}" for target in targets]
        if len(shares) > MOST_TARGETS:
            shares = [f"{100 * targets.min():g} to {100 * targets.max():g}"]
        parts += [f"{share} % fewer {words[str(kind)]}" for share in shares]
    return " or ".join(parts)


def _networks(grid: Grid, runs: pd.DataFrame) -> tuple[Network, ...]:
    networks = []
    for dataset, model in dict.fromkeys((cell.dataset, cell.model) for cell in grid.pruned()):
        here = runs[(runs["dataset"] == dataset) & (runs["model"] == model)]
        base = here[here["method"] == "baseline"]
        methods = dict.fromkeys(cell.method for cell in grid.pruned() if (cell.dataset, cell.model) == (dataset, model))
        outcomes = tuple(_outcome(here[here["method"] == method], method) for method in methods)
        base_score, metric = _mean(base, "test_metric", 2), _metric(here)
        networks.append(Network(model, dataset, base_score, outcomes, origin(base) or "", metric))
    return tuple(networks)


def _metric(runs: pd.DataFrame) -> str:
    if not len(runs) or runs["metric"].iloc[0] == "top1":
        return ""
    metric = METRICS[runs["metric"].iloc[0]]
    return f"{metric.title}{'; less is better' * metric.less_is_better}"


def _outcome(frame: pd.DataFrame, method: str) -> Outcome:
    if frame.empty:
        return Outcome(label(method), "", "not attempted", "")
    macs, score, delta = (
        _mean(frame, column, decimals)
        for column, decimals in (("macs_reduction", 1), ("test_metric", 2), ("metric_delta", 2))
    )
    return Outcome(label(method), macs, score, delta, origin(frame) or "")


def _mean(frame: pd.DataFrame, column: str, decimals: int) -> str:
    return fixed(float(frame[column].mean()), decimals)


def _to(path: Path, scale: str) -> str:
    return link(path.as_posix(), scale)


def _webp(png: bytes) -> bytes:
    from PIL import Image  # slow to import, and few pages need it

    file, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((MOST_WIDE, MOST_WIDE))
    image.save(file, "WEBP", quality=80, method=6)  # sharper letters than JPEG, of half the size
    return file.getvalue()
