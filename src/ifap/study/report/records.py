"""Read every cell's records, check them against ``params.yaml`` and lay them out as CSV files.

A record that is missing, stale or malformed stops the report: a number in a table never comes from
a run that ``params.yaml`` does not describe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError

from ifap.errors import ResultsError, nearest
from ifap.files import read_bounded
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import kind
from ifap.study.paths import Cell
from ifap.study.report import training_cost as ledger
from ifap.study.report.configs import config_hash, first_difference
from ifap.study.report.csv_files import (
    LISTED,
    MOST_BYTES,
    as_csv,
    as_text,
    check_header,
    csv_lines,
    load_frame,
    old_layout,
    read_lines,
)
from ifap.study.report.json_files import read_json
from ifap.study.report.kept import Kept, Rows, keep
from ifap.study.report.record import (
    CELL_COLUMNS,
    EPOCH_FIELDS,
    HISTORY_COLUMNS,
    MISSING_COLUMNS,
    RECORD_COLUMNS,
    TRACE_COLUMNS,
    CellName,
    Receipt,
    Record,
    first_problem,
)

NO_RECORD = "no record"
NOT_CHOSEN = "not part of this run"


@dataclass(frozen=True)
class Collected:
    """The records of one scale."""

    grid: Grid  # The grid that was read.
    records: dict[Cell, Record]  # The cells that have a valid, up-to-date record, in the order of the grid.
    receipts: dict[Cell, list[Receipt]]  # The pruning iterations of the pruned cells among them.
    missing: dict[Cell, str]  # The cells of the grid that have none, and why.
    kept: Kept = field(default_factory=Kept)  # The recorded rows of cells that are not here but are not missing either.

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that are here or kept, in the order of the grid."""
        return [cell for cell in self.grid.cells() if cell in self.records or cell in self.kept.records]

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations of `cells`; a kept cell has the one that ``params.yaml`` gives."""
        own = {cell: record.config for cell, record in self.records.items()}
        return [own[cell] if cell in own else self.grid.config(cell, "evaluate") for cell in self.cells]

    @property
    def hashes(self) -> dict[Cell, str]:
        """The hashes of the configurations of `cells`."""
        return {cell: config_hash(config) for cell, config in zip(self.cells, self.configs, strict=True)}

    def rows(self, kept: Rows, own: Callable[[Cell], Iterable[Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
        """Return the rows of a file cell by cell: a kept cell's from `kept`, those of one that is here by `own`."""
        for cell in self.cells:
            yield from kept.get(cell, ()) if cell in self.kept.records else own(cell)

    @property
    def counts(self) -> str:
        """How many cells are here, kept and missing, in words."""
        return f"{len(self.records)} here, {len(self.kept.records)} kept as recorded, {len(self.missing)} missing"


def collect(
    grid: Grid,
    *,
    root: Path = Path(),
    allow_missing: bool = False,
    cells: str | None = None,
    keep_recorded: bool = False,
) -> Collected:
    """Read and check the records of every cell of a grid; cells whose data are not here may be missing.

    `allow_missing` accepts a grid that is not finished; the result then lists what is missing. `cells` is what the run
    was limited to, see `Grid.chosen`: other cells may be missing. `keep_recorded` keeps the recorded rows of cells that
    are not here, if ``params.yaml`` still describes them. A cell that is neither here nor kept keeps the reason that is
    recorded for it.

    Raises a ResultsError: one line that names the missing cells, the stale cells with the first key that differs, or
    the malformed file.
    """
    records, missing, stale = _look(grid, root, cells)
    kept, reasons = keep(grid, missing, root=root) if keep_recorded else (Kept(), {})
    _refuse_other_baselines(records, kept)
    missing = {cell: why for cell, why in missing.items() if cell not in kept.records}
    gaps = [cell for cell, why in missing.items() if why == NO_RECORD]
    named = [f"{cell} ({reasons[cell]})" if cell in reasons else str(cell) for cell in gaps]
    _refuse_gaps([] if allow_missing else named, stale)
    if keep_recorded:
        # The row of a stale cell goes with the next writing: from then on, only its recorded reason says why.
        reasons = {**load_missing(grid.scale, root=root), **reasons}
    missing = {cell: reasons.get(cell, why) for cell, why in missing.items()}
    receipts = {cell: _receipts(grid, cell, record, root) for cell, record in records.items() if not cell.is_baseline}
    return Collected(grid, records, receipts, missing, kept)


def _refuse_other_baselines(records: Mapping[Cell, Record], kept: Kept) -> None:
    """Refuse kept rows that compare with another unpruned network than the one here, such as of another processor."""
    for cell, row in kept.records.items():
        if cell.is_baseline or cell.baseline not in records:
            continue
        here, recorded = records[cell.baseline].score, row["baseline_metric"]
        if as_text(here) != recorded:
            text = (
                f"the recorded row of {cell} compares with an unpruned network of {recorded}, the one here has {here}"
            )
            raise ResultsError(f"{text}: run {cell} again, or remove the work of {cell.baseline}")


def _look(grid: Grid, root: Path, cells: str | None) -> tuple[dict[Cell, Record], dict[Cell, str], list[str]]:
    """Return the records that are here, the other cells of the grid with a reason, and what is stale."""
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
    return records, missing, stale


def read_record(file: Path, shown: Path, scale: str, cell: Cell) -> Record:
    """Read one ``metrics.json`` and check that it belongs to a cell of a scale; errors call the file `shown`."""
    try:
        record = Record.model_validate_json(read_bounded(file, MOST_BYTES))
    except OSError as error:
        raise ResultsError(f"malformed {shown}: {error.strerror}") from None
    except ValidationError as error:
        if layout_version(file) == 1:
            raise ResultsError(f"{shown}: {old_layout(scale)}") from None
        raise ResultsError(f"malformed {shown}: {first_problem(error)}") from None
    wanted = CellName(scale=scale, **cell._asdict())
    if record.cell != wanted:
        difference = first_difference(record.cell.model_dump(), wanted.model_dump(), source="path")
        raise ResultsError(f"malformed {shown}: belongs to another cell: {difference}")
    return record


def layout_version(file: Path) -> Any:
    """Return what a ``metrics.json`` gives as the version of its layout; None if it gives none."""
    try:
        return json.loads(file.read_text()).get("schema_version")
    except (ValueError, AttributeError):
        return None


def read_receipts(file: Path, shown: Path) -> list[Receipt]:
    """Read one ``receipts.csv``: one row an iteration, from the unpruned start (0) on."""
    try:
        lines = csv_lines(file, shown)
    except FileNotFoundError:
        raise ResultsError(f"missing {shown}: the cell has metrics but no receipts") from None
    header = list(Receipt.model_fields)
    if not lines or lines[0] != header:
        raise ResultsError(f"malformed {shown}: the first line must be {','.join(header)}")
    receipts = [_receipt(row, number, shown) for number, row in enumerate(lines[1:], start=2)]
    if [receipt.iteration for receipt in receipts] != list(range(len(receipts))) or not receipts:
        raise ResultsError(f"malformed {shown}: the iterations must run 0, 1, 2, ... without a gap")
    return receipts


def records_table(collected: Collected) -> str:
    """Lay out one row a cell as CSV text."""
    kept = {cell: [row] for cell, row in collected.kept.records.items()}
    return as_csv(RECORD_COLUMNS, collected.rows(kept, lambda cell: [_row(collected, cell)]))


def trace_table(collected: Collected) -> str:
    """Lay out one row a pruning iteration as CSV text."""
    scale = collected.grid.scale

    def iterations(cell: Cell) -> Iterator[Mapping[str, Any]]:
        for receipt in collected.receipts.get(cell, ()):  # a baseline has none
            yield {"scale": scale, **cell._asdict(), **receipt.model_dump()}

    return as_csv(TRACE_COLUMNS, collected.rows(collected.kept.trace, iterations))


def history_table(collected: Collected, *, root: Path = Path()) -> str:
    """Lay out one row an epoch as CSV text: each cell's own training, and that in which a method prunes."""
    scale = collected.grid.scale

    def epochs(cell: Cell) -> Iterator[Mapping[str, Any]]:
        for epoch in _epochs(root, scale, cell):
            yield {"scale": scale, **cell._asdict(), **epoch}

    return as_csv(HISTORY_COLUMNS, collected.rows(collected.kept.history, epochs))


def _epochs(root: Path, scale: str, cell: Cell) -> Iterator[Mapping[str, Any]]:
    shown, receipts = paths.history_file(scale, cell), paths.receipts_json(scale, cell)
    if not cell.is_baseline and (iterations := read_json(root / receipts, receipts)):
        yield from ({"stage": "prune", **epoch} for epoch in iterations[-1].get("history", ()))
    try:
        lines = csv_lines(root / shown, shown)
    except FileNotFoundError:
        raise ResultsError(f"missing {shown}: the cell has metrics but no history") from None
    if not lines or lines[0] != list(EPOCH_FIELDS):
        raise ResultsError(f"malformed {shown}: the first line must be {','.join(EPOCH_FIELDS)}")
    stage = "baseline" if cell.is_baseline else "finetune"
    for line in lines[1:]:
        # The loss of a network that has hardly begun to learn may be no number: it is left empty.
        values = ("" if value == "nan" else value for value in line)
        yield {"stage": stage, **dict(zip(EPOCH_FIELDS, values, strict=False))}


def missing_table(collected: Collected) -> str:
    """Lay out one row a cell that has no record, and why, as CSV text."""
    scale = collected.grid.scale
    rows = ({"scale": scale, **cell._asdict(), "reason": why} for cell, why in collected.missing.items())
    return as_csv(MISSING_COLUMNS, rows)


def load_missing(scale: str, *, root: Path = Path()) -> dict[Cell, str]:
    """Read ``missing.csv`` of one scale: the cells without a record, and why."""
    path = paths.missing_csv(scale)
    if not (root / path).exists():
        return {}
    lines = read_lines(root / path, path)
    check_header(lines[0], MISSING_COLUMNS, path)
    found = {}
    for row, line in enumerate(lines[1:], start=2):
        if len(line) != len(MISSING_COLUMNS) or not line[-2].isdecimal() or not line[-1]:
            raise ResultsError(f"malformed {path}: row {row}: not {','.join(MISSING_COLUMNS)}")
        task, dataset, model, method, seed = line[1:6]
        found[Cell(task, dataset, model, method, int(seed))] = line[-1]
    return found


def load_records(scale: str, *, root: Path = Path()) -> pd.DataFrame:
    """Read ``records.csv`` of one scale."""
    return load_frame(root, paths.records_csv(scale), RECORD_COLUMNS)


def recorded_rows(scale: str, *, root: Path = Path()) -> dict[Cell, dict[Any, Any]]:
    """Return the rows of ``records.csv`` by cell; none where there is no such file."""
    if not (root / paths.records_csv(scale)).exists():
        return {}
    rows = load_records(scale, root=root).to_dict("records")
    return {Cell.of(row): row for row in rows}


def load_trace(scale: str, *, root: Path = Path()) -> pd.DataFrame:
    """Read ``trace.csv`` of one scale."""
    return load_frame(root, paths.trace_csv(scale), TRACE_COLUMNS)


def _refuse_gaps(missing: Sequence[str], stale: Sequence[str]) -> None:
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_listed(missing, ', ')}")
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


class Unpruned(NamedTuple):
    """What a pruned network is compared with: costs and score of its unpruned network."""

    macs: int
    params: int
    score: float


def _unpruned(collected: Collected, cell: Cell) -> Unpruned | None:
    """Return what is known of the unpruned network of a cell, here or as recorded; None if neither has it."""
    if record := collected.records.get(cell.baseline):
        return Unpruned(record.macs, record.params, record.score)
    row = collected.kept.records.get(cell.baseline)
    return Unpruned(int(row["macs"]), int(row["params"]), float(row["test_metric"])) if row else None


def _row(collected: Collected, cell: Cell) -> dict[str, Any]:
    record, base = collected.records[cell], _unpruned(collected, cell)
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
        **{f"test_{name}": found.value for name, found in test.items()},
        **{f"validation_{name}": value for name, value in validation.items()},
        "train_size": sizes.train,
        "validation_size": sizes.validation,
        "test_size": sizes.test,
        "synthetic": record.synthetic,
        "data_checksum": record.data_checksum,
        "config_hash": config_hash(record.config),
    }


def _target(grid: Grid, cell: Cell) -> dict[str, Any]:
    target = grid.pruning(cell).target
    kind = "macs" if target.macs is not None else "params"
    return {"target_kind": kind, "target": getattr(target, kind)}


def _against(record: Record, base: Unpruned) -> dict[str, Any]:
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


def _check_methods(frame: pd.DataFrame, grid: Grid, shown: Path) -> None:
    """Refuse a row whose registered method is not that of its name."""
    for row, values in enumerate(frame.to_dict("records"), start=2):
        wanted = grid.variant(Cell.of(values)).method
        if values["base_method"] != wanted:
            text = f"'{values['base_method']}', but '{values['method']}' is {wanted} in params.yaml"
            raise ResultsError(f"malformed {shown}: row {row}, column base_method: {text}")
