"""The numbers that the paper published: Tables I-V as HTML, and the same numbers as ``claims.csv``.

A value keeps its printed text, because the number of printed digits says how exact it is.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ifap.errors import ResultsError

COLUMNS = ("table", "dataset", "model", "method", "step", "quantity", "unit", "value")
COUNTS = {1: 108, 2: 540, 3: 258, 4: 120, 5: 180}
"""Published values in each table."""
STEPS = 30
NUMERALS = ("I", "II", "III", "IV", "V")

MACS = ("gmacs_base", "gmacs_pruned", "gmacs_delta")
METRIC = ("metric_base", "metric_pruned", "metric_delta")
PARAMS = ("params_base", "params_pruned", "params_delta")
TRACE = ("params", "gmacs", "top1", "top5")
QUANTITIES = {1: ("metric",), 2: MACS + METRIC, 3: MACS + METRIC, 4: TRACE, 5: METRIC + PARAMS}
"""What each table prints."""

METRIC_UNITS = frozenset({"%", "mAP", "mIoU", "FID", "Accuracy", "F1", "MCC", "Pearson"})
UNITS = {
    **dict.fromkeys(("gmacs", "gmacs_base", "gmacs_pruned"), frozenset({"GMACs"})),
    **dict.fromkeys(("params", "params_base", "params_pruned"), frozenset({"M"})),
    **dict.fromkeys(("gmacs_delta", "metric_delta", "params_delta", "top1", "top5"), frozenset({"%"})),
    **dict.fromkeys(("metric", "metric_base", "metric_pruned"), METRIC_UNITS),
}
HEADINGS = {
    1: (
        *("CV Benchmarks Model", "CV Benchmarks Method"),
        *("CV Benchmarks CIFAR-10", "CV Benchmarks CIFAR-100", "CV Benchmarks ImageNet"),
        *("NLP Benchmarks Model", "NLP Benchmarks Method"),
        *("NLP Benchmarks QQP", "NLP Benchmarks MNLI-m", "NLP Benchmarks SST-2"),
    ),
    2: (
        *("Dataset", "Architecture", "GFlops Base", "GFlops Pruned", "GFlops ↓%"),
        *("Top-1 Acc Base", "Top-1 Acc Pruned", "Top-1 Acc ↓%"),
    ),
    3: (
        *("Dataset", "Architecture", "GFlops (Base)", "GFlops (Pruned)", "Δ%"),
        *("Metric (Base)", "Metric (Pruned)", "Δ%"),
    ),
    4: ("Pruning Step", "Params (M)", "GFlops", "Top-1 Acc. (%)", "Top-5 Acc. (%)"),
    5: (
        *("Architecture", "Dataset", "Metric", "Base Score", "Pruned Score", "∆%"),
        *("Base Params (M)", "Pruned Params (M)", "∆%"),
    ),
}
"""The headings by which each table is recognised; a heading over several columns comes first."""


def _number_or_none(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value or None


Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .()+/-]*$", max_length=80)]


class Claim(BaseModel):
    """One published number, as one row of ``claims.csv``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: Literal[1, 2, 3, 4, 5]
    dataset: Name
    model: Name
    method: Name | Literal[""] = ""
    step: Annotated[int | None, Field(ge=1, le=STEPS), BeforeValidator(_number_or_none)] = None
    quantity: str
    unit: str
    value: Annotated[str, StringConstraints(pattern=r"^[+-]?[0-9]{1,6}(\.[0-9]{1,4})?$")]

    @property
    def id(self) -> str:
        """Its name, for example ``T2/CIFAR-10/ResNet-50/metric_delta``; names no other claim."""
        step = "" if self.step is None else str(self.step)
        parts = (f"T{self.table}", self.dataset, self.model, self.method, step, self.quantity)
        return "/".join(part for part in parts if part)

    @model_validator(mode="after")
    def _check_columns(self) -> Claim:
        if self.quantity not in QUANTITIES[self.table]:
            valid = ", ".join(QUANTITIES[self.table])
            raise ValueError(f"column quantity: table {self.table} has no '{self.quantity}'; valid: {valid}")
        if self.unit not in UNITS[self.quantity]:
            valid = ", ".join(sorted(UNITS[self.quantity]))
            raise ValueError(f"column unit: {self.quantity} is not in '{self.unit}'; valid: {valid}")
        for column, table in (("method", 1), ("step", 4)):
            if (self.table == table) != bool(getattr(self, column)):
                raise ValueError(f"column {column}: filled in in table {table} and empty in the others")
        return self


def load_claims(path: Path) -> pd.DataFrame:
    """Read ``claims.csv`` and check every row.

    One row a claim, in the order of the file: `id`, the columns of the file (`table` is an integer, `step` an integer
    or missing, the others are text) and `number`, the value as a float. Raises a ResultsError that names file, row and
    column if the file is missing or anything in it is wrong.
    """
    claims = _read_rows(path)
    _check_whole(claims, path)
    return claims_frame(claims)


def claims_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """Lay out claims as the data frame that `load_claims` returns."""
    rows = [{"id": claim.id, **claim.model_dump(), "number": float(claim.value)} for claim in claims]
    frame = pd.DataFrame(rows, columns=["id", *COLUMNS, "number"])
    return frame.astype({"table": "int64", "step": "Int64", "number": "float64"})


def claims_table(claims: Iterable[Claim]) -> str:
    """Return the text of ``claims.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims:
        row = claim.model_dump()
        writer.writerow("" if row[column] is None else row[column] for column in COLUMNS)
    return text.getvalue()


def first_change(path: Path, claims: Sequence[Claim]) -> str | None:
    """Say where ``claims.csv`` differs from a fresh transcription; nothing if it does not.

    One line that names file, row and column.
    """
    found = _read_rows(path)
    for row, (old, new) in enumerate(zip(found, claims, strict=False), start=2):
        for column in COLUMNS:
            if getattr(old, column) != getattr(new, column):
                values = f"'{getattr(old, column)}', but the published table has '{getattr(new, column)}'"
                return f"{path}: row {row}, column {column}: {values} ({new.id})"
    if len(found) != len(claims):
        return f"{path}: {len(found)} rows, but the published tables have {len(claims)} values"
    return None


def transcribe(html: str) -> list[Claim]:
    """Turn the published tables into claims: all published values, table by table and row by row.

    `html` is a page with Tables I-V, in order; a table that is not closed ends where the next begins. Raises a
    ResultsError if a table, heading, row or value is missing, new or malformed.
    """
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except (IndexError, ValueError):
        line, _ = reader.getpos()
        raise ResultsError(f"line {line} of the tables: a cell outside a row, or a span that is no number") from None
    if len(reader.tables) != len(HEADINGS):
        raise ResultsError(f"{len(reader.tables)} tables, not {len(HEADINGS)}")
    claims: list[Claim] = []
    for number, table in enumerate(reader.tables, start=1):
        found = list(_table_claims(number, table))
        if len(found) != COUNTS[number]:
            raise ResultsError(f"Table {NUMERALS[number - 1]} has {len(found)} values, not {COUNTS[number]}")
        claims += found
    _check_unique(claims, "published tables")
    return claims


@dataclass
class _Cell:
    text: str
    columns: int
    rows: int


@dataclass
class _HtmlTable:
    """One table as it is written: rows of cells that may span."""

    caption: str = ""
    head: list[list[_Cell]] = field(default_factory=list)
    body: list[list[_Cell]] = field(default_factory=list)


class _Reader(HTMLParser):
    """Collects the tables of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[_HtmlTable] = []
        self._in_head = False
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append(_HtmlTable())
        elif tag == "thead":
            self._in_head = True
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"td", "th"}:
            spans = dict(attrs)
            self._rows[-1].append(_Cell("", int(spans.get("colspan") or 1), int(spans.get("rowspan") or 1)))
        if tag in {"td", "th", "caption"}:
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "thead":
            self._in_head = False
        elif tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "caption":
            self.tables[-1].caption += data
        elif self._inside:
            self._rows[-1][-1].text += data

    @property
    def _rows(self) -> list[list[_Cell]]:
        return self.tables[-1].head if self._in_head else self.tables[-1].body


def _spread(rows: Iterable[Sequence[_Cell]]) -> Iterator[list[str]]:
    """Yield rows of texts in which a cell that spans is repeated."""
    pending: dict[int, tuple[int, str]] = {}
    for cells in rows:
        line: list[str] = []
        waiting = iter(cells)
        while True:
            left, text = pending.pop(len(line), (0, ""))
            if left:
                if left > 1:
                    pending[len(line)] = (left - 1, text)
                line.append(text)
                continue
            cell = next(waiting, None)
            if cell is None:
                break
            for _ in range(cell.columns):
                if cell.rows > 1:
                    pending[len(line)] = (cell.rows - 1, " ".join(cell.text.split()))
                line.append(" ".join(cell.text.split()))
        yield line


def _headings(table: _HtmlTable) -> tuple[str, ...]:
    levels = zip_longest(*_spread(table.head), fillvalue="")
    return tuple(" ".join(dict.fromkeys(level)) for level in levels)


def _table_claims(number: int, table: _HtmlTable) -> Iterator[Claim]:
    """Yield the claims of one table."""
    where = f"Table {NUMERALS[number - 1]}"
    caption = " ".join(table.caption.split())
    if number > 1 and not caption.startswith(f"{where}."):
        raise ResultsError(f"table {number} of the page is not {where}: its caption is '{caption}'")
    if _headings(table) != HEADINGS[number]:
        raise ResultsError(f"{where}: the headings are {_headings(table)}, not {HEADINGS[number]}")
    layout = (_table_1, _vision_table, _vision_table, _table_4, _table_5)[number - 1]
    rows = [row for row in _spread(table.body) if any(row)]
    for index, row in enumerate(rows, start=1):
        if len(row) != len(HEADINGS[number]):
            raise ResultsError(f"{where}: row {index} has {len(row)} columns, not {len(HEADINGS[number])}")
    for values in layout(rows, caption):
        try:
            yield Claim.model_validate({"table": number, **values})
        except ValidationError as error:
            raise ResultsError(f"{where}: {_explain(error)}; in {values}") from None


def _table_1(rows: Sequence[list[str]], _: str) -> Iterator[dict[str, Any]]:
    names = [heading.split()[-1] for heading in HEADINGS[1]]
    models = ["", ""]
    for row in rows:
        for half in (0, 1):
            at = 5 * half
            models[half] = row[at] or models[half]
            for column in range(at + 2, at + 5):
                cell = {"dataset": names[column], "model": models[half], "method": row[at + 1]}
                yield {**cell, "quantity": "metric", "unit": "%", "value": row[column]}


def _vision_table(rows: Sequence[list[str]], _: str) -> Iterator[dict[str, Any]]:
    """Lay out Tables II and III; a row over the whole width of III names the metric of those below it."""
    metric, dataset = "%", ""
    for row in rows:
        if len(set(row)) == 1:
            named = re.search(r"Metric: ([\w-]+(?: Accuracy, %)?)", row[0])
            metric = "%" if named is None or named[1].endswith("%") else named[1]
            continue
        dataset = row[0] or dataset
        units = ("GMACs", "GMACs", "%", metric, metric, "%")
        for quantity, unit, value in zip(MACS + METRIC, units, row[2:], strict=True):
            yield {"dataset": dataset, "model": row[1], "quantity": quantity, "unit": unit, "value": value}


def _table_4(rows: Sequence[list[str]], caption: str) -> Iterator[dict[str, Any]]:
    named = re.search(r"applied to (\S+) on (\S+) over", caption)
    if named is None:
        raise ResultsError(f"Table IV: no network and data set in the caption '{caption}'")
    for row in rows:
        for quantity, unit, value in zip(TRACE, ("M", "GMACs", "%", "%"), row[1:], strict=True):
            cell = {"dataset": named[2], "model": named[1], "step": row[0]}
            yield {**cell, "quantity": quantity, "unit": unit, "value": value}


def _table_5(rows: Sequence[list[str]], _: str) -> Iterator[dict[str, Any]]:
    for model, dataset, metric, *values in rows:
        units = (metric, metric, "%", "M", "M", "%")
        for quantity, unit, value in zip(METRIC + PARAMS, units, values, strict=True):
            yield {"dataset": dataset, "model": model, "quantity": quantity, "unit": unit, "value": value}


def _read_rows(path: Path) -> list[Claim]:
    try:
        lines = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True))
    except FileNotFoundError:
        raise ResultsError(f"{path}: file not found") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path}: cannot be read as CSV ({error})") from None
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ResultsError(f"{path}: row 1: the columns must be {','.join(COLUMNS)}")
    return [_claim(line, f"{path}: row {row}") for row, line in enumerate(lines[1:], start=2)]


def _claim(line: Sequence[str], where: str) -> Claim:
    if len(line) != len(COLUMNS):
        raise ResultsError(f"{where}: {len(line)} columns, not {len(COLUMNS)}")
    row: dict[str, Any] = dict(zip(COLUMNS, line, strict=True))
    row["table"] = _number_or_none(row["table"])
    try:
        return Claim.model_validate(row)
    except ValidationError as error:
        raise ResultsError(f"{where}, {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # raised by the model itself, which names the column
        return str(first["msg"]).removeprefix("Value error, ")
    return f"column {first['loc'][0]}: '{first['input']}': {first['msg']}"


def _check_whole(claims: Sequence[Claim], path: Path) -> None:
    _check_unique(claims, str(path))
    counts: Counter[int] = Counter(claim.table for claim in claims)
    for table, wanted in COUNTS.items():
        if counts[table] != wanted:
            raise ResultsError(f"{path}: column table: {counts[table]} rows of table {table}, not {wanted}")


def _check_unique(claims: Sequence[Claim], where: str) -> None:
    seen: dict[str, int] = {}
    for row, claim in enumerate(claims, start=2):
        if claim.id in seen:
            raise ResultsError(
                f"{where}: row {row} repeats row {seen[claim.id]}, columns table to quantity: {claim.id}"
            )
        seen[claim.id] = row
