"""Read every cell's records, check them against ``params.yaml`` and lay them out as two CSV files.

A record that is missing, stale or malformed stops the report: a number in a table never comes from
a run that ``params.yaml`` does not describe.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ifap.errors import ResultsError, nearest
from ifap.files import beside, read_bounded
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS, kind
from ifap.study.paths import Cell
from ifap.study.report import training_cost as ledger

SCHEMA_VERSION = 1
CELL_COLUMNS = ("scale", "task", "dataset", "model", "method", "seed")
RUN_TIMING = ("latency_ms", "wall_seconds", "peak_memory_mb")
RUN_COLUMNS = (
    *CELL_COLUMNS,
    "base_method",
    "structure",
    "start",
    "target_kind",
    "target",
    "macs_base",
    "macs",
    "macs_nonzero",
    "macs_reduction",
    "macs_theoretical_reduction",
    "params_base",
    "params",
    "params_nonzero",
    "params_reduction",
    "nonzero_params_reduction",
    "sparsity",
    "training_macs",
    "training_macs_theoretical",
    "metric",
    "baseline_metric",
    "test_metric",
    "metric_delta",
    "validation_metric",
    "test_top1",
    "test_top5",
    "test_loss",
    "test_ece",
    "validation_top1",
    "validation_top5",
    "validation_loss",
    "validation_before_recovery",
    "validation_after_recovery",
    "train_size",
    "validation_size",
    "test_size",
    "synthetic",
    "data_checksum",
    "config_hash",
    "metrics",
    *RUN_TIMING,
)
TRACE_TIMING = ("seconds_score", "seconds_prune", "seconds_recover")
TEXT_COLUMNS = frozenset({*CELL_COLUMNS[:-1], "base_method", "metric", "data_checksum", "config_hash", "metrics"})
OPTIONAL_TEXT = frozenset({"accepted", "refused", "synthetic"})
CHOICES = {
    "structure": ("channels", "weights", ""),
    "start": ("baseline", "init", ""),
    "target_kind": ("macs", "params", ""),
}
"""The values of columns that a baseline leaves empty."""
MISSING_COLUMNS = (*CELL_COLUMNS, "reason")
NO_RECORD = "no record"
NOT_CHOSEN = "not part of this run"
# Results may come from anyone; Python needs some twenty times the size of a table of short fields.
MOST_BYTES = 32 * 2**20
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
LISTED = 20  # how many missing or stale cells an error names before it counts the rest

Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """Part of a record: unknown keys, wrong types and values that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CellName(_Strict):
    """The cell that a record says it belongs to."""

    scale: str
    task: str
    dataset: str
    model: str
    method: str
    seed: int


class Measured(_Strict):
    """A metric on the test split, measured once."""

    value: float
    unit: str
    split: Literal["test"]


class SplitSizes(_Strict):
    """Samples in each split."""

    train: Count
    validation: Count
    test: Count


class Latency(_Strict):
    """Measured speed; depends on the machine, so no table prints it."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    batch: int
    device: str
    dtype: str
    threads: int
    runs: int


class Provenance(_Strict):
    """How the record came to be; may say more than is checked here."""

    model_config = ConfigDict(extra="allow")

    commit: str | None
    dirty: bool | None
    versions: dict[str, Any]
    hardware: dict[str, Any]
    wall_seconds: dict[str, float]
    peak_memory_mb: float | None
    resume_count: Count


class Record(_Strict):
    """One ``metrics.json``."""

    schema_version: Literal[1]
    cell: CellName
    config: dict[str, Any]
    primary: str = "top1"
    metrics: dict[str, Measured]
    validation: dict[str, float]
    split_sizes: SplitSizes
    data_checksum: str
    synthetic: bool
    macs: Annotated[int, Field(gt=0)]
    macs_nonzero: Count
    params: Annotated[int, Field(gt=0)]
    params_nonzero: Count
    training_macs: Count | None = None
    dense_training_macs: Count | None = None
    latency: Latency | None
    provenance: Provenance

    @model_validator(mode="after")
    def _know_the_metrics(self) -> Record:
        for name, found in self.metrics.items():
            if name not in METRICS:
                raise ValueError(f"unknown metric '{name}': {nearest(name, METRICS)}")
            if found.unit != METRICS[name].unit:
                raise ValueError(f"metrics.{name}.unit is '{found.unit}', not '{METRICS[name].unit}'")
        test = {name: found.value for name, found in self.metrics.items()}
        for where, values in (("metrics", test), ("validation", self.validation)):
            for name in (self.primary, "loss", *(("top5",) if self.primary == "top1" else ())):
                if name not in values:
                    raise ValueError(f"{where}.{name} is missing")
            for name, value in values.items():
                metric = METRICS.get(name)
                if metric is None or not metric.low <= value <= metric.high:
                    raise ValueError(
                        f"{where}.{name} is {value:g}, not from {metric.low:g} to {metric.high:g}"
                        if metric
                        else f"{where}.{name}: unknown metric: {nearest(name, METRICS)}"
                    )
        return self

    @property
    def score(self) -> float:
        """The metric that is watched, on the test split."""
        return self.metrics[self.primary].value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


_Item = TypeVar("_Item")
Blank = Annotated[_Item | None, BeforeValidator(_empty_is_none)]


class Receipt(BaseModel):
    """One row of ``receipts.csv``; the fields are the columns of the file, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    iteration: Count
    accepted: Blank[bool]
    rho: Blank[float]
    units_asked: Blank[Count]
    units_removed: Blank[Count]
    macs_asked: Blank[float]
    macs: Count
    params: Count
    score_low: Blank[float]
    score_high: Blank[float]
    metric_before: Blank[float]
    metric_after: Blank[float]
    top1: Blank[Percent]
    top5: Blank[Percent]
    loss: Blank[float]
    refused: Blank[str]
    seconds_score: Blank[float]
    seconds_prune: Blank[float]
    seconds_recover: Blank[float]


TRACE_COLUMNS = (*CELL_COLUMNS, *(name for name in Receipt.model_fields if name not in TRACE_TIMING), *TRACE_TIMING)
OPTIONAL_NUMBERS = frozenset(
    {
        *(
            "target",
            "macs_base",
            "macs_reduction",
            "params_base",
            "params_reduction",
            "baseline_metric",
            "metric_delta",
        ),
        *("test_top1", "test_top5", "test_ece", "validation_top1", "validation_top5"),
        *("macs_theoretical_reduction", "nonzero_params_reduction", "training_macs"),
        "training_macs_theoretical",
        *("validation_before_recovery", "validation_after_recovery"),
        *("latency_ms", "peak_memory_mb"),
        *(name for name in Receipt.model_fields if name not in {"iteration", "macs", "params"}),
    }
)


@dataclass(frozen=True)
class Collected:
    """The records of one scale.

    Parameters
    ----------
    grid : Grid
        The grid that was read.
    records : dict of Cell to Record
        The cells that have a valid, up-to-date record, in the order of the grid.
    receipts : dict of Cell to list of Receipt
        The pruning iterations of the pruned cells among them.
    missing : dict of Cell to str
        The cells of the grid that have none, and why.
    """

    grid: Grid
    records: dict[Cell, Record]
    receipts: dict[Cell, list[Receipt]]
    missing: dict[Cell, str]


def collect(grid: Grid, *, root: Path = Path(), allow_missing: bool = False, cells: str | None = None) -> Collected:
    """Read and check the records of every cell of a grid; cells whose data are not here may be missing.

    Parameters
    ----------
    grid : Grid
        The cells and what ``params.yaml`` asks of them.
    root : Path
        The project's root.
    allow_missing : bool
        Accept a grid that is not finished; the result then lists what is missing.
    cells : str, optional
        What the run was limited to, see `Grid.chosen`: other cells may be missing.

    Returns
    -------
    Collected
        The records.

    Raises
    ------
    ResultsError
        One line that names the missing cells, the stale cells with the first key that differs, or
        the malformed file.
    """
    records: dict[Cell, Record] = {}
    missing: dict[Cell, str] = {}
    absent = grid.absent(root)
    chosen = set(grid.chosen(cells))
    stale: list[str] = []
    for cell in grid.cells():
        path = paths.metrics_file(grid.scale, cell)
        if not (root / path).exists():
            missing[cell] = absent.get(cell.dataset, NO_RECORD) if cell in chosen else NOT_CHOSEN
            continue
        record = read_record(root / path, path, grid.scale, cell)
        difference = first_difference(record.config, grid.config(cell, "evaluate"))
        if difference and cell not in chosen:
            missing[cell] = NOT_CHOSEN
            continue
        if difference:
            stale.append(f"stale {path}: {difference}")
        records[cell] = record
    unexplained = [cell for cell, reason in missing.items() if reason == NO_RECORD]
    _refuse_gaps([] if allow_missing else unexplained, stale)
    receipts = {cell: _receipts(grid, cell, record, root) for cell, record in records.items() if not cell.is_baseline}
    return Collected(grid, records, receipts, missing)


def read_record(file: Path, shown: Path, scale: str, cell: Cell) -> Record:
    """Read one ``metrics.json`` and check that it belongs to `cell`.

    Parameters
    ----------
    file, shown : Path
        Where the file is and how errors call it.
    scale : str
        The scale that it should belong to.
    cell : Cell
        The cell that it should belong to.

    Returns
    -------
    Record
        The checked content.
    """
    try:
        record = Record.model_validate_json(read_bounded(file, MOST_BYTES))
    except OSError as error:
        raise ResultsError(f"malformed {shown}: {error.strerror}") from None
    except ValidationError as error:
        raise ResultsError(f"malformed {shown}: {first_problem(error)}") from None
    wanted = CellName(scale=scale, **cell._asdict())
    if record.cell != wanted:
        difference = first_difference(record.cell.model_dump(), wanted.model_dump(), source="path")
        raise ResultsError(f"malformed {shown}: belongs to another cell: {difference}")
    return record


def read_receipts(file: Path, shown: Path) -> list[Receipt]:
    """Read one ``receipts.csv``: one row an iteration, from the unpruned start (0) on."""
    try:
        lines = _csv_lines(file, shown)
    except FileNotFoundError:
        raise ResultsError(f"missing {shown}: the cell has metrics but no receipts") from None
    header = list(Receipt.model_fields)
    if not lines or lines[0] != header:
        raise ResultsError(f"malformed {shown}: the first line must be {','.join(header)}")
    receipts = [_receipt(row, number, shown) for number, row in enumerate(lines[1:], start=2)]
    if [receipt.iteration for receipt in receipts] != list(range(len(receipts))) or not receipts:
        raise ResultsError(f"malformed {shown}: the iterations must run 0, 1, 2, ... without a gap")
    return receipts


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str = "params.yaml") -> str | None:
    """Name the first key in which two nested mappings differ.

    Parameters
    ----------
    found : mapping
        What a record says.
    wanted : mapping
        What it should say.
    source : str
        Where `wanted` comes from, for the message.

    Returns
    -------
    str or None
        For example ``"prune.steps=10 (params.yaml: 12)"``; None if they are the same.
    """
    ours = _flat(json.loads(json.dumps(found)))
    theirs = _flat(json.loads(json.dumps(wanted)))
    for key in dict.fromkeys([*theirs, *ours]):
        mine, other = ours.get(key, "absent"), theirs.get(key, "absent")
        if mine != other:
            return f"{key}={mine} ({source}: {other})"
    return None


def runs_table(collected: Collected) -> str:
    """Lay out one row a run as CSV text; the timing columns are the last ones."""
    rows = (_run_row(collected, cell, record) for cell, record in collected.records.items())
    return as_csv(RUN_COLUMNS, rows)


def trace_table(collected: Collected) -> str:
    """Lay out one row a pruning iteration as CSV text; the timing columns are the last ones."""
    scale = collected.grid.scale
    rows = (
        {"scale": scale, **cell._asdict(), **receipt.model_dump()}
        for cell, receipts in collected.receipts.items()
        for receipt in receipts
    )
    return as_csv(TRACE_COLUMNS, rows)


def missing_table(collected: Collected) -> str:
    """Lay out one row a cell that has no record, and why, as CSV text."""
    scale = collected.grid.scale
    rows = ({"scale": scale, **cell._asdict(), "reason": why} for cell, why in collected.missing.items())
    return as_csv(MISSING_COLUMNS, rows)


def load_missing(scale: str, *, root: Path = Path()) -> dict[Cell, str]:
    """Read ``missing.csv`` of one scale: the cells without a record, and why."""
    path = paths.missing_csv(scale)
    lines = read_lines(root / path, path)
    check_header(lines[0], MISSING_COLUMNS, path)
    found = {}
    for row, line in enumerate(lines[1:], start=2):
        if len(line) != len(MISSING_COLUMNS) or not line[-2].isdecimal() or not line[-1]:
            raise ResultsError(f"malformed {path}: row {row}: not {','.join(MISSING_COLUMNS)}")
        task, dataset, model, method, seed = line[1:6]
        found[Cell(task, dataset, model, method, int(seed))] = line[-1]
    return found


def load_runs(scale: str, *, root: Path = Path()) -> pd.DataFrame:
    """Read ``runs.csv`` of one scale."""
    return _load(root, paths.runs_csv(scale), RUN_COLUMNS)


def load_trace(scale: str, *, root: Path = Path()) -> pd.DataFrame:
    """Read ``trace.csv`` of one scale."""
    return _load(root, paths.trace_csv(scale), TRACE_COLUMNS)


def write_files(contents: Mapping[Path, str | bytes]) -> None:
    """Write files so that each is replaced at once, and none if any of them cannot be written.

    Parameters
    ----------
    contents : mapping of Path to str or bytes
        What each file should hold.
    """
    with contextlib.ExitStack() as stack:
        ready = {path: stack.enter_context(beside(path)) for path in contents}
        for path, temporary in ready.items():
            content = contents[path]
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.chmod(0o644)
        for path, temporary in ready.items():
            os.replace(temporary, path)


def _refuse_gaps(missing: Sequence[Cell], stale: Sequence[str]) -> None:
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_listed([str(cell) for cell in missing], ', ')}")
    if stale:
        problems.append(_listed(stale, "; "))
    if problems:
        raise ResultsError("; ".join(problems))


def _listed(names: Sequence[str], separator: str) -> str:
    rest = len(names) - LISTED
    return separator.join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _receipts(grid: Grid, cell: Cell, record: Record, root: Path) -> list[Receipt]:
    shown = paths.receipts_file(grid.scale, cell)
    receipts = read_receipts(root / shown, shown)
    if all(receipt.macs != record.macs for receipt in receipts):
        raise ResultsError(f"malformed {shown}: no iteration has the MACs of metrics.json ({record.macs})")
    return receipts


def _receipt(row: Sequence[str], number: int, shown: Path) -> Receipt:
    names = list(Receipt.model_fields)
    if len(row) != len(names):
        raise ResultsError(f"malformed {shown}: line {number}: {len(row)} values for {len(names)} columns")
    try:
        return Receipt.model_validate(dict(zip(names, row, strict=True)))
    except ValidationError as error:
        raise ResultsError(f"malformed {shown}: line {number}: {first_problem(error)}") from None


def _run_row(collected: Collected, cell: Cell, record: Record) -> dict[str, Any]:
    base = collected.records.get(cell.baseline)
    test, validation, sizes = record.metrics, record.validation, record.split_sizes
    row: dict[str, Any] = {"scale": collected.grid.scale, **cell._asdict()}
    row["base_method"] = collected.grid.variant(cell).method
    if cell.is_baseline:
        row["training_macs"] = ledger.baseline_macs(record.config, sizes.train, record.macs)
        row["training_macs_theoretical"] = row["training_macs"]
    else:
        row |= kind(row["base_method"])._asdict()
        row |= _target(collected.grid, cell)
        row |= _against(record, base) if base else {}
        row |= _pruning(row, record, collected.receipts[cell])
    return row | {
        "macs": record.macs,
        "macs_nonzero": record.macs_nonzero,
        "params": record.params,
        "params_nonzero": record.params_nonzero,
        "sparsity": 100 * (1 - record.params_nonzero / record.params),
        "metric": record.primary,
        "test_metric": record.score,
        "validation_metric": validation[record.primary],
        **{f"test_{name}": test[name].value for name in ("top1", "top5", "loss", "ece") if name in test},
        **{f"validation_{name}": validation[name] for name in ("top1", "top5", "loss") if name in validation},
        "train_size": sizes.train,
        "validation_size": sizes.validation,
        "test_size": sizes.test,
        "synthetic": record.synthetic,
        "data_checksum": record.data_checksum,
        "config_hash": config_hash(record.config),
        "metrics": paths.metrics_file(collected.grid.scale, cell).as_posix(),
        "latency_ms": record.latency.median_ms if record.latency else None,
        "wall_seconds": sum(record.provenance.wall_seconds.values()),
        "peak_memory_mb": record.provenance.peak_memory_mb,
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that stand for a resolved configuration."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _target(grid: Grid, cell: Cell) -> dict[str, Any]:
    target = grid.pruning(cell).target
    kind = "macs" if target.macs is not None else "params"
    return {"target_kind": kind, "target": getattr(target, kind)}


def _against(record: Record, base: Record) -> dict[str, Any]:
    """Compare a pruned network with its unpruned one: reductions in percent, the rest in points."""
    return {
        "macs_base": base.macs,
        "macs_reduction": 100 * (record.macs / base.macs - 1),
        "macs_theoretical_reduction": 100 * (record.macs_nonzero / base.macs - 1),
        "params_base": base.params,
        "params_reduction": 100 * (record.params / base.params - 1),
        "nonzero_params_reduction": 100 * (record.params_nonzero / base.params - 1),
        "baseline_metric": base.score,
        "metric_delta": record.score - base.score,
    }


def _pruning(row: Mapping[str, Any], record: Record, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return what training cost, and the validation metric around the last recovery that was kept."""
    last = [receipt for receipt in receipts if receipt.accepted is not False][-1:]
    macs, samples = record.macs, record.split_sizes.train
    spent, theoretical = (
        ledger.training_macs(
            record.config, samples, receipts[0].macs, macs, receipts, from_init=row["start"] == "init", own=own
        )
        for own in (record.dense_training_macs, record.training_macs)
    )
    return {
        "training_macs": spent,
        "training_macs_theoretical": theoretical,
        "validation_before_recovery": last[0].metric_before if last else None,
        "validation_after_recovery": last[0].metric_after if last else None,
    }


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out rows as CSV text; what a row lacks stays empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def read_lines(file: Path, shown: Path) -> list[list[str]]:
    """Read a CSV file of `collect`; errors are one line."""
    try:
        lines = _csv_lines(file, shown)
    except FileNotFoundError:
        raise ResultsError(f"{shown} not found: run python -m stages.collect") from None
    if not lines:
        raise ResultsError(f"malformed {shown}: the file is empty; run python -m stages.collect")
    return lines


def _csv_lines(file: Path, shown: Path) -> list[list[str]]:
    """Return the fields of every line; a missing file is left to the caller."""
    try:
        text = read_bounded(file, MOST_BYTES).decode()
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ResultsError(f"malformed {shown}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"malformed {shown}: {error}") from None


def check_header(found: Sequence[str], wanted: Sequence[str], shown: Path) -> None:
    """Refuse a missing, doubled, unknown or moved column, by name."""
    doubled = [column for column in wanted if found.count(column) > 1]
    missing = [column for column in wanted if column not in found]
    unknown = [column for column in found if column not in wanted]
    for problem, columns in (("is doubled", doubled), ("is missing", missing), ("is unknown", unknown)):
        if columns:
            text = f"its columns are not those of python -m stages.collect: column {columns[0]} {problem}"
            raise ResultsError(f"malformed {shown}: row 1: {text}; run that again")
    if list(found) != list(wanted):
        raise ResultsError(f"malformed {shown}: row 1: the columns must be in the order {','.join(wanted)}")


def check_cells(frame: pd.DataFrame, grid: Grid, shown: Path) -> None:
    """Refuse rows of a cell that the grid does not have; one line names row and column."""
    known = grid.cells()
    for row, values in enumerate(frame[list(CELL_COLUMNS)].itertuples(index=False, name=None), start=2):
        wanted = known
        if values[0] != grid.scale:
            raise ResultsError(f"malformed {shown}: row {row}, column scale: '{values[0]}' is not '{grid.scale}'")
        for column, value in zip(CELL_COLUMNS[1:], values[1:], strict=True):
            choices = dict.fromkeys(str(getattr(cell, column)) for cell in wanted)
            wanted = [cell for cell in wanted if getattr(cell, column) == value]
            if not wanted:
                text = f"unknown {column} '{value}': {nearest(str(value), choices)}"
                raise ResultsError(f"malformed {shown}: row {row}, column {column}: {text}")
    if "base_method" in frame:
        _check_methods(frame, grid, shown)
    if "metrics" in frame:
        _check_links(frame, grid, shown)


def _check_methods(frame: pd.DataFrame, grid: Grid, shown: Path) -> None:
    """Refuse a row whose registered method is not that of its name."""
    for row, values in enumerate(frame.to_dict("records"), start=2):
        wanted = grid.variant(Cell(*(values[column] for column in CELL_COLUMNS[1:]))).method
        if values["base_method"] != wanted:
            text = f"'{values['base_method']}', but '{values['method']}' is {wanted} in params.yaml"
            raise ResultsError(f"malformed {shown}: row {row}, column base_method: {text}")


def _check_links(frame: pd.DataFrame, grid: Grid, shown: Path) -> None:
    """Refuse a row that names another file than its own record: reports read and link what stands there."""
    for row, values in enumerate(frame.to_dict("records"), start=2):
        wanted = paths.metrics_file(grid.scale, Cell(*(values[column] for column in CELL_COLUMNS[1:]))).as_posix()
        if values["metrics"] != wanted:
            text = f"'{values['metrics'][:60]}' is not {wanted}"
            raise ResultsError(f"malformed {shown}: row {row}, column metrics: {text}")


def _load(root: Path, path: Path, columns: Sequence[str]) -> pd.DataFrame:
    lines = read_lines(root / path, path)
    check_header(lines[0], columns, path)
    for row, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ResultsError(f"malformed {path}: row {row}: {len(line)} values for {len(columns)} columns")
        for column, value in zip(columns, line, strict=True):
            if problem := _value_problem(column, value):
                raise ResultsError(f"malformed {path}: row {row}, column {column}: {problem}")
    return pd.read_csv(root / path)


def _value_problem(column: str, value: str) -> str | None:
    if column in TEXT_COLUMNS:
        return None if value else "is empty"
    if column in CHOICES:
        known = value in CHOICES[column]
        return None if known else f"unknown {column} '{value}': {nearest(value, CHOICES[column][:-1])}"
    if column in OPTIONAL_TEXT or (column in OPTIONAL_NUMBERS and not value):
        return None
    if not value:
        return "is empty"
    try:
        finite = math.isfinite(float(value))
    except ValueError:
        return f"'{value[:40]}' is no number"
    if not finite:
        return f"'{value[:40]}' is not finite"
    # Python takes more for a number than the reader of the table does: 1_000, digits of other scripts.
    return None if NUMBER.fullmatch(value) else f"'{value[:40]}' is no number in plain digits"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.")
    return flat


def first_problem(error: ValidationError) -> str:
    """Say in one line which value is wrong and why."""
    first = error.errors(include_url=False, include_context=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"])
    got = f" (got {shown if len(shown) < 60 else shown[:57] + '...'})"
    said = first["msg"].removeprefix("Value error, ")
    return f"{location}: {said}{got}" if location else said
