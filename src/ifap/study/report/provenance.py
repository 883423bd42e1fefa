"""How records came to be: what each stage cost here, and the one file of it that a recorded scale keeps.

Nothing of this is the same twice, so that none of it stands in a record: a run leaves it below
``results/{scale}/provenance``, and `make record` gathers it in ``provenance.csv``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.configs import flat
from ifap.study.report.csv_files import as_csv, csv_lines
from ifap.study.report.json_files import read_json
from ifap.study.report.record import CELL_COLUMNS, Blank, Count, first_problem

KEYS = ("config_hash", "commit", "dirty", "wall_seconds", "peak_memory_mb", "resume_count")
"""What stands first; the parts of latency, hardware and versions follow."""


class Provenance(BaseModel):
    """How one record came to be; may say more than is checked here."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    config_hash: str = ""
    commit: Blank[str] = None
    dirty: Blank[bool] = None
    wall_seconds: dict[str, float] = {}
    peak_memory_mb: Blank[float] = None
    resume_count: Count = 0
    latency: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    versions: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return round(sum(self.wall_seconds.values()), 3)

    @property
    def commit_in_words(self) -> str:
        """The commit in short, and whether files were changed beside it."""
        return f"{(self.commit or 'not in git')[:12]}{' (with changes)' if self.dirty else ''}"


def measured_here(scale: str, cell: Cell, *, root: Path = Path()) -> Provenance | None:
    """Return what the stages of a cell left on this machine; None if it was not evaluated here."""
    stages = ("baseline", "evaluate") if cell.is_baseline else ("prune", "finetune", "evaluate")
    found = {stage: _cost(root, paths.cost_file(scale, cell, stage)) for stage in stages}
    known = {stage: cost for stage, cost in found.items() if cost is not None}
    if "evaluate" not in known:
        return None
    try:
        joined = {
            **known["evaluate"],
            "wall_seconds": {stage: cost["wall_seconds"] for stage, cost in known.items()},
            "peak_memory_mb": max(cost["peak_memory_mb"] for cost in known.values()),
            "resume_count": sum(cost["resume_count"] for cost in known.values()),
        }
        return Provenance.model_validate(joined)
    except ValidationError as error:
        problem = first_problem(error)
    except (KeyError, TypeError) as error:
        problem = f"{error} is missing"
    raise ResultsError(f"malformed {paths.cost_file(scale, cell, 'evaluate').parent}: {problem}")


def _cost(root: Path, shown: Path) -> dict[str, Any] | None:
    found = read_json(root / shown, shown)
    if found is not None and not isinstance(found, dict):
        raise ResultsError(f"malformed {shown}: no mapping")
    return found


def load_provenance(scale: str, *, root: Path = Path()) -> dict[Cell, Provenance]:
    """Read ``provenance.csv`` of one scale; a scale that was never recorded has none."""
    header, *lines = _lines(scale, root)
    shown = paths.provenance_csv(scale)
    return dict(_row(shown, header, line, number) for number, line in enumerate(lines, start=2))


def recorded_columns(scale: str, *, root: Path = Path()) -> list[str]:
    """Return the columns of ``provenance.csv`` of one scale that say how a record came to be."""
    return _lines(scale, root)[0][len(CELL_COLUMNS) :]


def _lines(scale: str, root: Path) -> list[list[str]]:
    """Return the lines of ``provenance.csv``, the header first; only a header of the first columns without a file."""
    shown = paths.provenance_csv(scale)
    try:
        lines = csv_lines(root / shown, shown)
    except FileNotFoundError:
        return [[*CELL_COLUMNS]]
    if not lines or tuple(lines[0][: len(CELL_COLUMNS)]) != CELL_COLUMNS:
        raise ResultsError(f"malformed {shown}: row 1: the first columns must be {','.join(CELL_COLUMNS)}")
    return lines


def _row(shown: Path, header: list[str], line: list[str], number: int) -> tuple[Cell, Provenance]:
    if len(line) != len(header) or not line[5].isdecimal():
        raise ResultsError(f"malformed {shown}: row {number}: {len(line)} values for {len(header)} columns, or no seed")
    nested: dict[str, Any] = {}
    for column, value in zip(header[6:], line[6:], strict=True):
        block, _, key = column.partition(".")
        if key and value:
            nested.setdefault(block, {})[key] = value
        elif not key:
            nested[block] = value
    try:
        return Cell.of(dict(zip(header, line, strict=True))), Provenance.model_validate(nested)
    except ValidationError as error:
        raise ResultsError(f"malformed {shown}: row {number}, column {first_problem(error)}") from None


def provenance_table(scale: str, found: Mapping[Cell, Provenance], columns: Iterable[str] = ()) -> str:
    """Lay out one row a cell as CSV text; every part of latency, hardware and versions is a column.

    `columns` stay even if no cell has a value there, as for the GPU of machines without one.
    """
    rows = {cell: flat(provenance.model_dump(mode="json")) for cell, provenance in found.items()}
    columns = {*columns, *(key for row in rows.values() for key, value in row.items() if value != {})}
    ordered = sorted(columns, key=lambda key: (_place(key), key))
    return as_csv((*CELL_COLUMNS, *ordered), ({"scale": scale, **cell._asdict(), **row} for cell, row in rows.items()))


def _place(column: str) -> int:
    block = column.partition(".")[0]
    return KEYS.index(block) if block in KEYS else len(KEYS)


def gather(
    grid: Grid, hashes: Mapping[Cell, str], *, kept: Collection[Cell] = (), root: Path = Path()
) -> dict[Cell, Provenance]:
    """Return how every recorded cell came to be: as measured here, or else as recorded for the same configuration.

    `hashes` are those of the configurations of the recorded cells. The records of the cells in `kept` were not made
    here: what an older run of them cost here says nothing about these.
    """
    recorded = load_provenance(grid.scale, root=root)
    found = {}
    for cell, wanted in hashes.items():
        here = None if cell in kept else measured_here(grid.scale, cell, root=root)
        if here is not None:
            found[cell] = here.model_copy(update={"config_hash": wanted})
        elif cell in recorded and recorded[cell].config_hash == wanted:
            found[cell] = recorded[cell]
    return found
