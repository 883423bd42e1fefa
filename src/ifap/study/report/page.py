"""The report's page of one scale: verdicts first, then comparison, tables, figures, audit, costs and environment.

One file: styles, script and figures are in it, so that it opens offline; it links to the records.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from pydantic import ValidationError

from ifap.errors import ResultsError
from ifap.files import read_bounded
from ifap.study import paths
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.paper.audit import KINDS, SEVERITIES
from ifap.study.paper.published import COUNTS, NUMERALS
from ifap.study.paper.vocabulary import METRICS
from ifap.study.report.csv_files import MOST_BYTES
from ifap.study.report.estimate import table_cells
from ifap.study.report.figures import Picture
from ifap.study.report.judge import Verdict
from ifap.study.report.record import Provenance, first_problem
from ifap.study.report.tables.model import Table
from ifap.study.report.tables.networks import link, select
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.wording import VERDICT, label
from ifap.study.templates import environment

VERDICTS: tuple[str, ...] = get_args(Verdict)
MOST_TARGETS = 5
"""Targets that a page lists one by one."""
CLAIM_COLUMNS = (
    *("table", "dataset", "model", "method", "step", "quantity", "unit", "value"),
    *("mean", "sd", "n", "verdict", "reason", "metrics"),
)


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


@dataclass(frozen=True)
class Evidence:
    """What the page shows beside tables and figures; each part may be absent.

    Parameters
    ----------
    claims : DataFrame, optional
        Content of ``results/{scale}/claims.csv``, as text.
    findings : sequence of mapping, optional
        The rows of ``audit.csv``.
    records : mapping of str to dict
        ``metrics.json`` by its path.
    """

    claims: pd.DataFrame | None = None
    findings: Sequence[Mapping[str, str]] | None = None
    records: Mapping[str, Any] | None = None


def load_evidence(grid: Grid, runs: pd.DataFrame, *, root: Path = Path()) -> Evidence:
    """Read what the page shows beside tables and figures.

    Parameters
    ----------
    grid : Grid
        The cells of the scale.
    runs : DataFrame
        Content of ``runs.csv``; it names the records.
    root : Path
        The project's root.

    Returns
    -------
    Evidence
        What is there; an absent file is an absent part, a malformed one an error.
    """
    files = [str(path) for path in runs["metrics"]]
    for name in files:
        link(name, grid.scale)
    records = {name: _json(root / name) for name in files if (root / name).exists()}
    return Evidence(_claims(root, grid.scale), _findings(root), records)


def render_page(
    grid: Grid,
    runs: pd.DataFrame,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    templates: Path | None = None,
    *,
    evidence: Evidence | None = None,
) -> str:
    """Render ``index.html`` of one scale.

    Parameters
    ----------
    grid : Grid
        The cells of the scale.
    runs : DataFrame
        Content of ``runs.csv``.
    tables : sequence of Table
        The tables, in order.
    pictures : sequence of Picture
        The figures, in order; they become part of the page.
    templates : Path, optional
        Folder of the templates; the project's by default.
    evidence : Evidence, optional
        Verdicts, audit and environment.

    Returns
    -------
    str
        The page: one file, nothing loaded from the network or from beside it.
    """
    evidence = evidence or Evidence()
    jinja = environment("html", templates)
    jinja.filters["inline"] = _inline
    return jinja.get_template("index.html.j2").render(
        summary=summarize(grid, runs),
        verdicts=summarize_claims(evidence.claims, grid.scale),
        tables=[replace(table, detail=None) for table in tables],
        comparisons=[table.detail for table in tables if table.detail is not None],
        comparison_file=_to(paths.comparison_csv(grid.scale), grid.scale),
        pictures=pictures,
        formats=TABLE_FORMATS,
        runs=_to(paths.runs_csv(grid.scale), grid.scale),
        claims_file=_to(paths.scale_dir(grid.scale) / "claims.csv", grid.scale),
        full_size=paths.full_size_csv(),
        audit=None if evidence.findings is None else _kinds(evidence.findings),
        audit_file=_to(paths.audit_file("md"), grid.scale),
        table_costs=table_costs(grid, runs),
        cell_costs=cell_costs(grid, runs),
        environment=_environment(evidence.records or {}),
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


def summarize_claims(claims: pd.DataFrame | None, scale: str) -> Verdicts | None:
    """Count the verdicts of each table and lay out every claim.

    Parameters
    ----------
    claims : DataFrame or None
        Content of ``claims.csv`` of one scale.
    scale : str
        Its name.

    Returns
    -------
    Verdicts or None
        None where there is no such file yet.
    """
    if claims is None:
        return None
    names = tuple(dict.fromkeys([*VERDICTS, *claims["verdict"]]))
    numbers = {str(number): claims["verdict"][claims["table"] == str(number)].value_counts() for number in COUNTS}
    counts = tuple(
        (f"Table {numeral}", tuple(int(numbers[str(number)].get(name, 0)) for name in names))
        for number, numeral in zip(COUNTS, NUMERALS, strict=True)
    )
    return Verdicts(names, counts, tuple(_measured(row, scale) for row in claims.to_dict("records")))


def table_costs(grid: Grid, runs: pd.DataFrame) -> tuple[Cost, ...]:
    """Sum up wall time and peak memory of the cells that each table needs; then of all."""
    groups = {grid.table(name).title: cells for name, cells in table_cells(grid).items()}
    groups["All cells, each once"] = grid.cells()
    costs = []
    for title, cells in groups.items():
        found = [select(runs, cell) for cell in cells]
        frame = pd.concat(found) if found else runs.iloc[:0]
        memory = frame["peak_memory_mb"].max()
        costs.append(Cost(title, f"{len(frame)} of {len(cells)}", float(frame["wall_seconds"].sum()), float(memory)))
    return tuple(costs)


def cell_costs(grid: Grid, runs: pd.DataFrame) -> tuple[Cost, ...]:
    """Return wall time and peak memory of every cell that ran."""
    return tuple(
        Cost(
            "/".join(str(row[key]) for key in ("task", "dataset", "model", "method")) + f"/seed{row['seed']}",
            "1",
            float(row["wall_seconds"]),
            float(row["peak_memory_mb"]),
            link(row["metrics"], grid.scale),
        )
        for row in runs.to_dict("records")
    )


def _claims(root: Path, scale: str) -> pd.DataFrame | None:
    path = paths.scale_dir(scale) / "claims.csv"
    try:
        content = io.BytesIO(read_bounded(root / path, MOST_BYTES))
        frame = pd.read_csv(content, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultsError(f"malformed {path}: {error.strerror}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ResultsError(f"malformed {path}: {str(error).strip().splitlines()[0]}") from None
    missing = [column for column in CLAIM_COLUMNS if column not in frame]
    if missing:
        raise ResultsError(f"malformed {path}: row 1: column {missing[0]} is missing")
    for row, number in enumerate(frame["table"], start=2):
        if number not in map(str, COUNTS):
            raise ResultsError(f"malformed {path}: row {row}, column table: unknown table '{number[:40]}'")
    return frame


def _findings(root: Path) -> list[dict[str, str]] | None:
    path = root / paths.audit_file("csv")
    if not path.exists():
        return None
    try:
        text = read_bounded(path, MOST_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"malformed {paths.audit_file('csv')}: {error}") from None
    for number, row in enumerate(rows, start=2):
        for column in ("finding", "kind", "severity", "title", "arithmetic", "claims"):
            if row.get(column) is None:
                raise ResultsError(f"malformed {paths.audit_file('csv')}: row {number}: column {column} is missing")
    return rows


def _json(path: Path) -> Any:
    try:
        record = json.loads(read_bounded(path, MOST_BYTES).decode())
        Provenance.model_validate(record["provenance"] if isinstance(record, dict) else None)
    except KeyError:
        raise ResultsError(f"malformed {path}: provenance is missing") from None
    except ValidationError as error:
        raise ResultsError(f"malformed {path}: provenance.{first_problem(error)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"malformed {path}: {error}") from None
    return record


def _kinds(findings: Sequence[Mapping[str, str]]) -> tuple[Kind, ...]:
    of_kind: dict[str, list[Mapping[str, str]]] = {kind: [] for kind in KINDS}
    for finding in findings:
        of_kind.setdefault(finding["kind"], []).append(finding)
    return tuple(
        Kind(KINDS[name].title if name in KINDS else name, KINDS[name].about if name in KINDS else "", tuple(found))
        for name, found in of_kind.items()
        if found
    )


def _measured(row: Mapping[Any, str], scale: str) -> Measured:
    where = " / ".join(row[key] for key in ("dataset", "model", "method") if row[key])
    step = f", step {row['step']}" if row["step"] else ""
    spread = f" \N{PLUS-MINUS SIGN} {_digits(row['sd'])}" if row["sd"] else ""
    several = f" (n={row['n']})" if row["mean"] and row["n"] not in {"", "1"} else ""
    measured = f"{_digits(row['mean'])}{spread}{several}" if row["mean"] else ""
    href = row["metrics"].split(";")[0].strip()
    return Measured(
        f"{NUMERALS[int(row['table']) - 1]} / {where}{step}",
        row["quantity"],
        f"{row['value']} {row['unit']}",
        measured,
        row["verdict"],
        row["reason"],
        link(href, scale) if href else "",
    )


def _digits(text: str) -> str:
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


def _environment(records: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lay out the environment of the first record, and every commit that any record names."""
    if not records:
        return []
    origins = [record["provenance"] for record in records.values()]
    commits = dict.fromkeys(
        f"{(origin['commit'] or 'not in git')[:12]}{' (with changes)' if origin['dirty'] else ''}" for origin in origins
    )
    first = origins[0]
    hardware = [(f"hardware: {name}", str(value)) for name, value in first["hardware"].items() if value is not None]
    versions = [(f"version: {name}", str(value)) for name, value in first["versions"].items()]
    return [("commit", ", ".join(commits)), *hardware, *versions]


def _inline(picture: Picture) -> str:
    """Return a figure as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.files["svg"]).decode()


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
        outcomes = tuple(_outcome(here[here["method"] == method], method, grid.scale) for method in methods)
        base_score, metric = _mean(base, "test_metric", 2), _metric(here)
        networks.append(Network(model, dataset, base_score, outcomes, _origin(base, grid.scale), metric))
    return tuple(networks)


def _metric(runs: pd.DataFrame) -> str:
    if not len(runs) or runs["metric"].iloc[0] == "top1":
        return ""
    metric = METRICS[runs["metric"].iloc[0]]
    return f"{metric.title}{'; less is better' * metric.less_is_better}"


def _outcome(frame: pd.DataFrame, method: str, scale: str) -> Outcome:
    if frame.empty:
        return Outcome(label(method), "", "not attempted", "")
    macs, score, delta = (
        _mean(frame, column, decimals)
        for column, decimals in (("macs_reduction", 1), ("test_metric", 2), ("metric_delta", 2))
    )
    return Outcome(label(method), macs, score, delta, _origin(frame, scale))


def _origin(frame: pd.DataFrame, scale: str) -> str:
    """Return the link to the record, the first seed's where there are several."""
    return link(str(frame["metrics"].iloc[0]), scale) if len(frame) else ""


def _mean(frame: pd.DataFrame, column: str, decimals: int) -> str:
    return fixed(float(frame[column].mean()), decimals)


def _to(path: Path, scale: str) -> str:
    return link(path.as_posix(), scale)
