"""The methods beside each other: what Table I compares, and what a fair comparison needs beside it.

Table I prints accuracies alone. Whether one method is better than another also depends on what was
removed, what training it took and how far seeds scatter: ``comparison.csv`` and the second part of
the table say so, at every scale and for every target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.config.values import DENSE_TASKS
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import best
from ifap.study.paths import Cell
from ifap.study.report.csv_files import as_csv
from ifap.study.report.statistics import LEVEL, Difference, compare_runs, moments
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.networks import DAGGER, is_masked, masked_note, not_attempted, origin, seeds_item
from ifap.study.report.tables.numbers import Unit, choose_unit, fixed, spread
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import dataset_label, label, metric_heading, metric_notes, scale_notes
from ifap.study.templates import MINUS, NO_VALUE, PLUS_MINUS

REFERENCE = "ifap"
COLUMNS = (
    *("scale", "task", "dataset", "model", "method", "line", "base_method", "structure", "start"),
    *("target_kind", "target", "n", "seeds", "metric", "metric_mean", "metric_sd", "baseline_metric_mean"),
    *("validation_before_recovery", "validation_after_recovery"),
    *("macs_reduction", "macs_theoretical_reduction", "params_nonzero", "nonzero_params_reduction", "sparsity"),
    *("training_macs", "training_relative"),
    *("pairs", "difference", "low", "high", "p", "p_holm", "verdict"),
)
SHARED = ("base_method", "structure", "start", "target_kind", "target")
MEANS = (
    *("validation_before_recovery", "validation_after_recovery"),
    *("macs_reduction", "macs_theoretical_reduction", "params_nonzero", "nonzero_params_reduction", "sparsity"),
    *("training_macs", "training_relative"),
)

Target = tuple[str, float]
_COLUMNS = tuple(Column(text, align="left") for text in ("Model", "Target", "Method"))


@dataclass(frozen=True)
class Compared:
    """One method on one network and data set at one target, over its seeds; `frame` may be empty.

    `training_relative` is a column of `frame`: training as a multiple of the baseline's.
    """

    cell: Cell
    line: str
    frame: pd.DataFrame
    difference: Difference | None

    @property
    def masked(self) -> bool:
        """Whether weights are masked, so that nothing is saved by dense kernels."""
        return is_masked(self.frame)

    def mean(self, column: str) -> float:
        """Return the mean over the seeds; not a number where nothing is known."""
        return float(self.frame[column].astype(float).mean()) if len(self.frame) else math.nan


def compared(grid: Grid, runs: pd.DataFrame) -> list[Compared]:
    """Return every method of the grid at every target, unpruned networks first in each block.

    One entry a (task, data set, model, method), of the first seed's cell.
    """
    lines = grid.lines()
    differences = {(*key[:3], key[-1]): found for key, found in compare_runs(runs, lines, REFERENCE).items()}
    runs = _with_relative_training(runs)
    frames = {tuple(key): frame for key, frame in runs.groupby(list(Cell._fields[:4]), sort=False)}
    cells: dict[Cell, None] = {}
    for cell in grid.pruned():
        first = cell._replace(seed=grid.options.seeds[0])
        cells |= {first.baseline: None, first: None}
    empty = runs.iloc[:0]
    return [
        Compared(cell, lines.get(cell.method, cell.method), frames.get(cell[:4], empty), differences.get(cell[:4]))
        for cell in cells
    ]


def _with_relative_training(runs: pd.DataFrame) -> pd.DataFrame:
    keys = ["task", "dataset", "model", "seed"]
    base = runs[runs["method"] == "baseline"].set_index(keys)["training_macs"].rename("of_baseline")
    joined = runs.join(base, on=keys)
    relative = joined["training_macs"].astype(float) / joined["of_baseline"].astype(float)
    return runs.assign(training_relative=relative)


def comparison_table(grid: Grid, runs: pd.DataFrame) -> str:
    """Lay out one row a method, network, data set and target as CSV text; what did not run has none."""
    return as_csv(COLUMNS, (_csv_row(grid.scale, entry) for entry in compared(grid, runs) if len(entry.frame)))


def _csv_row(scale: str, entry: Compared) -> dict[str, Any]:
    frame = entry.frame
    top1, first = moments(frame["test_metric"].astype(float)), frame.iloc[0]
    row: dict[str, Any] = {"scale": scale, **entry.cell._asdict(), "line": entry.line}
    row |= {name: None if pd.isna(first[name]) else first[name] for name in SHARED}
    row |= {"n": top1.n, "seeds": " ".join(str(seed) for seed in frame["seed"])}
    row |= {"metric_mean": top1.mean, "metric_sd": top1.sd}
    row |= {name: _known(entry.mean(name)) for name in MEANS}
    row["metric"] = first["metric"]
    row["baseline_metric_mean"] = _known(entry.mean("baseline_metric"))
    if entry.line == REFERENCE:
        return row | {"verdict": "reference"}
    if entry.difference is None:
        return row
    difference = entry.difference
    row |= {"pairs": difference.n, "difference": difference.mean, "low": difference.low, "high": difference.high}
    return row | {"p": difference.p, "p_holm": difference.p_holm, "verdict": difference.verdict}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- Table I -------------------------------------------------------------------------------------


def table_1(name: str, options: TableParams, report: Report) -> Table:
    """Build Table I from runs: accuracies in the paper's layout, then what else a comparison needs.

    The table, with the further columns as its `detail`; without a cell, only what says so.
    """
    grid, runs = report.grid, report.runs[~report.runs["task"].isin(DENSE_TASKS)]  # which Table III has
    entries = [
        entry
        for entry in compared(grid, runs)
        if options.task in (None, entry.cell.task) and entry.cell.task not in DENSE_TASKS
    ]
    goals = {entry.cell: _goal(grid, entry.cell) for entry in entries}
    if not entries:
        return Table(name, options.title, _COLUMNS, (), scale_notes(grid, [], "Table I"))
    number = options.title.partition(".")[0]
    title = f"{number}, further columns: what was removed, what it cost, and differences over seeds"
    detail = Table(
        f"{name}-comparison",
        title,
        _detail_columns(unit := choose_unit(_counts(entries))),
        tuple(_detail_rows(report, entries, goals, unit)),
        (*_detail_notes(entries), *_not_run(entries)),
    )
    datasets = list(dict.fromkeys(entry.cell.dataset for entry in entries))
    shown = runs[runs["dataset"].isin(datasets)]
    columns = (*_COLUMNS, *(Column(dataset_label(dataset, grid), metric_heading(shown)) for dataset in datasets))
    rows = tuple(_accuracy_rows(entries, goals, datasets))
    return Table(name, options.title, columns, rows, _notes(grid, entries, datasets, shown), detail=detail)


def _counts(entries: Sequence[Compared]) -> list[float]:
    return [count for entry in entries for count in entry.frame["params_nonzero"]]


def _goal(grid: Grid, cell: Cell) -> Target | None:
    if cell.is_baseline:
        return None
    target = grid.pruning(cell).target
    return ("macs", target.macs) if target.macs is not None else ("params", target.params or 0.0)


def _goal_text(goals: Sequence[Target]) -> str:
    """Say what was asked for, such as ``MACs −61 to −78 %``."""
    kinds = " or ".join({"macs": "MACs", "params": "parameters"}[kind] for kind in dict.fromkeys(k for k, _ in goals))
    ends = dict.fromkeys(f"{MINUS}{100 * value:.4g}" for value in (min(v for _, v in goals), max(v for _, v in goals)))
    return f"{kinds} {' to '.join(ends)} %"


def _accuracy_rows(
    entries: Sequence[Compared], goals: Mapping[Cell, Target | None], datasets: Sequence[str]
) -> Iterator[Row]:
    """Lay out each network: unpruned, then its methods by target, the best of a target in bold."""
    for model in dict.fromkeys(entry.cell.model for entry in entries):
        of_method: dict[str, dict[str, Compared]] = {}
        for entry in entries:
            if entry.cell.model == model:
                of_method.setdefault(entry.cell.method, {})[entry.cell.dataset] = entry
        base = of_method.pop("baseline")
        blocks = _by_target(of_method, goals)
        height = 1 + len(of_method)
        yield Row((Item(model, rows=height), Item(NO_VALUE), Item("Baseline"), *_accuracies(base, datasets, {})), True)
        for targets, methods in blocks.items():
            top = {dataset: _best(methods, dataset) for dataset in datasets}
            for index, own in enumerate(methods):
                shown = Item(_goal_text(targets), rows=0 if index else len(methods))
                yield Row((Item(model, rows=0), shown, _method(own.values()), *_accuracies(own, datasets, top)))


def _by_target(
    of_method: Mapping[str, Mapping[str, Compared]], goals: Mapping[Cell, Target | None]
) -> dict[tuple[Target, ...], list[Mapping[str, Compared]]]:
    """Group methods that were asked for the same on every data set, the mildest target first."""
    blocks: dict[tuple[Target, ...], list[Mapping[str, Compared]]] = {}
    for own in of_method.values():
        targets = tuple(goal for entry in own.values() if (goal := goals[entry.cell]) is not None)
        blocks.setdefault(targets, []).append(own)
    return dict(sorted(blocks.items(), key=lambda pair: (pair[0][0][0], math.fsum(v for _, v in pair[0]))))


def _best(methods: Sequence[Mapping[str, Compared]], dataset: str) -> float:
    own = [entries[dataset] for entries in methods if dataset in entries and len(entries[dataset].frame)]
    return best(str(own[0].frame["metric"].iloc[0]), map(_printed, own)) if own else math.nan


def _printed(entry: Compared) -> float:
    """Return the accuracy as printed, so that what looks like a tie is one."""
    return round(entry.mean("test_metric"), 2)


def _accuracies(own: Mapping[str, Compared], datasets: Sequence[str], best: Mapping[str, float]) -> Iterator[Item]:
    for dataset in datasets:
        entry = own.get(dataset)
        if entry is None or not len(entry.frame):
            yield Item(NO_VALUE)
        else:
            yield _accuracy(entry, "test_metric", bold=_printed(entry) == best.get(dataset))


def _accuracy(entry: Compared, column: str, *, bold: bool = False) -> Item:
    known = entry.frame[column].dropna().astype(float)
    return Item(spread(known, _points), _href(entry), bold) if len(known) else Item(NO_VALUE)


def _href(entry: Compared) -> str | None:
    return origin(entry.frame)


def _points(value: float) -> str:
    return fixed(value, 2)


def _method(entries: Any) -> Item:
    found = list(entries)
    name = "Baseline" if found[0].cell.is_baseline else label(found[0].line)
    return Item(name, mark=DAGGER if any(entry.masked for entry in found) else "")


def _notes(grid: Grid, entries: Sequence[Compared], datasets: Sequence[str], runs: pd.DataFrame) -> tuple[Note, ...]:
    what = "Top-1 accuracy" if set(runs["metric"]) <= {"top1", "accuracy"} else "Scores"
    several = f" (mean {PLUS_MINUS} standard deviation over seeds)" if len(grid.options.seeds) > 1 else ""
    return (
        *scale_notes(grid, datasets, "Table I"),
        *metric_notes(runs, grid),
        Note(
            f"{what} on the test split{several}; every method starts from the same seeds and data. Bold: the "
            "best pruned network of each model, target and data set; equal printed values share it."
        ),
        *masked_note(pd.concat(entry.frame for entry in entries)),
        *_not_run(entries),
    )


def _not_run(entries: Sequence[Compared]) -> tuple[Note, ...]:
    gone = sum(not len(entry.frame) for entry in entries)
    return (Note(f"{NO_VALUE} no value; {gone} of {len(entries)} entries have no run yet."),) if gone else ()


# --- What Table I lacks --------------------------------------------------------------------------


def _detail_columns(unit: Unit) -> tuple[Column, ...]:
    percent, macs = "\N{GREEK CAPITAL LETTER DELTA} %", "MACs, \N{GREEK CAPITAL LETTER DELTA} %"
    weights = f"Non-zero params ({unit.prefix})" if unit.prefix else "Non-zero params"
    against = f"Top-1 minus {label(REFERENCE)} (points)"
    return (
        *(Column(text, align="left") for text in ("Data set", "Model", "Target", "Method")),
        Column("Removes"),
        Column("Starts from"),
        Column("Top-1, test (%)"),
        *(Column(text, "Recovery, top-1 (%)", "a") for text in ("Before", "After")),
        Column("Real", macs, "b"),
        Column("Theoretical", macs, "c"),
        Column("Count", weights),
        Column(percent, weights),
        Column("Sparsity (%)", mark="d"),
        Column("Training (\N{MULTIPLICATION SIGN} baseline)", mark="e"),
        Column("Seeds"),
        Column("Mean", against, "f"),
        Column(f"{100 * LEVEL:.0f} % interval", against, "f"),
        Column("p (Holm)", against, "g"),
        Column("Verdict", against, "g"),
    )


def _detail_rows(
    report: Report, entries: Sequence[Compared], goals: Mapping[Cell, Target | None], unit: Unit
) -> Iterator[Row]:
    for dataset in dict.fromkeys(entry.cell.dataset for entry in entries):
        here = [entry for entry in entries if entry.cell.dataset == dataset]
        name = Item(dataset_label(dataset, report.grid), rows=len(here))
        for model in dict.fromkeys(entry.cell.model for entry in here):
            own = [entry for entry in here if entry.cell.model == model]
            blocks: dict[Target | None, list[Compared]] = {}
            for entry in own:
                blocks.setdefault(goals[entry.cell], []).append(entry)
            network = Item(model, rows=len(own))
            for goal, block in sorted(blocks.items(), key=lambda pair: pair[0] or ("", 0.0)):
                for index, entry in enumerate(block):
                    target = Item(_goal_text([goal]) if goal else NO_VALUE, rows=0 if index else len(block))
                    names = (name, network, target, _method([entry]))
                    yield Row((*names, *_detail(report, entry, unit)), starts_group=network.rows > 0)
                    name, network = Item(name.text, rows=0), Item(network.text, rows=0)


def _detail(report: Report, entry: Compared, unit: Unit) -> tuple[Item, ...]:
    seeds = report.grid.options.seeds
    if not len(entry.frame):
        return not_attempted([entry.cell._replace(seed=seed) for seed in seeds], report.missing, columns=16)
    href, first = _href(entry), entry.frame.iloc[0]

    def mean(column: str, decimals: int) -> Item:
        value = entry.mean(column)
        return Item(NO_VALUE) if math.isnan(value) else Item(fixed(value, decimals), href)

    words = [Item(NO_VALUE if pd.isna(first[name]) else _WORDS[first[name]]) for name in ("structure", "start")]
    return (
        *words,
        _accuracy(entry, "test_metric"),
        mean("validation_before_recovery", 2),
        mean("validation_after_recovery", 2),
        mean("macs_reduction", 1),
        mean("macs_theoretical_reduction", 1),
        Item(unit.text(entry.mean("params_nonzero")), href),
        mean("nonzero_params_reduction", 1),
        mean("sparsity", 1),
        mean("training_relative", 2),
        seeds_item(entry.frame, len(seeds)),
        *_difference_items(entry),
    )


_WORDS = {"channels": "channels", "weights": "weights", "baseline": "baseline", "init": "initialisation"}


def _difference_items(entry: Compared) -> tuple[Item, ...]:
    nothing = Item(NO_VALUE)
    found = entry.difference
    if found is None:
        return nothing, nothing, nothing, Item("reference" if entry.line == REFERENCE else NO_VALUE)
    href = _href(entry)
    mean = nothing if found.mean is None else Item(_signed(found.mean), href)
    interval = nothing
    if found.low is not None and found.high is not None:
        interval = Item(f"{_signed(found.low)} to {_signed(found.high)}", href)
    p = nothing if found.p_holm is None else Item("< 0.001" if found.p_holm < 0.001 else fixed(found.p_holm, 3), href)
    return mean, interval, p, Item(found.verdict)


def _signed(value: float) -> str:
    text = fixed(value, 2)
    return f"+{text}" if value > 0 and float(text) else text


def _detail_notes(entries: Sequence[Compared]) -> tuple[Note, ...]:
    uncounted = any(len(entry.frame) and math.isnan(entry.mean("training_macs")) for entry in entries)
    open_ended = f" {NO_VALUE} where a method's own training is not counted." if uncounted else ""
    return (
        Note("Reductions are what was reached, in percent of the whole unpruned network, not what was asked for."),
        *masked_note(pd.concat(entry.frame for entry in entries)),
        Note("On the validation split, around the recovery of the last pruning iteration that was kept.", "a"),
        Note("Multiply-accumulates of the network as it is computed.", "b"),
        Note(
            "If every product with a zero weight were skipped. Theoretical: dense kernels do not, so no time is saved "
            "beyond the real reduction.",
            "c",
        ),
        Note("Zeros among the parameters of the network as it is saved, biases and norms included.", "d"),
        Note(
            "Multiply-accumulates of all training, baseline included, as a multiple of the baseline's: three forward "
            "passes a sample and step, plus the teacher's in recovery. Recovery that may stop early is counted to its "
            f"last epoch: an upper bound.{open_ended}",
            "e",
        ),
        Note(
            f"Differences at the seeds that both have, at the same target; Student's t, {100 * LEVEL:.0f} % interval "
            "not corrected for the number of methods. With one seed, or none in common, nothing can be said.",
            "f",
        ),
        Note(
            "Paired t-test, corrected by Holm for the methods compared on this network at this target; the verdict is "
            f"by this p at {100 * (1 - LEVEL):.0f} %.",
            "g",
        ),
    )
