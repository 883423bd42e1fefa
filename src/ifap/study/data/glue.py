"""What the sets of GLUE share (Wang et al. 2019): tab-separated files as its archives bring them, or parquet files."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ifap.data import Role
from ifap.errors import ResultsError, nearest
from ifap.study.data.origins import home
from ifap.study.data.texts import RawText, Texts

log = logging.getLogger(__name__)

Rows = Iterator[tuple[int, Mapping[str, str]]]


@dataclass(frozen=True)
class Layout:
    """How one set of GLUE lies on disk."""

    name: str  # The data set.
    texts: tuple[str, ...]  # Columns of the one or two texts, in the tab-separated files.
    label: str  # Column of the class or score there.
    labels: Mapping[str, int] | None  # The classes by the words in that column; None for scores.
    parquet: tuple[str, ...]  # Columns of the texts in parquet files, whose class is a number in ``label``.
    header: tuple[str, ...] | None = None  # The columns of files without a first line that names them.
    dev: str = "dev"  # The published development set, without its ending: the test split here.
    scores: tuple[float, float] = (0.0, 5.0)  # Lowest and highest score, where the labels are scores.
    torn: bool = False  # Whether rows that lack columns are left out, as the published files have some.

    @property
    def files(self) -> dict[Role, tuple[str, ...]]:
        """The files that each role may be in, in order of preference."""
        matched = "validation_matched" if self.dev == "dev_matched" else "validation"
        return {"train": _named("train", "train"), "test": _named(self.dev, matched)}


def _named(table: str, parquet: str) -> tuple[str, ...]:
    return f"{table}.tsv", f"{parquet}-00000-of-00001.parquet", f"{parquet}.parquet"


def reader(layout: Layout) -> Callable[[Path], dict[Role, RawText]]:
    """Return the function that reads training and development set; the labels of the test set are not public."""

    def read(folder: Path) -> dict[Role, RawText]:
        """Return training samples, and the published development set as the test split."""
        place = home(layout.name, folder)
        found: dict[Role, RawText] = {}
        for role, names in layout.files.items():
            path = next((place / name for name in names if (place / name).exists()), place / names[0])
            found[role] = _parquet(path, layout) if path.suffix == ".parquet" else _table(path, layout)
        return found

    return read


def _table(path: Path, layout: Layout) -> Texts:
    texts: list[tuple[str, ...]] = []
    targets: list[float] = []
    for number, row in table_rows(path, layout.header, (*layout.texts, layout.label), torn=layout.torn):
        texts.append(tuple(row[column].strip() for column in layout.texts))
        targets.append(_label(row[layout.label].strip(), layout, path, number))
    return _texts(texts, targets, layout, path)


def table_rows(path: Path, header: Sequence[str] | None, wanted: Sequence[str], *, torn: bool = False) -> Rows:
    """Yield the line number and the columns of each row of a tab-separated file; quotes are plain characters.

    Parameters
    ----------
    path : Path
        The file.
    header : sequence of str or None
        Its columns; None if its first line names them.
    wanted : sequence of str
        The columns that must be there.
    torn : bool, optional
        Leave out rows that are short, and say how many.

    Raises
    ------
    ResultsError
        One line that names file and line, if a column is missing or a row is short.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns, left_out = list(header or next(lines, [])), 0
            for column in wanted:
                if column not in columns:
                    raise ResultsError(f"{path}: row 1: no column '{column}': {nearest(column, columns)}")
            for number, values in enumerate(lines, start=1 if header else 2):
                if len(values) < len(columns) and torn:
                    left_out += 1
                    continue
                if len(values) < len(columns):
                    raise ResultsError(f"{path}: row {number}: {len(values)} values for {len(columns)} columns")
                yield number, dict(zip(columns, values, strict=False))
            if left_out:
                log.warning("%s: %d rows are torn and left out", path, left_out)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path} cannot be read ({error})") from None


def _parquet(path: Path, layout: Layout) -> Texts:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise ResultsError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    for column in (*layout.parquet, "label"):
        if column not in table.column_names:
            raise ResultsError(f"{path}: no column '{column}': {nearest(column, table.column_names)}")
    texts = list(zip(*(table[column].to_pylist() for column in layout.parquet), strict=True))
    labels = table["label"].to_pylist()
    for number, (row, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if label is None or any(not isinstance(text, str) for text in row):
            raise ResultsError(f"{path}: row {number}: a value is missing")
    targets = [_in_range(float(label), layout, path, number) for number, label in enumerate(labels, start=1)]
    return _texts([tuple(text.strip() for text in row) for row in texts], targets, layout, path)


def _label(word: str, layout: Layout, path: Path, number: int) -> float:
    if layout.labels is None:
        try:
            value = float(word)
        except ValueError:
            raise ResultsError(f"{path}: row {number}: '{word}' is no score") from None
        return _in_range(value, layout, path, number)
    if word not in layout.labels:
        raise ResultsError(f"{path}: row {number}: unknown label '{word}': {nearest(word, layout.labels)}")
    return layout.labels[word]


def _in_range(value: float, layout: Layout, path: Path, number: int) -> float:
    if layout.labels is None:
        low, high = layout.scores
        if not (math.isfinite(value) and low <= value <= high):
            raise ResultsError(f"{path}: row {number}: score {value:g} is not from {low:g} to {high:g}")
    elif value not in layout.labels.values():
        raise ResultsError(f"{path}: row {number}: label {value:g} is not one of {sorted(layout.labels.values())}")
    return value


def _texts(texts: Sequence[tuple[str, ...]], targets: Iterable[float], layout: Layout, path: Path) -> Texts:
    if not texts:
        raise ResultsError(f"{path}: no samples")
    first, *second = (tuple(column) for column in zip(*texts, strict=True))
    kind = torch.float32 if layout.labels is None else torch.int64
    return Texts(first, second[0] if second else None, torch.tensor(list(targets)).to(kind))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], *, named: bool = True) -> None:
    """Write rows as a tab-separated file, with the first line that names the columns if `named`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *rows] if named else rows
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
