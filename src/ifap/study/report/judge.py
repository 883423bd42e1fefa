"""A verdict for every published number: what was measured for it, or why nothing was.

The tolerances come from ``params.yaml``, so that they are fixed before anything is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.config.data import ModelOptions
from ifap.study.config.params import VerdictParams
from ifap.study.grid import Grid
from ifap.study.paper.audit.changes import delta_conventions
from ifap.study.paper.audit.checks import PRINTED, run_audit
from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.published import COLUMNS, load_claims
from ifap.study.paper.vocabulary import APART, DATASETS, METHODS, MODELS, PRINTED_METRICS, published_model
from ifap.study.paths import Cell
from ifap.study.report.csv_files import as_csv
from ifap.study.report.full_size import Count, Key
from ifap.study.report.record import Blank
from ifap.study.report.records import NO_RECORD

Verdict = Literal[
    "reproduced",
    "reachable",  # the network was pruned to this very number, which is no evidence that it was measured
    "not reproduced",
    "not comparable (scale)",
    "not attempted",
    "inconsistent in the source",
]
CONTRADICTIONS = {
    "metric-delta": ("major", "minor"),
    "cost-delta": ("major", "minor"),
    "across-tables": ("major", "minor"),
    "parameter-count": ("major",),
}
"""The findings of the audit, by kind and severity, that leave the printed value itself in doubt."""
INCONSISTENT: Literal["inconsistent in the source"] = "inconsistent in the source"
SPLIT = "; "  # between what a scale does not run and what it would need


class Judged(BaseModel):
    """A published number with what was measured for it and a verdict; a row of ``measured.csv`` if anything was."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    table: int = Field(ge=1, le=5)
    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    method: str
    step: Blank[int]
    quantity: str = Field(min_length=1)
    unit: str
    value: str = Field(pattern=r"^[+-]?[0-9]+(\.[0-9]+)?$")
    id: str
    mean: Blank[float]
    sd: Blank[float]
    n: int = Field(ge=0)
    tolerance: str
    verdict: Verdict
    reason: str = Field(min_length=1)
    records: str
    """The lines that the value comes from, parted by semicolons."""


@dataclass(frozen=True)
class Source:
    """What claims are compared with."""

    grid: Grid  # The cells of the scale and the tolerances.
    runs: pd.DataFrame  # Content of ``records.csv``.
    trace: pd.DataFrame  # Content of ``trace.csv``.
    missing: Mapping[Cell, str] = field(default_factory=dict)  # Why cells have no record.
    # The networks counted at full size, by data set and model; see `ifap.study.report.full_size`.
    counts: Mapping[Key, tuple[int, Count]] = field(default_factory=dict)

    def rows(self, dataset: str, model: str, method: str, *, of_trace: bool = False) -> pd.DataFrame:
        """Return the rows of a published network, or of one that stands for it."""
        groups, nothing = self._groups[of_trace]
        return groups.get((dataset, model, method), nothing)

    @cached_property
    def _groups(self) -> list[tuple[dict[Any, pd.DataFrame], pd.DataFrame]]:
        """The rows of `runs` and of `trace` by data set, published network and method, each with a frame of none."""
        keys = ("dataset", "published", "method")
        named = [frame.assign(published=frame["model"].map(published_model)) for frame in (self.runs, self.trace)]
        return [(dict(iter(frame.groupby(list(keys), sort=False))), frame.iloc[:0]) for frame in named]


@dataclass(frozen=True)
class Measured:
    """The values of one claim, one a seed, and the records they come from.

    `about` says of a network counted at full size what was counted; it is empty for a run. `apart` says
    what, beside the scale, keeps a run from being compared: another metric, a smaller network. `asked` is whether
    the network was pruned to the claim itself, so that the two agree by construction.
    """

    values: pd.Series[float]
    records: tuple[str, ...]
    about: str = ""
    apart: str = ""
    asked: bool = False

    @property
    def sd(self) -> float | None:
        """Standard deviation; None for a single seed."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None


def judge(claims: pd.DataFrame, source: Source, findings: Iterable[Finding]) -> list[Judged]:
    """Give every claim a verdict; the order is that of `claims`.

    `claims` are as `ifap.study.paper.published.load_claims` returns them, and `findings` what the audit found in them.
    """
    _check_names(claims)
    contradictions = _contradictions(findings)
    conventions = delta_conventions(claims).set_index("id")["convention"].to_dict()
    points = {str(claim) for claim, convention in conventions.items() if convention == "points"}
    metrics = _metric_units(claims)
    rows = [{**claim, "metric_unit": metrics.get(_row_of(claim), claim["unit"])} for claim in claims.to_dict("records")]
    return [_judge(claim, source, contradictions, points) for claim in rows]


def _row_of(claim: Mapping[Any, Any]) -> tuple[int, str, str]:
    return claim["table"], claim["dataset"], claim["model"]


def _metric_units(claims: pd.DataFrame) -> dict[tuple[int, str, str], str]:
    """Return what the metric of each row is printed in: its change is printed in percent, whatever it is of."""
    unpruned = claims[claims["quantity"] == "metric_base"]
    return {_row_of(claim): claim["unit"] for claim in unpruned.to_dict("records")}


def judge_file(path: Path, source: Source) -> list[Judged]:
    """Read the published claims, audit them and give each a verdict; see `judge`."""
    claims = load_claims(path)
    return judge(claims, source, _audited(path.read_text("utf-8"), path))


def count_verdicts(rows: Sequence[Judged]) -> str:
    """Say how many claims have which verdict."""
    counts = Counter(row.verdict for row in rows)
    return f"{len(rows)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def measured_table(rows: Iterable[Judged]) -> str:
    """Lay out as CSV text the verdicts on what the scale itself measured."""
    own = (row for row in rows if row.n and not is_counted(row))
    return as_csv(tuple(Judged.model_fields), (row.model_dump() for row in own))


@lru_cache(maxsize=4)
def _audited(text: str, path: Path) -> tuple[Finding, ...]:
    """Audit one file; its text is the key, so that several stages in one process audit it once."""
    # No verdict needs the checks that count networks, which take ten seconds.
    return tuple(run_audit(load_claims(path), PRINTED))


def _check_names(claims: pd.DataFrame) -> None:
    for column, known in (("dataset", DATASETS), ("model", MODELS), ("method", {"": "", **METHODS})):
        for row, name in enumerate(claims[column], start=2):
            if name not in known:
                raise ResultsError(
                    f"{paths.published_claims()}: row {row}, column {column}: '{name}' has no name here: "
                    "add it to src/ifap/study/paper/vocabulary.py"
                )


def _contradictions(findings: Iterable[Finding]) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for finding in findings:
        if finding.severity in CONTRADICTIONS.get(finding.kind, ()):
            for claim in finding.claims:
                found.setdefault(claim, finding)
    return found


def _judge(claim: dict[Any, Any], source: Source, contradictions: Mapping[str, Finding], points: set[str]) -> Judged:
    measured = _measured(claim, source, points=claim["id"] in points)
    if measured is None or source.grid.scale != "paper":  # a trained network of the paper's size would be better
        measured = _counted(claim, source) or measured
    tolerance, width = _tolerance(claim, measured, source.grid.params.verdicts)
    verdict, reason = _verdict(claim, source, measured, width, contradictions.get(claim["id"]))
    row: dict[str, Any] = {column: claim[column] for column in (*COLUMNS, "id")}
    row["step"] = None if pd.isna(claim["step"]) else int(claim["step"])
    row |= {"mean": None, "sd": None, "n": 0, "records": ""}
    if measured:
        row |= {"mean": float(measured.values.mean()), "sd": measured.sd, "n": len(measured.values)}
        row |= {"records": ";".join(measured.records)}
    return Judged(**row, tolerance=tolerance, verdict=verdict, reason=reason)


def _verdict(
    claim: dict[Any, Any], source: Source, measured: Measured | None, width: float, finding: Finding | None
) -> tuple[Verdict, str]:
    scale = source.grid.scale
    if measured is None and finding is None:
        return "not attempted", _why_not(claim, source)
    found = ""
    if finding:
        arithmetic = " | ".join(" ".join(line.split()) for line in finding.arithmetic.splitlines())
        found = f"{finding.name}: {finding.title}: {arithmetic}"
    if measured is None:
        return INCONSISTENT, found
    also = f"{SPLIT}{INCONSISTENT}: {found}" if found else ""
    if scale != "paper" and not measured.about:
        apart = f", {measured.apart}" if measured.apart else ""
        where = measured_where(source.grid, [_names(claim)[0]])
        where = where or f"measured at scale {scale}, which is not the paper's"
        return "not comparable (scale)", f"{where}{apart}{also}"
    if measured.apart:
        return "not comparable (scale)", f"measured {measured.apart}{also}"
    off = abs(float(measured.values.mean()) - claim["number"])
    shown = f"{off:.4g} from the printed value; tolerance {width:.4g}"
    about = f"{measured.about}{SPLIT}" if measured.about else ""
    agrees: Verdict = "reachable" if measured.asked else "reproduced"
    return (agrees if off <= width else "not reproduced"), f"{about}{shown}{also}"


def measured_where(grid: Grid, datasets: Sequence[str]) -> str:
    """Say that networks see the paper's own data, and in which size; empty where they do not."""
    if not grid.options.paper_data:
        return ""
    options = [grid.model(cell) for cell in grid.baselines() if cell.dataset in datasets]
    sizes = sorted({own.image_size for own in options if isinstance(own, ModelOptions)})
    pixels = f" at {' or '.join(map(str, sizes))} pixels" if sizes else ""
    return f"measured on the paper's data{pixels}"


def is_counted(claim: Judged) -> bool:
    """Whether the measured value is a count of the full-size network, not of a run of the scale."""
    return claim.records.startswith(f"{paths.full_size_csv().as_posix()}#")


def finding_name(claim: Judged) -> str | None:
    """Return the audit's finding that leaves a published value in doubt, measured or not; None if there is none."""
    if claim.verdict == INCONSISTENT:
        return claim.reason.partition(":")[0]
    return claim.reason.partition(f"{SPLIT}{INCONSISTENT}: ")[2].partition(":")[0] or None


def _names(claim: Mapping[Any, Any]) -> tuple[str, str, str]:
    base = claim["quantity"].endswith("_base")
    method = "baseline" if base else METHODS[claim["method"] or "Ours"]
    return DATASETS[claim["dataset"]].name, MODELS[claim["model"]], method


def _counted(claim: Mapping[Any, Any], source: Source) -> Measured | None:
    """Return what the full-size network says about a claim, at whatever scale; None if nothing."""
    line, row = source.counts.get(_names(claim)[:2], (0, None))
    value = None if row is None else row.measured(claim)
    if row is None or value is None:
        return None
    quantity, records = claim["quantity"], (f"{paths.full_size_csv().as_posix()}#L{line}",)
    return Measured(pd.Series([value]), records, row.about(quantity), asked=quantity in row.ASKED)


def _why_not(claim: Mapping[Any, Any], source: Source) -> str:
    grid = source.grid
    dataset, model, method = _names(claim)
    _, row = source.counts.get((dataset, model), (0, None))
    if row is not None and (refusal := row.refusal(claim)):
        return refusal
    measured = source.rows(dataset, model, method)
    if claim["quantity"] == "metric_delta" and (measured["baseline_metric"] == 0).any():
        return "the unpruned network scores 0, so that no relative change is defined"
    by = f" by {claim['method']}" if claim["method"] else ""
    text = f"scale {grid.scale} does not run {claim['dataset']} with {claim['model']}{by}"
    cells = [cell for cell in grid.cells() if cell.dataset == dataset]
    if not cells:
        absent = "" if "paper" in grid.params.scales else ", once params.yaml defines it"
        return f"{text}{SPLIT}data not present: {DATASETS[claim['dataset']].need} and run scale paper{absent}"
    here = [cell for cell in cells if (published_model(cell.model), cell.method) == (model, method)]
    explained = [why for cell, why in source.missing.items() if cell in here and why != NO_RECORD]
    if explained:
        return f"no record of {dataset}/{model}/{method} holds it{SPLIT}{explained[0]}"
    if here:
        return f"no record of {dataset}/{model}/{method} holds it{SPLIT}run snakemake --config scale={grid.scale}"
    return f"{text}{SPLIT}put {model} and {method} into scales.{grid.scale}.grid of params.yaml"


def _measured(claim: Mapping[Any, Any], source: Source, *, points: bool) -> Measured | None:
    dataset, model, method = _names(claim)
    of_trace = claim["table"] == 4
    chosen = source.rows(dataset, model, method, of_trace=of_trace)
    if chosen.empty:
        return None
    if (chosen["model"] == model).any():  # the network itself rather than one that stands for it
        chosen = chosen[chosen["model"] == model]
    if of_trace:  # step 1 is the unpruned network
        chosen = chosen[chosen["iteration"] == int(claim["step"]) - 1]
    values = _values(claim, chosen, points=points)
    if values is None or values.dropna().empty:
        return None
    chosen = chosen.loc[values.dropna().index]
    records = tuple(str(line) for line in chosen["record"])
    asked = not of_trace and _asked(claim, chosen)
    return Measured(values.dropna(), records, apart=_apart(claim, chosen, model), asked=asked)


def _asked(claim: Mapping[Any, Any], chosen: pd.DataFrame) -> bool:
    """Return whether runs were pruned to the very change that a claim prints."""
    kind = {"gmacs_delta": "macs", "params_delta": "params"}.get(claim["quantity"])
    off = (100 * chosen["target"].astype(float) + claim["number"]).abs()
    return bool(((chosen["target_kind"] == kind) & (off < 1e-6)).all())


def _apart(claim: Mapping[Any, Any], chosen: pd.DataFrame, model: str) -> str:
    """Say what, beside the scale, keeps runs from being compared with what is printed; empty if nothing does."""
    own = str(chosen["model"].iloc[0])
    words = [f"on {own}, which stands for {claim['model']}"] if own != model else []
    if str(claim["quantity"]).startswith("metric"):
        words += [APART[metric] for metric in dict.fromkeys(chosen["metric"]) if metric in APART]
    return " and ".join(words)


def _values(claim: Mapping[Any, Any], frame: pd.DataFrame, *, points: bool) -> pd.Series[float] | None:
    """Return the measured counterpart of a claim in its unit; None where no column holds it."""
    quantity, unit = str(claim["quantity"]), claim["metric_unit"]
    if quantity in {"top1", "top5"}:
        return frame[quantity].astype(float)
    if quantity.startswith("metric"):
        if unit not in PRINTED_METRICS:
            return None
        frame = frame[frame["metric"].isin(PRINTED_METRICS[unit])]
        if quantity != "metric_delta":
            return frame["test_metric"].astype(float)
        # A change relative to nothing has no value.
        unpruned = frame["baseline_metric"].where(frame["baseline_metric"] != 0)
        return frame["metric_delta"] if points else 100 * frame["metric_delta"] / unpruned
    kind = "macs" if quantity.startswith("gmacs") else "params"
    if quantity.endswith("_delta"):
        return frame[f"{kind}_reduction"].astype(float)
    return frame[kind] / (1e9 if kind == "macs" else 1e6)


def _tolerance(claim: Mapping[Any, Any], measured: Measured | None, options: VerdictParams) -> tuple[str, float]:
    """Return the tolerance in words and, for what was measured, as a width."""
    exponent = Decimal(str(claim["value"])).as_tuple().exponent
    assert isinstance(exponent, int)
    half = float(Decimal(1).scaleb(exponent)) / 2
    quantity = str(claim["quantity"])
    if quantity.startswith("metric") or quantity in {"top1", "top5"}:
        sd = (measured.sd or 0.0) if measured else 0.0
        words = f"max({options.accuracy_points:g} points, {options.accuracy_sds:g} sd)"
        return words, max(options.accuracy_points, options.accuracy_sds * sd)
    if quantity.endswith("_delta"):
        return f"{options.cost_percent:g} points + rounding {half:g}", options.cost_percent + half
    mean = float(measured.values.mean()) if measured else 0.0
    return f"{options.cost_percent:g} % of ours + rounding {half:g}", options.cost_percent / 100 * mean + half
