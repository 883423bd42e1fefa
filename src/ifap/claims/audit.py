"""Check the published numbers against one another and against the networks they name; nothing is trained.

A finding says which printed numbers do not follow from which, and shows the arithmetic. It does not
say why: a slip of the pen, rounding at an earlier stage and tables from different runs look alike.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from ifap import paths
from ifap.claims.published import NUMERALS, load_claims
from ifap.errors import ConfigError
from ifap.files import atomic_write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

SLACK = Decimal("0.06")
"""How far a printed metric change may be off beyond the rounding of the values it is computed from."""
LINE_STEPS = 10  # fewer steps than this may lie on a line by chance
RARE = 0.01  # a coincidence that is expected less often than this is worth a finding
JUMP = 3  # a step this many times its neighbours
SEVERITIES = ("major", "minor", "info")
CONVENTIONS = ["relative", "points", "both", "neither"]


class Kind(NamedTuple):
    """One check: its heading, and what it looks at."""

    title: str
    about: str


KINDS = {
    "metric-delta": Kind(
        "Metric changes that do not follow",
        "A printed change of the metric must be the relative change in percent, or the difference in points, of the "
        f"printed base and pruned values, within {SLACK} and their rounding.",
    ),
    "metric-convention": Kind(
        "Two conventions in one column", "One column should hold either relative changes or differences in points."
    ),
    "cost-delta": Kind(
        "Cost changes that do not follow",
        "A printed change of MACs or parameters must be reachable from values that round to the printed ones.",
    ),
    "equal-values": Kind(
        "Equal values in unrelated cells",
        "Results on different data sets are expected to differ in the last digit; equal ones may be a coincidence.",
    ),
    "across-tables": Kind(
        "One cell, different values",
        "The same network on the same data set is printed in several tables; the values should agree when rounded.",
    ),
    "parameter-count": Kind(
        "Parameters against the architecture",
        "Parameter counts computed from the standard configuration, and the part that pruning heads and feed-forward "
        "units cannot remove: the embeddings.",
    ),
    "reach": Kind(
        "Reductions beyond the stated rule",
        "By the method's stated rule no 1x1 convolution is pruned: it keeps its outputs and loses only inputs. The "
        "bound removes every output of every other dense convolution; by the rule no network can be smaller.",
    ),
    "trace": Kind("The pruning trace", "Table IV, step by step: what the differences between steps look like."),
    "base-macs": Kind(
        "Base MACs against the architecture",
        "Multiply-accumulates of torchvision's network at the input size of its published weights, 1000 classes.",
    ),
}

TORCHVISION = {
    "DenseNet-121": "densenet121",
    "VGG19 (BN)": "vgg19_bn",
    "ResNet-50": "resnet50",
    "Inception-v3": "inception_v3",
    "MobileNetV3-L": "mobilenet_v3_large",
    "ShuffleNetV2 x2.0": "shufflenet_v2_x2_0",
    "ConvNeXt-Small": "convnext_small",
    "EfficientNet-B4": "efficientnet_b4",
    "EfficientNet V2-S": "efficientnet_v2_s",
    "ViT-Base/16": "vit_b_16",
}
SAME_MODEL = {"BERT": "BERT Base", "GPT-2": "GPT-2 Base", "T5": "T5 Base"}
SAME_DATASET = {"Cifar-10": "CIFAR-10"}
CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100}


@dataclass(frozen=True)
class Finding:
    """Something in the published numbers that does not fit together.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    severity : str
        ``major`` (a claim cannot hold as printed beside another), ``minor`` or ``info``.
    title : str
        One line.
    arithmetic : str
        The numbers, line by line.
    claims : tuple of str
        Ids of the claims concerned.
    name : str
        Kind and number, for reference.
    """

    kind: str
    severity: str
    title: str
    arithmetic: str
    claims: tuple[str, ...]
    name: str = ""


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

    def holds(self, low: Decimal, high: Decimal, slack: Decimal = Decimal(0)) -> bool:
        """Whether a number between `low` and `high` may be printed like this."""
        allowed = max(self.half, slack)
        return low - allowed <= self.number <= high + allowed


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
        return f"Table {NUMERALS[self.table - 1]}, {self.dataset}, {self.model}"


class Change(NamedTuple):
    """All values that a change can have, given the rounding of what it is computed from."""

    relative: tuple[Decimal, Decimal]
    points: tuple[Decimal, Decimal]


def run_audit(claims: pd.DataFrame) -> list[Finding]:
    """Run every check.

    Parameters
    ----------
    claims : DataFrame
        Claims as `ifap.claims.published.load_claims` returns them, or a part of them.

    Returns
    -------
    list of Finding
        By kind, the most severe first; empty when all numbers fit together.
    """
    rows = _rows(claims)
    checks = (
        _metric_deltas,
        _metric_conventions,
        _cost_deltas,
        _equal_baselines,
        _twin_rows,
        _repeated_values,
        _across_tables,
        _below_embeddings,
        _parameter_bases,
        _beyond_reach,
        _straight_lines,
        _jumps,
        _first_steps,
        _base_macs,
    )
    found = [finding for check in checks for finding in check(rows)]
    order = list(KINDS)
    found.sort(key=lambda finding: (order.index(finding.kind), SEVERITIES.index(finding.severity)))
    numbers: Counter[str] = Counter()
    named = []
    for finding in found:
        numbers[finding.kind] += 1
        named.append(dataclasses.replace(finding, name=f"{finding.kind}-{numbers[finding.kind]}"))
    return named


def delta_conventions(claims: pd.DataFrame) -> pd.DataFrame:
    """Say of every printed metric change how it follows from the printed values.

    Parameters
    ----------
    claims : DataFrame
        Claims as `ifap.claims.published.load_claims` returns them.

    Returns
    -------
    DataFrame
        `id`, `table` and `convention`: ``relative``, ``points``, ``both`` or ``neither``.
    """
    rows = [row for row in _rows(claims) if "metric_delta" in row.values]
    found = [(row.values["metric_delta"].id, row.table, _convention(row)) for row in rows]
    return pd.DataFrame(found, columns=["id", "table", "convention"])


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


def render_audit(claims: pd.DataFrame, findings: Sequence[Finding], templates: Path | None = None) -> str:
    """Render ``audit.md``: a summary, then the findings by kind."""
    from ifap.claims.tables import environment

    jinja = environment("md", templates)
    jinja.filters["code"] = lambda text: Markup(f"`{text}`")
    jinja.filters["verbatim"] = Markup
    conventions = delta_conventions(claims)
    counts = pd.crosstab(conventions["table"], conventions["convention"]).reindex(columns=CONVENTIONS, fill_value=0)
    return jinja.get_template("audit.md.j2").render(
        claims=len(claims),
        kinds=[(kind, KINDS[kind], [f for f in findings if f.kind == kind]) for kind in KINDS],
        severities=SEVERITIES,
        conventions=[(NUMERALS[int(table) - 1], *row) for table, *row in counts.itertuples()],
        urgent=[finding for finding in findings if finding.severity == "major"],
        concerned=len({claim for finding in findings for claim in finding.claims}),
        source=paths.published_claims(),
    )


def write_audit(path: Path) -> list[Finding]:
    """Audit a file of claims and write ``audit.md`` and ``audit.csv``.

    Parameters
    ----------
    path : Path
        The file of claims.

    Returns
    -------
    list of Finding
        What was found.
    """
    claims = load_claims(path)
    findings = run_audit(claims)
    template = paths.templates_dir() / "audit.md.j2"
    if not template.exists():
        raise ConfigError(f"{template} not found: run this in the project's folder")
    atomic_write_text(paths.audit_file("md"), render_audit(claims, findings))
    atomic_write_text(paths.audit_file("csv"), findings_table(findings))
    return findings


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings by kind and severity, as text."""
    width = max(len(kind.title) for kind in KINDS.values())
    lines = [f"{'':<{width}}  {'  '.join(SEVERITIES)}"]
    for name, kind in KINDS.items():
        counts = Counter(finding.severity for finding in findings if finding.kind == name)
        numbers = "  ".join(f"{counts[severity]:>{len(severity)}}" for severity in SEVERITIES)
        lines.append(f"{kind.title:<{width}}  {numbers}")
    concerned = len({claim for finding in findings for claim in finding.claims})
    return "\n".join([*lines, f"{len(findings)} findings about {concerned} claims"])


def _rows(claims: pd.DataFrame) -> list[Row]:
    rows: dict[tuple[int, str, str, str, int | None], dict[str, Printed]] = defaultdict(dict)
    for claim in claims.to_dict("records"):
        step = None if pd.isna(claim["step"]) else int(claim["step"])
        key = (int(claim["table"]), claim["dataset"], claim["model"], claim["method"], step)
        rows[key][claim["quantity"]] = Printed(claim["id"], claim["value"])
    return [Row(*key, values) for key, values in rows.items()]


def _ids(rows: Iterable[Row], *quantities: str) -> tuple[str, ...]:
    return tuple(row.values[quantity].id for row in rows for quantity in quantities)


# Changes within a row


def _change(base: Printed, pruned: Printed) -> Change:
    lows = (base.number - base.half, base.number + base.half)
    highs = (pruned.number - pruned.half, pruned.number + pruned.half)
    points = (highs[0] - lows[1], highs[1] - lows[0])
    if lows[0] <= 0:  # a base that may be zero: any relative change
        return Change((Decimal("-Infinity"), Decimal("Infinity")), points)
    relative = [100 * (after - before) / before for before in lows for after in highs]
    return Change((min(relative), max(relative)), points)


def _convention(row: Row) -> str:
    change = _change(row.values["metric_base"], row.values["metric_pruned"])
    delta = row.values["metric_delta"]
    holds = (delta.holds(*change.relative, SLACK), delta.holds(*change.points, SLACK))
    return {(True, True): "both", (True, False): "relative", (False, True): "points", (False, False): "neither"}[holds]


def _metric_deltas(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        if "metric_delta" not in row.values or _convention(row) != "neither":
            continue
        base, pruned, delta = (row.values[name] for name in ("metric_base", "metric_pruned", "metric_delta"))
        of_pruned = 100 * (pruned.number - base.number) / pruned.number
        inverse = delta.holds(of_pruned, of_pruned, SLACK)
        lines = [
            f"relative  100 * ({pruned.text} - {base.text}) / {base.text} = {_relative(base, pruned):+.2f} %",
            f"points    {pruned.text} - {base.text} = {pruned.number - base.number:+}",
            f"printed   {delta.text}",
        ]
        if inverse:
            lines.append(f"holds     100 * ({pruned.text} - {base.text}) / {pruned.text} = {of_pruned:+.2f} %")
        else:
            factor = 1 + delta.number / 100
            before, after = pruned.number / factor, base.number * factor
            lines.append(f"needed    a base of {before:.2f} or a pruned value of {after:.2f} for {delta.text} %")
        title = f"{row.where}: {base.text} to {pruned.text}, printed {delta.text}"
        if inverse:
            title += "; it is relative to the pruned value"
        ids = _ids([row], "metric_base", "metric_pruned", "metric_delta")
        yield Finding("metric-delta", "minor" if inverse else "major", title, "\n".join(lines), ids)


def _relative(base: Printed, pruned: Printed) -> Decimal:
    return 100 * (pruned.number - base.number) / base.number


def _metric_conventions(rows: Sequence[Row]) -> Iterator[Finding]:
    for table in sorted({row.table for row in rows}):
        found: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row.table == table and "metric_delta" in row.values:
                found[_convention(row)].append(row)
        if not (found["relative"] and found["points"]):
            continue
        fewer, more = sorted(("relative", "points"), key=lambda name: len(found[name]))
        lines = [f"{name:<9} {len(found[name])} rows" for name in CONVENTIONS]
        lines += [f"only {fewer}: {_example(row)}" for row in found[fewer][:3]]
        title = (
            f"Table {NUMERALS[table - 1]}: {len(found[more])} metric changes hold only as {_words(more)}, "
            f"{len(found[fewer])} only as {_words(fewer)}"
        )
        yield Finding("metric-convention", "minor", title, "\n".join(lines), _ids(found[fewer], "metric_delta"))


def _words(convention: str) -> str:
    return {"relative": "relative change", "points": "difference in points"}[convention]


def _example(row: Row) -> str:
    base, pruned, delta = (row.values[name] for name in ("metric_base", "metric_pruned", "metric_delta"))
    points = pruned.number - base.number
    return (
        f"{row.dataset}, {row.model}: {base.text} to {pruned.text} is {_relative(base, pruned):+.2f} % "
        f"or {points:+} points; printed {delta.text}"
    )


def _cost_deltas(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        for cost, unit in (("gmacs", "GMACs"), ("params", "M parameters")):
            names = [f"{cost}_{part}" for part in ("base", "pruned", "delta")]
            if not row.values.keys() >= set(names):
                continue
            base, pruned, delta = (row.values[name] for name in names)
            low, high = _change(base, pruned).relative
            if delta.holds(low, high):
                continue
            arithmetic = (
                f"100 * ({pruned.text} - {base.text}) / {base.text} = {_relative(base, pruned):+.2f} %\n"
                f"with {base.text} and {pruned.text} rounded: {low:+.2f} to {high:+.2f} %\n"
                f"printed {delta.text}, which stands for {delta.number - delta.half} to {delta.number + delta.half}"
            )
            title = f"{row.where}: {base.text} to {pruned.text} {unit}, printed {delta.text} %"
            yield Finding("cost-delta", "minor", title, arithmetic, _ids([row], *names))


# Coincidences


def _equal_baselines(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find two data sets of one table on which every shared network starts from the same value."""
    for table in sorted({row.table for row in rows}):
        bases: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            if row.table == table and "metric_base" in row.values:
                bases[row.dataset][row.model] = row
        for one, other in combinations(bases, 2):
            shared = [model for model in bases[one] if model in bases[other]]
            pairs = [(bases[one][model], bases[other][model]) for model in shared]
            if len(pairs) < 2 or any(a.values["metric_base"].text != b.values["metric_base"].text for a, b in pairs):
                continue
            lines = [
                f"{a.model:<24} {one} {a.values['metric_base'].text} to {a.values['metric_pruned'].text}; "
                f"{other} {b.values['metric_base'].text} to {b.values['metric_pruned'].text}"
                for a, b in pairs
            ]
            title = f"Table {NUMERALS[table - 1]}: the {len(pairs)} baselines of {one} and {other} are equal"
            ids = _ids([row for pair in pairs for row in pair], "metric_base")
            yield Finding("equal-values", "minor", title, "\n".join(lines), ids)


def _twin_rows(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find one network with the same base and pruned values, to one in the last of two or more decimals."""
    metric = [row for row in rows if "metric_base" in row.values]
    for one, other in combinations(metric, 2):
        if (one.table, one.model) != (other.table, other.model):
            continue
        pairs = [(one.values[name], other.values[name]) for name in ("metric_base", "metric_pruned")]
        unit = max(value.unit for pair in pairs for value in pair)
        if unit > Decimal("0.01") or any(abs(a.number - b.number) > unit for a, b in pairs):
            continue
        lines = [
            f"{row.dataset:<16} {row.values['metric_base'].text} to {row.values['metric_pruned'].text}, "
            f"printed {row.values['metric_delta'].text}"
            for row in (one, other)
        ]
        same = "equal" if all(a.text == b.text for a, b in pairs) else f"equal within {unit}"
        title = (
            f"Table {NUMERALS[one.table - 1]}, {one.model}: base and pruned values on {one.dataset} and "
            f"{other.dataset} are {same}"
        )
        ids = _ids([one, other], "metric_base", "metric_pruned")
        yield Finding("equal-values", "minor", title, "\n".join(lines), ids)


def _repeated_values(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find a value that stands in more rows of one column than chance would put there."""
    for table, quantity in ((t, q) for t in NUMBERED for q in ("metric_base", "metric_pruned")):
        here = [row for row in rows if row.table == table and quantity in row.values]
        if not here:
            continue
        numbers = [row.values[quantity].number for row in here]
        places = int((max(numbers) - min(numbers)) / max(row.values[quantity].unit for row in here)) + 1
        for number, times in Counter(numbers).items():
            expected = math.comb(len(here), times) / places ** (times - 1)
            if times < 3 or expected > RARE:
                continue
            those = [row for row in here if row.values[quantity].number == number]
            lines = [_example(row) for row in those]
            lines.append(
                f"chance: {len(here)} values spread over {places} places have {expected:.1g} groups of {times} equal "
                f"ones, C({len(here)}, {times}) / {places}^{times - 1}"
            )
            title = f"Table {NUMERALS[table - 1]}: {those[0].values[quantity].text} is the {quantity} of {times} rows"
            yield Finding("equal-values", "minor", title, "\n".join(lines), _ids(those, quantity))


NUMBERED = range(1, len(NUMERALS) + 1)


# The same cell in several tables


@dataclass(frozen=True)
class Place:
    """Where a value of a cell is printed."""

    table: int
    value: Printed


def _cells(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[Place]]]:
    """Gather what all tables print for a network on a data set, by quantity."""
    cells: dict[tuple[str, str], dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    steps = [row.step for row in rows if row.step is not None]
    ends = {min(steps, default=0): "base", max(steps, default=0): "pruned"}
    for row in rows:
        cell = cells[SAME_DATASET.get(row.dataset, row.dataset), SAME_MODEL.get(row.model, row.model)]
        if row.method in {"Baseline", "Ours"}:
            quantity = "metric_base" if row.method == "Baseline" else "metric_pruned"
            cell[quantity].append(Place(row.table, row.values["metric"]))
        elif row.step in ends:
            end = ends[row.step]
            cell[f"metric_{end}"].append(Place(row.table, row.values["top1"]))
            cell[f"gmacs_{end}"].append(Place(row.table, row.values["gmacs"]))
        elif not row.method and row.step is None:
            for quantity, value in row.values.items():
                cell[quantity].append(Place(row.table, value))
    return cells


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]])


def _differ(one: Printed, other: Printed) -> bool:
    return abs(one.number - other.number) > one.half + other.half


def _truncated(one: Printed, other: Printed) -> bool:
    """Whether one is the other with digits cut off; both are positive."""
    coarse, fine = sorted((one, other), key=lambda value: value.unit, reverse=True)
    return coarse.number <= fine.number < coarse.number + coarse.unit


def _across_tables(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare the tables; the pruned networks of Table I, whose size is not printed, are compared as one."""
    cells = _cells(rows)
    unsized: list[Disagreement] = []
    for (dataset, model), quantities in cells.items():
        found = list(_disagreements(f"{dataset}, {model}", quantities))
        unsized += [each for each in found if each.severity == "info"]
        if sized := [each for each in found if each.severity != "info"]:
            severity = min((each.severity for each in sized), key=SEVERITIES.index)
            tables = sorted({NUMERALS.index(numeral) for each in sized for numeral in each.tables})
            title = (
                f"{dataset}, {model}: Tables {_listed([NUMERALS[table] for table in tables])} differ, {sized[0].values}"
            )
            yield _gather(sized, severity, title, [each.text for each in sized])
    if unsized:
        compared = len({each.cell for each in unsized})
        title = f"Table I: {compared} pruned results of 'Ours' differ from those of other tables"
        lines = [f"{each.cell:<24} {each.text.removeprefix('metric_pruned').strip()}" for each in unsized]
        lines.append("Table I prints no MACs or parameters: its pruned networks may be of another size")
        yield _gather(unsized, "info", title, lines)


class Disagreement(NamedTuple):
    """Two tables that print different values for one cell."""

    cell: str
    severity: str
    values: str
    text: str
    tables: tuple[str, str]
    claims: tuple[str, str]


def _gather(found: Sequence[Disagreement], severity: str, title: str, lines: Sequence[str]) -> Finding:
    ids = dict.fromkeys(claim for each in found for claim in each.claims)
    return Finding("across-tables", severity, title, "\n".join(lines), tuple(ids))


def _disagreements(cell: str, quantities: Mapping[str, Sequence[Place]]) -> Iterator[Disagreement]:
    for quantity, places in quantities.items():
        for one, other in combinations(places, 2):
            if _differ(one.value, other.value):
                tables = (NUMERALS[one.table - 1], NUMERALS[other.table - 1])
                off = abs(one.value.number - other.value.number)
                rounding = (one.value.half + other.value.half).normalize()
                cut = "; digits cut off instead of rounded" if _truncated(one.value, other.value) else ""
                text = (
                    f"{quantity:<13} {one.value.text} in Table {tables[0]}, {other.value.text} in Table {tables[1]}: "
                    f"{off} apart, rounding explains {rounding:f}{cut}"
                )
                severity = _cross_severity(quantity, one, other)
                values = f"{quantity.replace('_', ' ')} {one.value.text} and {other.value.text}"
                yield Disagreement(cell, severity, values, text, tables, (one.value.id, other.value.id))


def _cross_severity(quantity: str, one: Place, other: Place) -> str:
    if quantity.endswith("_base"):
        return "minor" if _truncated(one.value, other.value) else "major"
    return "info" if 1 in {one.table, other.table} else "minor"


# Parameters of the language models


@dataclass(frozen=True)
class Term:
    """A part of a parameter count: the product of its factors."""

    what: str
    factors: tuple[int, ...]

    @property
    def count(self) -> int:
        """Parameters of this part."""
        return math.prod(self.factors)

    @property
    def text(self) -> str:
        """The multiplication."""
        return f"{self.what:<20} {' * '.join(map(str, self.factors))} = {self.count:,}"


class Language(NamedTuple):
    """A language model by its standard configuration; all three have 12 layers of 768 and 3072 wide."""

    embeddings: tuple[Term, ...]
    body: tuple[Term, ...]

    @property
    def floor(self) -> int:
        """Parameters of the embeddings."""
        return sum(term.count for term in self.embeddings)

    @property
    def total(self) -> int:
        """All parameters."""
        return self.floor + sum(term.count for term in self.body)


WIDTH, HIDDEN, LAYERS, HEADS = 768, 3072, 12, 12
_LAYER_TERMS = (
    Term("attention weights", (LAYERS, 4, WIDTH, WIDTH)),
    Term("attention biases", (LAYERS, 4, WIDTH)),
    Term("feed-forward weights", (LAYERS, 2, WIDTH, HIDDEN)),
    Term("feed-forward biases", (LAYERS, HIDDEN + WIDTH)),
    Term("norms", (2 * LAYERS + 1, 2, WIDTH)),
)
LANGUAGE = {
    "BERT Base": Language(
        (Term("words", (30522, WIDTH)), Term("positions", (512, WIDTH)), Term("segments", (2, WIDTH))),
        (*_LAYER_TERMS, Term("pooler", (WIDTH + 1, WIDTH))),
    ),
    "GPT-2 Base": Language((Term("words", (50257, WIDTH)), Term("positions", (1024, WIDTH))), _LAYER_TERMS),
    "T5 Base": Language(
        (Term("words", (32128, WIDTH)),),
        (
            Term("encoder attention", (LAYERS, 4, WIDTH, WIDTH)),
            Term("decoder attention", (LAYERS, 8, WIDTH, WIDTH)),
            Term("feed-forward weights", (2 * LAYERS, 2, WIDTH, HIDDEN)),
            Term("relative positions", (2, 32, HEADS)),
            Term("norms", (2 * LAYERS + 3 * LAYERS + 2, WIDTH)),
        ),
    ),
}
MILLION = 1_000_000


def _below_embeddings(rows: Sequence[Row]) -> Iterator[Finding]:
    for model, language in LANGUAGE.items():
        those = [row for row in rows if row.model == model and "params_pruned" in row.values]
        floor = Decimal(language.floor) / MILLION
        below = [row for row in those if _most(row.values["params_pruned"]) < floor]
        if not below:
            continue
        body = Decimal(language.total) / MILLION - floor
        lines = [term.text for term in language.embeddings]
        lines.append(f"{'embeddings':<20} {language.floor:,} = {floor:.2f} M")
        for row in those:
            printed = row.values["params_pruned"]
            left = _most(printed) - floor
            fits = f"at most {left:.2f} M of {body:.2f} M for the layers" if left >= 0 else f"{-left:.2f} M below"
            lines.append(f"{row.dataset:<20} {printed.text} M is at most {_most(printed)} M: {fits}")
        lines.append("does not hold below, unless the embedding width or the vocabulary is pruned too")
        shown = ", ".join(dict.fromkeys(row.values["params_pruned"].text for row in below))
        title = f"Table V, {model}: {shown} M after pruning is less than its embeddings, {floor:.1f} M"
        yield Finding("parameter-count", "major", title, "\n".join(lines), _ids(below, "params_pruned"))


def _most(value: Printed) -> Decimal:
    return value.number + value.half


def _parameter_bases(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare base counts; one that ends in 0 is read as rounded to ten millions."""
    for model, language in LANGUAGE.items():
        those = [row for row in rows if row.model == model and "params_base" in row.values]
        exact = Decimal(language.total) / MILLION
        off = []
        for row in those:
            printed = row.values["params_base"]
            half = Decimal(5) if printed.text.endswith("0") and printed.unit == 1 else printed.half
            if abs(printed.number - exact) > half:
                off.append(row)
        if off:
            shown = ", ".join(dict.fromkeys(row.values["params_base"].text for row in off))
            lines = [term.text for term in (*language.embeddings, *language.body)]
            lines.append(f"{'total':<20} {language.total:,} = {exact:.1f} M; printed {shown} M")
            title = f"Table V, {model}: {shown} M before pruning, {exact:.1f} M by its configuration"
            yield Finding("parameter-count", "minor", title, "\n".join(lines), _ids(off, "params_base"))


# Vision networks, from torchvision's definitions


class Convolutions(NamedTuple):
    """Convolutions of one sort in a network: MACs, and how many the rule on 1x1 convolutions leaves."""

    whole: float
    left: float


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision, counted."""

    name: str
    size: int
    macs: int
    sorts: Mapping[str, Convolutions]

    @property
    def left(self) -> float:
        """Share of the MACs that no pruning by the rule can remove."""
        removable = sum(sort.whole - sort.left for sort in self.sorts.values())
        return 1 - removable / self.macs


@cache
def architecture(model: str) -> Architecture:
    """Count a network by its printed name; nothing is downloaded and no convolution is computed."""
    import torch
    from torchvision.models import get_model_weights

    from ifap.costs import macs_by_module

    name = TORCHVISION[model]
    size = get_model_weights(name)["IMAGENET1K_V1"].transforms.keywords["crop_size"]
    network = _meta_network(name)
    macs = macs_by_module(network, torch.zeros(1, 3, size, size, device="meta"))
    return Architecture(name, size, sum(macs.values()), _sorts(network, macs))


def _meta_network(name: str, **options: Any) -> nn.Module:
    import torch
    from torchvision.models import get_model

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Inception's weight initialization
        return get_model(name, weights=None, **options).eval()


def _sort(conv: nn.Conv2d) -> str:
    if conv.kernel_size == (1, 1):
        return "1x1"
    return "depthwise" if conv.groups > 1 else "dense"


def _sorts(network: nn.Module, macs: Mapping[str, int]) -> dict[str, Convolutions]:
    """Sum the MACs of each sort of convolution; empty for a network without 1x1 convolutions."""
    from torch import nn

    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    if not any(_sort(conv) == "1x1" for conv in convs.values()):
        return {}
    shares = _live_inputs(network)
    sums: dict[str, Convolutions] = {}
    for name, conv in convs.items():
        if name not in macs:  # only used in training
            continue
        left = 0.0 if _sort(conv) == "dense" else shares[name] * macs[name]
        whole, before = sums.get(_sort(conv), Convolutions(0, 0))
        sums[_sort(conv)] = Convolutions(whole + macs[name], before + left)
    return sums


def _live_inputs(network: nn.Module) -> dict[str, float]:
    """Return the share of input channels that stays alive when every dense convolution puts out nothing.

    The network runs on ones and zeros: a dense convolution puts out zeros, a 1x1 convolution keeps all
    its outputs, a depthwise one those of its inputs. It changes `network`.
    """
    import torch
    from torch import nn

    shares: dict[str, float] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.__dict__["forward"] = partial(_mark, name, module, shares)
        elif isinstance(module, nn.BatchNorm2d):
            module.__dict__["forward"] = lambda x: x
        elif isinstance(module, nn.Linear):
            module.__dict__["forward"] = partial(_ones, module.out_features)
    with torch.no_grad():
        network(torch.ones(1, 3, 96, 96))
    return shares


def _mark(name: str, conv: nn.Conv2d, shares: dict[str, float], x: Tensor) -> Tensor:
    """Stand in for a convolution: note its live inputs and put out ones and zeros of the right shape."""
    import torch
    from torch.nn import functional

    live = (x != 0).any(dim=3).any(dim=2)
    shares[name] = float(live.float().mean())
    weight: Any = conv.weight
    geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    shape = functional.conv2d(x.to("meta"), weight, None, *geometry).shape
    if _sort(conv) == "depthwise":
        return live.float()[:, :, None, None].expand(shape).clone()
    return torch.full(tuple(shape), 1.0 if _sort(conv) == "1x1" else 0.0)


def _ones(features: int, x: Tensor) -> Tensor:
    return x.new_ones(*x.shape[:-1], features)


def _beyond_reach(rows: Sequence[Row]) -> Iterator[Finding]:
    for model in TORCHVISION:
        least = _least_reductions(rows, model)
        if not least:
            continue
        counted = architecture(model)
        if not counted.sorts:
            continue
        most = 100 * (1 - counted.left)
        over = [(text, ids) for text, reduction, ids in least if float(reduction) > most]
        if not over:
            continue
        lines = [
            f"{sort:<10} {whole / 1e9:.3f} GMACs, at least {left / 1e9:.3f} left"
            for sort, (whole, left) in counted.sorts.items()
        ]
        lines.append(
            f"{counted.name} at {counted.size} px: {counted.macs / 1e9:.3f} GMACs, at least "
            f"{counted.left * counted.macs / 1e9:.3f} left: at most -{most:.1f} %"
        )
        depthwise = "depthwise" in counted.sorts
        if depthwise:
            lines.append("no bound where a 1x1 convolution may lose outputs together with the depthwise one behind it")
        lines += [text for text, _ in over]
        title = f"{model}: {len(over)} printed reductions of MACs are above {most:.1f} %"
        ids = tuple(claim for _, claims in over for claim in claims)
        yield Finding("reach", "info" if depthwise else "major", title, "\n".join(lines), ids)


def _least_reductions(rows: Sequence[Row], model: str) -> list[tuple[str, Decimal, tuple[str, ...]]]:
    """Return each printed reduction of a network's MACs in words, the least it can stand for, and its claims."""
    found: list[tuple[str, Decimal, tuple[str, ...]]] = []
    for row in rows:
        if row.model == model and "gmacs_delta" in row.values:
            delta = row.values["gmacs_delta"]
            least = -delta.number - delta.half
            found.append((f"{row.where}: {delta.text} %, at least -{least} %", least, (delta.id,)))
    for trace in _traces(rows):
        first, last = trace[0].values["gmacs"], trace[-1].values["gmacs"]
        if trace[0].model == model:
            least = -_change(first, last).relative[1]
            words = f"{trace[0].where}: {first.text} to {last.text} is {_relative(first, last):.1f} %"
            found.append((f"{words}, at least -{least:.1f} %", least, (first.id, last.id)))
    return found


def _base_macs(rows: Sequence[Row]) -> Iterator[Finding]:
    printed: dict[tuple[str, str], list[Printed]] = defaultdict(list)
    for row in rows:
        if row.model in TORCHVISION and "gmacs_base" in row.values:
            value = row.values["gmacs_base"]
            printed[row.model, value.text].append(value)
    for (model, text), values in printed.items():
        counted = architecture(model)
        exact = Decimal(counted.macs) / 10**9
        value = values[0]
        if abs(value.number - exact) <= value.half:
            continue
        cut = value.number <= exact < value.number + value.unit
        lines = [
            f"{counted.name} at {counted.size} px: {counted.macs:,} = {exact:.3f} GMACs",
            f"printed {text}, which stands for {value.number - value.half} to {value.number + value.half}"
            + ("; digits cut off instead of rounded" if cut else f"; {100 * (value.number / exact - 1):+.1f} %"),
        ]
        title = f"{model}: {text} GMACs before pruning, {exact:.2f} by torchvision's network"
        ids = tuple(value.id for value in values)
        yield Finding("base-macs", "info" if cut else "minor", title, "\n".join(lines), ids)


# The trace


def _traces(rows: Sequence[Row]) -> list[list[Row]]:
    traces: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.step is not None:
            traces[row.dataset, row.model].append(row)
    return [sorted(trace, key=lambda row: row.step or 0) for trace in traces.values()]


class Line(NamedTuple):
    """A straight line through a part of a trace."""

    start: int
    stop: int
    slope: float
    residual: float


def _longest_line(values: Sequence[Printed]) -> Line:
    """Return the longest part whose values are those of one straight line, rounded."""
    numbers = np.array([float(value.number) for value in values])
    best = Line(0, 1, 0.0, 0.0)
    for start in range(len(values)):
        for stop in range(start + 2, len(values) + 1):
            slope, residual = _straightest(numbers[start:stop])
            if residual > float(values[start].half) + 1e-9:
                break
            if stop - start > best.stop - best.start:
                best = Line(start, stop, slope, residual)
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


def _differences(values: Sequence[Printed]) -> list[Decimal]:
    return [after.number - before.number for before, after in pairwise(values)]


def _straight_lines(rows: Sequence[Row]) -> Iterator[Finding]:
    for trace in _traces(rows):
        for quantity in trace[0].values:
            values = [row.values[quantity] for row in trace]
            line = _longest_line(values)
            if line.stop - line.start < LINE_STEPS or line.slope == 0:
                continue
            here = trace[line.start : line.stop]
            first, last = here[0].step, here[-1].step
            shown = [row.values[quantity] for row in here]
            before = _differences(values[: line.start + 1])
            lines = [
                f"steps {first} to {last}: {' '.join(value.text for value in shown)}",
                f"differences: {' '.join(str(difference) for difference in _differences(shown))}",
                f"line: {line.slope:+.4f} a step, no value farther than {line.residual:.4f} from it; "
                f"rounding explains {shown[0].half}",
            ]
            if before:
                lines.append(f"differences before step {first}: between {min(before)} and {max(before)}")
            lines.append(
                "a step removes whole channels, and by the stated schedule a share of those that remain: equal amounts "
                "in all steps do not follow from it"
            )
            title = f"{here[0].where}: {quantity} of steps {first} to {last} lie on a straight line"
            yield Finding("trace", "minor", title, "\n".join(lines), _ids(here, quantity))


def _jumps(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find steps in which the MACs fall by far more than around them and the parameters do not."""
    for trace in _traces(rows):
        if not trace[0].values.keys() >= {"params", "gmacs"}:
            continue
        changes = {name: _differences([row.values[name] for row in trace]) for name in ("gmacs", "params")}
        for place in range(len(trace) - 1):
            ratios = {name: _against_neighbours(values, place) for name, values in changes.items()}
            if ratios["gmacs"] < JUMP or ratios["params"] >= JUMP / 2:
                continue
            low, high = max(0, place - 3), place + 5
            lines = [f"steps {trace[low].step} to {trace[min(high, len(trace)) - 1].step}"] + [
                f"{name:<7} {' '.join(row.values[name].text for row in trace[low:high])}; differences "
                f"{' '.join(str(difference) for difference in values[low : high - 1])}"
                for name, values in changes.items()
            ]
            before, after = trace[place], trace[place + 1]
            title = (
                f"{after.where}: GMACs change by {changes['gmacs'][place]} in step {after.step}, {ratios['gmacs']:.1f} "
                f"times as much as around it, parameters by {changes['params'][place]}, {ratios['params']:.1f} times"
            )
            yield Finding("trace", "info", title, "\n".join(lines), _ids([before, after], "gmacs"))


def _against_neighbours(changes: Sequence[Decimal], place: int) -> float:
    around = [abs(change) for change in (*changes[max(0, place - 3) : place], *changes[place + 1 : place + 4])]
    usual = statistics.median(around) if around else Decimal(0)
    return float(abs(changes[place]) / usual) if usual else 0.0


def _first_steps(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find traces that begin with the unpruned network, so that they show one iteration less than steps."""
    for trace in _traces(rows):
        row = trace[0]
        classes = CLASSES.get(SAME_DATASET.get(row.dataset, row.dataset))
        if row.model not in TORCHVISION or classes is None or "params" not in row.values:
            continue
        name, printed = TORCHVISION[row.model], row.values["params"]
        whole = sum(parameter.numel() for parameter in _meta_network(name, num_classes=classes).parameters())
        exact = Decimal(whole) / MILLION
        if abs(printed.number - exact) > printed.half:
            continue
        arithmetic = (
            f"{name} with {classes} classes: {whole:,} = {exact:.2f} M parameters; printed {printed.text} M\n"
            f"steps {row.step} to {trace[-1].step} hold {len(trace) - 1} changes, not {len(trace)}"
        )
        title = f"{row.where}: step {row.step} is the unpruned network, so {len(trace) - 1} iterations are shown"
        yield Finding("trace", "info", title, arithmetic, (printed.id,))
