"""CSV files of the report: written with fixed columns, and checked value by value when they are read."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ifap.errors import ResultsError, nearest
from ifap.files import beside, read_bounded
from ifap.study.report.record import CELL_COLUMNS, OPTIONAL_NUMBERS
from ifap.study.rounding import GATHERED_DIGITS

TEXT_COLUMNS = frozenset(
    {*CELL_COLUMNS[:-1], "base_method", "metric", "data_checksum", "config_hash", "layer", "stage"}
)
OPTIONAL_TEXT = frozenset({"accepted", "refused", "synthetic", "flow", "kept"})
CHOICES = {
    "structure": ("channels", "weights", ""),
    "start": ("baseline", "init", ""),
    "target_kind": ("macs", "params", ""),
}
"""The values of columns that a baseline leaves empty."""
# Results may come from anyone; Python needs some twenty times the size of a table of short fields.
MOST_BYTES = 32 * 2**20
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
OLD_LAYOUT = "runs.csv"
"""A file that only the layout before this one has."""
LISTED = 20  # how many missing or stale cells an error names before it counts the rest


def write_files(contents: Mapping[Path, str | bytes]) -> None:
    """Write files so that each is replaced at once, and none if any of them cannot be written."""
    with contextlib.ExitStack() as stack:
        ready = {path: stack.enter_context(beside(path)) for path in contents}
        for path, temporary in ready.items():
            content = contents[path]
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.chmod(0o644)
        for path, temporary in ready.items():
            os.replace(temporary, path)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out rows as CSV text; what a row lacks stays empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([as_text(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue()


def as_text(value: object) -> str:
    """Return a value as a CSV file holds it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{GATHERED_DIGITS}g}" if isinstance(value, float) else str(value)


def read_lines(file: Path, shown: Path) -> list[list[str]]:
    """Read a CSV file of `collect`; errors are one line."""
    try:
        lines = csv_lines(file, shown)
    except FileNotFoundError:
        raise ResultsError(f"{shown} not found: {_how_to_make(file, shown)}") from None
    if not lines:
        raise ResultsError(f"malformed {shown}: the file is empty; {_how_to_make(file, shown)}")
    return lines


def _how_to_make(file: Path, shown: Path) -> str:
    """Say which command makes a file of a scale, from what is beside it."""
    scale, here = shown.parent.name, file.parent
    if (here / OLD_LAYOUT).exists():
        return old_layout(scale)
    return (
        f"run python -m stages.collect --scale {scale}"
        if (here / "cells").is_dir()
        else f"run make reproduce SCALE={scale}"
    )


def old_layout(scale: str) -> str:
    """Say how records of the layout before this one are moved to this one."""
    return f"its records are of the old layout: run python -m stages.migrate_records --scale {scale}"


def csv_lines(file: Path, shown: Path) -> list[list[str]]:
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


def load_rows(root: Path, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of one CSV file of a scale as they are written, checked value by value."""
    lines = read_lines(root / path, path)
    check_header(lines[0], columns, path)
    for row, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ResultsError(f"malformed {path}: row {row}: {len(line)} values for {len(columns)} columns")
        for column, value in zip(columns, line, strict=True):
            if problem := _value_problem(column, value):
                raise ResultsError(f"malformed {path}: row {row}, column {column}: {problem}")
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def load_frame(root: Path, path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return one CSV file of a scale as a frame, checked line by line."""
    load_rows(root, path, columns)
    return as_frame((root / path).read_text(), path)


def as_frame(text: str, path: Path) -> pd.DataFrame:
    """Return a CSV file as a frame; column ``record`` says in which line of the file a row stands."""
    frame = pd.read_csv(io.StringIO(text), dtype={"flow": str, "kept": str})
    # A line end inside a value moves the lines below it.
    lines = _first_lines(text)
    return frame.assign(record=[f"{path.as_posix()}#L{line}" for line in lines[1:]])


def _first_lines(text: str) -> list[int]:
    """Return the number of the line that each row begins in, the header's first."""
    reader, firsts, last = csv.reader(io.StringIO(text, newline="")), [], 0
    for _ in reader:
        firsts.append(last + 1)
        last = reader.line_num
    return firsts


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
