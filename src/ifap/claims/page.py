"""The report's page of one scale: the verdict first, then the tables, then the figures; it opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ifap import paths
from ifap.claims.figures import Picture
from ifap.claims.tables import VERDICT, Table, environment, fixed, label, link
from ifap.grid import TABLE_FORMATS, Grid


@dataclass(frozen=True)
class Outcome:
    """What one method did to one network, in words for the summary."""

    method: str
    macs: str
    top1: str
    delta: str


@dataclass(frozen=True)
class Network:
    """One network on one data set in the summary."""

    name: str
    dataset: str
    base: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Summary:
    """What the page says first."""

    scale: str
    verdict: str
    ran: str
    target: str
    networks: tuple[Network, ...]


def render_page(
    grid: Grid, runs: pd.DataFrame, tables: Sequence[Table], pictures: Sequence[Picture], templates: Path | None = None
) -> str:
    """Render ``index.html`` of one scale.

    Parameters
    ----------
    grid : Grid
        The cells of the scale.
    runs : DataFrame
        Content of ``runs.csv``.
    tables : sequence of Table
        The tables, in order.
    pictures : sequence of Picture
        The figures, in order; the page refers to their files.
    templates : Path, optional
        Folder of the templates; the project's by default.

    Returns
    -------
    str
        The page: one file beside the figures, nothing loaded from the network.
    """
    template = environment("html", templates).get_template("index.html.j2")
    return template.render(
        summary=summarize(grid, runs),
        tables=tables,
        pictures=pictures,
        formats=TABLE_FORMATS,
        runs=_runs_link(grid.scale),
    )


def summarize(grid: Grid, runs: pd.DataFrame) -> Summary:
    """Sum up what ran and how it ended."""
    cells = grid.cells()
    pruned = sum(not cell.is_baseline for cell in cells)
    done = int((runs["method"] != "baseline").sum())
    base_done = len(runs) - done
    seeds = ", ".join(str(seed) for seed in grid.options.seeds)
    ran = f"{done} of {pruned} pruned and {base_done} of {len(cells) - pruned} unpruned networks; seed {seeds}"
    verdict = "see the tables" if grid.scale == "paper" else VERDICT
    return Summary(grid.scale, verdict, ran, _target(runs), _networks(grid, runs))


def _target(runs: pd.DataFrame) -> str:
    known = runs[["target_kind", "target"]].dropna().drop_duplicates()
    words = {"macs": "MACs", "params": "parameters"}
    targets = zip(known["target_kind"].astype(str), known["target"].astype(float), strict=True)
    return " or ".join(f"{100 * target:g} % fewer {words[kind]}" for kind, target in targets)


def _networks(grid: Grid, runs: pd.DataFrame) -> tuple[Network, ...]:
    networks = []
    for dataset, model in dict.fromkeys((cell.dataset, cell.model) for cell in grid.pruned()):
        here = runs[(runs["dataset"] == dataset) & (runs["model"] == model)]
        base = here[here["method"] == "baseline"]
        methods = dict.fromkeys(cell.method for cell in grid.pruned() if (cell.dataset, cell.model) == (dataset, model))
        outcomes = tuple(_outcome(here[here["method"] == method], method) for method in methods)
        networks.append(Network(model, dataset, _mean(base, "test_top1", 2), outcomes))
    return tuple(networks)


def _outcome(frame: pd.DataFrame, method: str) -> Outcome:
    if frame.empty:
        return Outcome(label(method), "", "not attempted", "")
    return Outcome(
        label(method), _mean(frame, "macs_reduction", 1), _mean(frame, "test_top1", 2), _mean(frame, "top1_delta", 2)
    )


def _mean(frame: pd.DataFrame, column: str, decimals: int) -> str:
    return fixed(float(frame[column].mean()), decimals)


def _runs_link(scale: str) -> str:
    return link(paths.runs_csv(scale).as_posix(), scale)
