"""Where a study stands, and what it would take: cells by table, their state, jobs, hours and disk.

Costs are the medians of recorded cells where there are any. Otherwise they are computed from
`Assumptions`, which are stated and not measured; nothing is started and no network is built.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifap.study import paths
from ifap.study.config.data import ModelOptions, TextOptions
from ifap.study.data.origins import PLACES
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.configs import config_hash, first_difference
from ifap.study.report.provenance import Provenance, load_provenance, measured_here
from ifap.study.report.records import recorded_rows

GB = 1e9


_VALIDATIONS = 2  # of an iteration: before and after recovery
TOKEN_BYTES = 6  # its number, whether it counts, and which text it is of


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of cells that have no record; every number is for one current data-centre GPU."""

    # Images of 224 x 224 pixels that one training step handles a second, mixed precision, for a network of about 4
    # GMACs. Other sizes go by area, up to `most_per_second`.
    images_per_second: float = 800.0
    most_per_second: float = 10_000.0  # What loading and launching allow for small images.
    forward: float = 1 / 3  # Cost of a forward pass without training, in training passes.
    distillation: float = 4 / 3  # Cost of a recovery pass with its teacher, in training passes.
    iteration_seconds: float = 20.0  # Ranking, removing units and counting, for each pruning iteration.
    cut_seconds: float = 2.0  # The same, where the speed of steps is timed and not assumed.
    job_seconds: float = 30.0  # Start of one job: imports, reading data and network.
    parameters: float = 30e6  # Parameters of an unpruned network, 4 bytes each.
    split_share: float = 0.15  # Share of validation and of test samples where the data set itself has such a split.
    other_samples: int = 60_000  # Samples of a data set of which nothing is known.


Network = tuple[str, str, str]
"""Task, data set and model."""


@dataclass(frozen=True)
class Pace:
    """Seconds that this machine needs for one image of a training step, and of a forward pass."""

    training: float
    forward: float
    on_gpu: bool


def network_of(cell: Cell) -> Network:
    """Return what cells of the same speed have in common before they are pruned."""
    return cell.task, cell.dataset, cell.model


@dataclass(frozen=True)
class State:
    """Where one cell stands."""

    cell: Cell
    # ``ran`` (metrics and checkpoint are here), ``restored`` (metrics without checkpoint), ``recorded`` (in git, its
    # work is not here), ``missing``, ``stale`` (made with other parameters) or ``damaged``.
    word: str
    detail: str = ""  # The commit of the record, or what is wrong with it.

    def __str__(self) -> str:
        return f"{self.cell}: {self.word}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Cost:
    """What some cells take."""

    cells: int
    measured: int  # Cells whose cost is measured.
    jobs: int  # Jobs of the workflow, one fetch a data set included.
    gpu_hours: float  # Hours of work by device; a measured cell counts on the device that it ran on.
    cpu_hours: float
    disk: float  # Bytes of checkpoints and prepared data.


def table_cells(grid: Grid) -> dict[str, list[Cell]]:
    """Return the cells that each table of ``params.yaml`` needs at this scale, unpruned networks first.

    Name of the table to its cells, in order; empty for a table that names no task or no cell of this scale.
    """
    tables = {}
    for name in sorted(grid.params.tables):
        options = grid.table(name)
        wanted = {key: getattr(options, key, None) for key in Cell._fields}
        chosen = [cell for cell in grid.pruned() if wanted["task"] and _fits(cell, wanted)]
        tables[name] = list(dict.fromkeys([*(cell.baseline for cell in chosen), *chosen]))
    return tables


def _state(
    grid: Grid, cell: Cell, root: Path, recorded: Mapping[Cell, Provenance], rows: Mapping[Cell, Mapping[Any, Any]]
) -> State:
    file = paths.metrics_file(grid.scale, cell)
    wanted = grid.config(cell, "evaluate")
    if not (root / file).exists():
        if cell not in rows:
            return State(cell, "missing")
        if rows[cell]["config_hash"] != config_hash(wanted):
            return State(cell, "stale", f"recorded with other parameters: {paths.records_csv(grid.scale)}")
        return State(cell, "recorded", _commit(recorded.get(cell)))
    try:
        difference = first_difference(json.loads((root / file).read_text())["config"], wanted)
        here = measured_here(grid.scale, cell, root=root)
    except (ValueError, KeyError, TypeError, AttributeError):
        return State(cell, "damaged", str(file))
    if difference:
        return State(cell, "stale", difference)
    weights = paths.checkpoint_dir(grid.scale, cell, "final") / "weights.safetensors"
    return State(cell, "ran" if (root / weights).exists() else "restored", _commit(here or recorded.get(cell)))


def status_lines(grid: Grid, *, root: Path = Path()) -> list[str]:
    """Lay out the state of every cell, table by table, and the cells in no table after them."""
    recorded, rows = load_provenance(grid.scale, root=root), recorded_rows(grid.scale, root=root)
    states = {cell: _state(grid, cell, root, recorded, rows) for cell in grid.cells()}
    tables = table_cells(grid)
    shown = {cell for cells in tables.values() for cell in cells}
    tables["in no table"] = [cell for cell in states if cell not in shown]
    lines: list[str] = []
    for name, cells in tables.items():
        if cells or name != "in no table":
            lines.append(f"{name}: {_counted([states[cell] for cell in cells])}")
            lines += [f"  {states[cell]}" for cell in cells]
    return lines


def estimate(
    grid: Grid, *, root: Path = Path(), assume: Assumptions | None = None, timed: Mapping[Network, Pace] | None = None
) -> dict[str, Cost]:
    """Estimate what each table takes from an empty start; nothing is started.

    Returns the cost by the name of the table, and under ``all`` that of every cell once. `assume` speaks for cells
    without a record. The speed of networks on this machine, `timed`, is used in its place, see
    `ifap.study.report.speed.paces`.
    """
    assume = assume or Assumptions()
    measured = _measured(grid, root)
    groups = {**table_cells(grid), "all": grid.cells()}
    return {name: _total(grid, cells, measured, assume, timed or {}) for name, cells in groups.items()}


def estimate_lines(grid: Grid, *, root: Path = Path(), timed: Mapping[Network, Pace] | None = None) -> list[str]:
    """Lay out the estimate as text, with what it rests on; see `estimate`."""
    assume = Assumptions()
    costs = estimate(grid, root=root, assume=assume, timed=timed)
    width = max(len(name) for name in costs)
    lines = [f"{'':<{width}}  cells  measured   jobs  GPU hours  CPU hours  disk (GB)"]
    for name, cost in costs.items():
        counts = f"{cost.cells:>5}  {cost.measured:>8}  {cost.jobs:>5}"
        hours = f"{cost.gpu_hours:>9,.2f}  {cost.cpu_hours:>9,.2f}"
        lines.append(f"{name:<{width}}  {counts}  {hours}  {cost.disk / GB:>9,.2f}")
    lines.append("Tables share cells; 'all' counts each once. Measured: medians of the recorded cells of this scale.")
    if timed and costs["all"].measured < costs["all"].cells:
        lines.append("Classifiers without a record: by steps that were timed here just now, each job on its own core.")
    elif costs["all"].measured < costs["all"].cells:
        lines.append(
            f"The rest is stated, not measured: one GPU trains {assume.images_per_second:,.0f} images of 224 x 224 a "
            f"second (by area up to {assume.most_per_second:,.0f}), a recovery pass costs {assume.distillation:.2f} "
            f"training passes, a network has {assume.parameters / 1e6:.0f} M parameters."
        )
    return lines + check_lines(check(grid, root=root))


@dataclass(frozen=True)
class Check:
    """A recorded cell, and what the other records say that it takes."""

    cell: Cell
    predicted: float  # Seconds of its jobs, as is `measured`.
    measured: float

    @property
    def error(self) -> float:
        """By which share of the measured time the prediction is off; negative if it is too short."""
        return self.predicted / self.measured - 1


def check(grid: Grid, *, root: Path = Path()) -> list[Check]:
    """Predict each recorded cell as if it had not run yet, from the records of the others.

    One for each recorded cell that others like it stand for.
    """
    measured = _measured(grid, root)
    found = []
    for cell, own in measured.items():
        alike = _alike(cell, {other: item for other, item in measured.items() if other != cell})
        if alike and own.seconds > 0:
            found.append(Check(cell, statistics.median(item.seconds for item in alike), own.seconds))
    return found


def check_lines(found: Sequence[Check]) -> list[str]:
    """Say how far predictions from other cells are off; nothing where there is nothing to compare."""
    if not found:
        return []
    total = sum(item.predicted for item in found) / sum(item.measured for item in found) - 1
    errors = sorted(abs(item.error) for item in found)
    worst = max(found, key=lambda item: abs(item.error))
    return [
        f"Each of {len(found)} recorded cells predicted from the others: {total:+.0%} in all, median error "
        f"{statistics.median(errors):.0%}, largest {worst.error:+.0%} ({worst.cell})."
    ]


def _fits(cell: Cell, wanted: Mapping[str, Any]) -> bool:
    return all(value is None or value == getattr(cell, key) for key, value in wanted.items())


def _commit(origin: Provenance | None) -> str:
    if origin is None or not origin.commit:
        return "commit not known"
    return f"commit {origin.commit[:7]}{' with changes' if origin.dirty else ''}"


def _counted(states: Sequence[State]) -> str:
    words = [state.word for state in states]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"{len(states)} cells: {counts}" if states else "no cells at this scale"


# --- Costs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What one recorded cell took."""

    seconds: float
    on_gpu: bool
    parameters: float


def _measured(grid: Grid, root: Path) -> dict[Cell, _Measured]:
    """Return what recorded cells took, and those that ran here."""
    recorded, rows = load_provenance(grid.scale, root=root), recorded_rows(grid.scale, root=root)
    found = {}
    for cell in grid.cells():
        origin = measured_here(grid.scale, cell, root=root) or recorded.get(cell)
        size = _parameters(root / paths.metrics_file(grid.scale, cell), rows.get(cell, {}))
        if origin is not None and size is not None:
            found[cell] = _Measured(origin.seconds, bool(origin.hardware.get("gpu")), size)
    return found


def _parameters(file: Path, row: Mapping[Any, Any]) -> float | None:
    """Return the parameters of a cell's final network, from its own file or the gathered records; None if unknown."""
    try:
        return float(json.loads(file.read_text())["params"])
    except (OSError, ValueError, KeyError, TypeError):
        return row.get("params")  # `ifap status` names damaged records; here they only count as not measured


def _total(
    grid: Grid,
    cells: Sequence[Cell],
    measured: Mapping[Cell, _Measured],
    assume: Assumptions,
    timed: Mapping[Network, Pace],
) -> Cost:
    gpu = cpu = disk = 0.0
    known = 0
    for cell in cells:
        alike = _alike(cell, measured)
        known += bool(alike)
        pace = timed.get(network_of(cell))
        stated = 0.0 if alike else sum(stated_seconds(grid, cell, assume, pace).values())
        seconds = statistics.median(item.seconds for item in alike) if alike else stated
        on_gpu = alike[0].on_gpu if alike else pace is None or pace.on_gpu
        gpu += seconds * on_gpu
        cpu += seconds * (not on_gpu)
        size = statistics.median(item.parameters for item in alike) if alike else assume.parameters
        disk += 4 * size * (1 if cell.is_baseline else 2)  # pruned, and final after fine-tuning
    datasets = {cell.dataset for cell in cells}
    jobs = len(datasets) + sum(2 if cell.is_baseline else 3 for cell in cells)
    disk += sum(_data_bytes(grid, dataset, assume) for dataset in datasets)
    return Cost(len(cells), known, jobs, gpu / 3600, cpu / 3600, disk)


def _alike(cell: Cell, measured: Mapping[Cell, _Measured]) -> list[_Measured]:
    """Return the records that stand for a cell: its own seeds, else other methods on the same network and data."""
    same = [item for other, item in measured.items() if other._replace(seed=0) == cell._replace(seed=0)]
    if same or cell.is_baseline:
        return same
    return [item for other, item in measured.items() if not other.is_baseline and other[:3] == cell[:3]]


def stated_seconds(grid: Grid, cell: Cell, assume: Assumptions, pace: Pace | None = None) -> dict[str, float]:
    """Return the seconds that each job of one cell takes by the assumptions, or by the speed of its steps here.

    Stage to seconds, in the order in which the stages run.
    """
    given = grid.model(cell)
    # A text counts as one image of the size that the speed is stated for.
    size = given.image_size if isinstance(given, ModelOptions) else 224
    data, samples = grid.options.datasets[cell.dataset], _samples(grid, cell.dataset, assume)
    validation, test = (assume.split_share if share is None else share for share in (data.validation, data.test))
    train, test = samples * (1 - validation - test), samples * test
    if pace is not None:
        return _timed_seconds(grid, cell, assume, pace, train, samples * validation, test)
    speed = min(assume.most_per_second, assume.images_per_second * (224 / size) ** 2)
    training = grid.training(cell).epochs * train / speed + assume.job_seconds
    evaluation = assume.forward * test / speed + assume.job_seconds
    if cell.is_baseline:
        return {"baseline": training, "evaluate": evaluation}
    options, recovery = grid.pruning(cell), grid.recovery(cell)
    seen = min(train, recovery.samples or train)
    per_iteration = (
        recovery.epochs * seen * assume.distillation
        + (options.calibration_samples + samples * validation) * assume.forward
    )
    pruning = options.steps * (per_iteration / speed + assume.iteration_seconds) + assume.job_seconds
    return {"prune": pruning, "finetune": training, "evaluate": evaluation}


def _timed_seconds(
    grid: Grid, cell: Cell, assume: Assumptions, pace: Pace, train: float, validation: float, test: float
) -> dict[str, float]:
    """Return the seconds of each job from those of an image; a network in pruning has half-way the MACs of its ends."""
    epochs, start = grid.training(cell).epochs, assume.job_seconds
    if cell.is_baseline:
        fitting = epochs * (train * pace.training + validation * pace.forward) + start
        return {"baseline": fitting, "evaluate": (test + validation) * pace.forward + start}
    options, recovery = grid.pruning(cell), grid.recovery(cell)
    left = 1 - (options.target.macs or 0.0)
    mean = (1 + left) / 2
    seen = recovery.epochs * min(train, recovery.samples or train)
    per_iteration = (
        seen * (pace.training * mean + pace.forward)  # the teacher is the unpruned network
        + (options.calibration_samples + _VALIDATIONS * validation) * mean * pace.forward
        + assume.cut_seconds
    )
    fitting = epochs * left * (train * pace.training + validation * pace.forward) + start
    evaluation = (test + validation) * left * pace.forward + start
    return {"prune": options.steps * per_iteration + start, "finetune": fitting, "evaluate": evaluation}


def _data_bytes(grid: Grid, dataset: str, assume: Assumptions) -> float:
    """Return the size of a data set at most: one byte a colour and pixel of the largest input, six a token."""
    options = [grid.model(cell) for cell in grid.baselines() if cell.dataset == dataset]
    side = max((own.image_size for own in options if isinstance(own, ModelOptions)), default=0)
    tokens = sum(own.max_length for own in options if isinstance(own, TextOptions))
    return float(_samples(grid, dataset, assume) * (3 * side**2 + TOKEN_BYTES * tokens))


def _samples(grid: Grid, dataset: str, assume: Assumptions) -> float:
    if twin := grid.options.datasets[dataset].synthetic:
        return 1.5 * twin.classes * twin.per_class
    return PLACES[dataset].samples if dataset in PLACES else assume.other_samples
