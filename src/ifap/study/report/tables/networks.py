"""Rows of networks before and after pruning, as several tables have them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paper.vocabulary import best
from ifap.study.paths import Cell
from ifap.study.report.records import NO_RECORD
from ifap.study.report.tables.model import Column, Item, Note, Row
from ifap.study.report.tables.numbers import Unit, choose_unit, fixed, spread
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import dataset_label, label
from ifap.study.templates import NO_VALUE

DAGGER = "\N{DAGGER}"


def link(path: str, scale: str) -> str:
    """Return the way from the report's folder to a file of the project; nothing else is linked or read."""
    inside = os.path.normpath(path)
    if os.path.isabs(inside) or inside.startswith("..") or ":" in inside or "\0" in inside:
        raise ResultsError(f"'{path[:60]}' is not a file of the project")
    return os.path.relpath(path, paths.report_dir(scale)).replace(os.sep, "/")


def method_item(method: str, runs: pd.DataFrame) -> Item:
    """Return the name of a method, marked if its runs mask weights."""
    return Item(label(method), mark=DAGGER if is_masked(runs) else "")


def masked_note(runs: pd.DataFrame) -> tuple[Note, ...]:
    """Return the footnote of `method_item`; none where no run masks weights."""
    text = "Weights are masked, not cut out: dense kernels compute them as before, and savings are theoretical."
    return (Note(text, DAGGER),) if is_masked(runs) else ()


def is_masked(runs: pd.DataFrame) -> bool:
    """Return whether weights are masked, so that nothing is saved by dense kernels."""
    return bool((runs["structure"] == "weights").any())


def met_target(runs: pd.DataFrame) -> bool:
    """Return whether every run really lost as much as was asked for; what is masked is still computed."""
    of_macs = runs["target_kind"] != "params"
    reached = -runs["macs_reduction"].where(of_macs, runs["params_reduction"]).astype(float)
    return not is_masked(runs) and not (reached < 100 * runs["target"].astype(float) - 1e-6).any()


def units(runs: pd.DataFrame) -> tuple[Unit, Unit]:
    """Return the units of MACs and of parameters that fit all networks of a table, pruned or not."""
    macs = choose_unit([*runs["macs"], *runs["macs_base"].dropna()])
    return macs, choose_unit([*runs["params"], *runs["params_base"].dropna()])


def network_rows(cells: Sequence[Cell], runs: pd.DataFrame, macs: Unit, params: Unit, report: Report) -> list[Row]:
    """Lay out the cells of one task: data sets, their networks, and the methods of each."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        methods = blocks.setdefault((cell.dataset, cell.model), [])
        if cell.method not in methods:
            methods.append(cell.method)
    rows: list[Row] = []
    for (dataset, model), methods in blocks.items():
        wanted = [cell for cell in cells if (cell.dataset, cell.model) == (dataset, model)]
        new = not rows or rows[-1].items[0].text != dataset_label(dataset, report.grid)
        height = sum(len(names) for (other, _), names in blocks.items() if other == dataset)
        rows += _block(wanted, methods, runs, macs, params, report, dataset_rows=height if new else 0)
    return rows


def network_columns(macs: Unit, params: Unit, score: str) -> tuple[Column, ...]:
    """Return the columns of `network_rows`; those of scores are headed `score`."""
    change = "\N{GREEK CAPITAL LETTER DELTA} %"
    counts = f"{macs.prefix}MACs"
    weights = f"Params ({params.prefix})" if params.prefix else "Params"
    return (
        Column("Data set", align="left"),
        Column("Architecture", align="left"),
        Column("Method", align="left"),
        *(Column(text, counts, "a") for text in ("Base", "Pruned", change)),
        *(Column(text, weights) for text in ("Base", "Pruned", change)),
        Column("Base", score, "b"),
        Column("Pruned", score, "b"),
        Column("\N{GREEK CAPITAL LETTER DELTA} points", score, "c"),
        Column("Seeds", mark="d"),
    )


def _block(
    cells: Sequence[Cell],
    methods: Sequence[str],
    runs: pd.DataFrame,
    macs: Unit,
    params: Unit,
    report: Report,
    *,
    dataset_rows: int,
) -> list[Row]:
    """Lay out the methods of one network on one data set; the best pruned accuracy that met its target is bold."""
    dataset, model = cells[0].dataset, cells[0].model
    here = runs[(runs["dataset"] == dataset) & (runs["model"] == model)]
    of_method = {method: here[here["method"] == method] for method in methods}
    shown = [_printed(frame) for frame in of_method.values() if len(frame) and met_target(frame)]
    top = best(str(here["metric"].iloc[0]), shown) if len(here) else math.nan
    rows = []
    for index, method in enumerate(methods):
        names = (
            Item(dataset_label(dataset, report.grid), rows=0 if index else dataset_rows),
            Item(model, rows=0 if index else len(methods)),
            method_item(method, of_method[method]),
        )
        wanted = [cell for cell in cells if cell.method == method]
        frame = of_method[method]
        values = not_attempted(wanted, report.missing)
        if len(frame):
            base = unpruned(here, frame)
            counts = (*count_items(frame, base, "macs", macs), *count_items(frame, base, "params", params))
            values = (*counts, *score_items(frame, base, top), seeds_item(frame, len(wanted)))
        rows.append(Row((*names, *values), starts_group=index == 0))
    return rows


def _printed(frame: pd.DataFrame) -> float:
    """Return the accuracy as printed, so that what looks like a tie is one."""
    return round(float(frame["test_metric"].mean()), 2)


def count_items(frame: pd.DataFrame, base: pd.DataFrame, kind: str, unit: Unit) -> tuple[Item, ...]:
    """Return what a method's runs cost: before, after and the change; `kind` is ``macs`` or ``params``."""
    own_link, base_link = origin(frame), origin(base)

    def item(column: str, show: Callable[[float], str], href: str | None) -> Item:
        known = frame[column].dropna().astype(float)
        return Item(show(float(known.mean())), href) if len(known) else Item(NO_VALUE)

    return (
        item(f"{kind}_base", unit.text, base_link),
        item(kind, unit.text, own_link),
        item(f"{kind}_reduction", lambda value: fixed(value, 1), own_link),
    )


def score_items(frame: pd.DataFrame, base: pd.DataFrame, top: float = math.nan) -> tuple[Item, ...]:
    """Return the scores of a method's runs: before, after (bold if it is `top` and the target was met), the change."""

    def item(column: str, href: str | None, *, bold: bool = False) -> Item:
        known = frame[column].dropna().astype(float)
        return Item(spread(known, lambda value: fixed(value, 2)), href, bold) if len(known) else Item(NO_VALUE)

    own, best_one = origin(frame), _printed(frame) == top and met_target(frame)
    return item("baseline_metric", origin(base)), item("test_metric", own, bold=best_one), item("metric_delta", own)


def seeds_item(frame: pd.DataFrame, seeds: int) -> Item:
    """Return how many seeds ran, of those that were to run."""
    return Item(str(len(frame)) if len(frame) == seeds else f"{len(frame)} of {seeds}", origin(frame))


def unpruned(runs: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the unpruned networks that the rows of pruned ones start from."""
    keys = ["task", "dataset", "model", "seed"]
    wanted = set(pruned[keys].itertuples(index=False, name=None))
    own = runs[runs["method"] == "baseline"]
    return own[[key in wanted for key in own[keys].itertuples(index=False, name=None)]]


def origin(rows: pd.DataFrame) -> str | None:
    """Return the link to the lines of records that rows come from; None without a row.

    Lines that do not follow one another are linked by the first.
    """
    if rows.empty:
        return None
    places = [str(place).rpartition("#L") for place in rows["record"]]
    file, lines = places[0][0], [int(line) for _, _, line in places]
    several = len(lines) > 1 and lines == list(range(lines[0], lines[0] + len(lines)))
    return link(f"{file}#L{lines[0]}{f'-L{lines[-1]}' if several else ''}", str(rows["scale"].iloc[0]))


def not_attempted(cells: Sequence[Cell], missing: Mapping[Cell, str], columns: int = 10) -> tuple[Item, ...]:
    """Say across a row's value columns that nothing ran, and why."""
    seeds = ", ".join(str(cell.seed) for cell in cells)
    noun = "seed" if len(cells) == 1 else "seeds"
    reason = missing.get(cells[0], NO_RECORD)
    text = f"{reason} for {noun} {seeds}" if reason == NO_RECORD else reason
    return (Item(f"not attempted: {text}", columns=columns),)


def select(frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Return the rows of one cell."""
    chosen = frame
    for key, value in cell._asdict().items():
        chosen = chosen[chosen[key] == value]
    return chosen
