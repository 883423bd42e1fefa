"""What a scale on the paper's own data says about its claim, from the records: is the loss small, where, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from ifap.study.config.data import ModelOptions
from ifap.study.config.values import DENSE_TASKS
from ifap.study.data.origins import PLACES
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.paths import Cell
from ifap.study.report.provenance import Provenance
from ifap.study.report.statistics import BETTER, NO_DIFFERENCE, WORSE, Difference, compare_runs
from ifap.study.report.tables.networks import link
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import label
from ifap.study.templates import MINUS

OURS = "ifap"
CONTROLS = ("random", "magnitude")
SAME_WIDTHS = "_in_ifap_widths"
WITHIN, BEYOND = "no larger than printed", "larger than printed"
SHORT, NOT_ATTEMPTED = "not larger, but the unpruned network misses its goal", "not attempted"
NOT_PRINTED = "not printed for these data"
NOT_YET = "Not measured yet."


@dataclass(frozen=True)
class Printed:
    """What the paper prints for one data set in Table II: reductions of MACs (%) and losses of accuracy (points)."""

    networks: tuple[str, ...]
    reductions: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Loss:
    """What one method did to one network: means over the seeds.

    `reduction` is in percent of the MACs, `unpruned` and `pruned` are accuracies in percent, `goal` what the unpruned
    one should reach. A network without a record has no numbers.
    """

    dataset: str
    model: str
    pixels: int | None
    method: str
    line: str
    verdict: str
    reduction: float | None = None
    unpruned: float | None = None
    pruned: float | None = None
    goal: float | None = None
    seeds: int = 0
    href: str = ""

    @property
    def loss(self) -> float | None:
        """Points of accuracy lost."""
        return None if self.unpruned is None or self.pruned is None else self.unpruned - self.pruned

    @property
    def short_of_goal(self) -> bool:
        """Whether the unpruned network has less than it should."""
        return self.goal is not None and self.unpruned is not None and self.unpruned < self.goal


@dataclass(frozen=True)
class Answer:
    """One question of a reader, its answer in a few words, and what that rests on."""

    question: str
    short: str
    because: str


@dataclass(frozen=True)
class Evidence:
    """What the page opens with."""

    answers: tuple[Answer, ...]
    losses: tuple[Loss, ...]
    differences: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]


def evidence(report: Report, provenance: Mapping[Cell, Provenance] | None = None) -> Evidence | None:
    """Return what the records of a scale on the paper's own data say; None for any other scale.

    `provenance` tells what recorded cells took, by which the hours of those without a record are judged.
    """
    if not report.grid.options.paper_data:
        return None
    printed = printed_losses(claim.model_dump() for claim in report.claims)
    losses = measured_losses(report.grid, report.runs, printed)
    apart = compare_runs(report.runs, report.grid.lines(), OURS)
    longer = _training(report.runs, report.grid)
    answers = (_is_it_small(losses, printed, longer), _for_which(losses), _is_it_the_score(report.grid, apart))
    rows = tuple(_difference_row(key, found) for key, found in apart.items())
    return Evidence(answers, losses, rows, tuple(_missing(cell, provenance or {}) for cell in _without_record(report)))


def printed_losses(claims: Iterable[Mapping[Any, Any]]) -> dict[str, Printed]:
    """Return what Table II prints, by data set; networks without all three numbers are left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for claim in claims:
        if claim["table"] == 2:
            own = found.setdefault(DATASETS[claim["dataset"]].name, {}).setdefault(claim["model"], {})
            own[claim["quantity"]] = float(claim["value"])
    wanted = ("gmacs_delta", "metric_base", "metric_pruned")
    printed = {}
    for dataset, networks in found.items():
        whole = {name: values for name, values in networks.items() if all(key in values for key in wanted)}
        printed[dataset] = Printed(
            tuple(whole),
            tuple(-values["gmacs_delta"] for values in whole.values()),
            tuple(values["metric_base"] - values["metric_pruned"] for values in whole.values()),
        )
    return printed


def measured_losses(grid: Grid, runs: pd.DataFrame, printed: Mapping[str, Printed]) -> tuple[Loss, ...]:
    """Return one row for every network and method of the grid whose task has an accuracy, in its order."""
    lines = grid.lines()
    measured = (cell for cell in grid.pruned() if cell.task not in DENSE_TASKS)
    keys = dict.fromkeys((cell.task, cell.dataset, cell.model, cell.method) for cell in measured)
    return tuple(_loss(grid, runs, printed, Cell(*key, grid.options.seeds[0]), lines[key[3]]) for key in keys)


def _loss(grid: Grid, runs: pd.DataFrame, printed: Mapping[str, Printed], cell: Cell, line: str) -> Loss:
    options = grid.model(cell)
    pixels = options.image_size if isinstance(options, ModelOptions) else None
    goal = grid.options.goals.get(cell.model)
    own = runs
    for name in ("task", "dataset", "model", "method"):
        own = own[own[name] == getattr(cell, name)]
    own = own.dropna(subset=["macs_reduction", "baseline_metric", "test_metric"])
    if own.empty:
        return Loss(cell.dataset, cell.model, pixels, cell.method, line, NOT_ATTEMPTED, goal=goal)
    unpruned, pruned = float(own["baseline_metric"].mean()), float(own["test_metric"].mean())
    most = max(printed[cell.dataset].losses) if cell.dataset in printed else None
    return Loss(
        cell.dataset,
        cell.model,
        pixels,
        cell.method,
        line,
        _verdict(unpruned, pruned, most, goal),
        -float(own["macs_reduction"].mean()),
        unpruned,
        pruned,
        goal,
        len(own),
        link(str(own["record"].iloc[0]), grid.scale),
    )


def _verdict(unpruned: float, pruned: float, most: float | None, goal: float | None) -> str:
    if most is None:
        return NOT_PRINTED
    if unpruned - pruned > most:
        return BEYOND
    return SHORT if goal is not None and unpruned < goal else WITHIN


def _training(runs: pd.DataFrame, grid: Grid) -> str:
    """Say how much longer than the unpruned network the pruned ones were trained, which hides a part of the loss."""
    own = runs[runs["method"].map(lambda name: grid.lines().get(name) == OURS)]
    keys = ["task", "dataset", "model", "seed"]
    base = runs[runs["method"] == "baseline"].set_index(keys)["training_macs"]
    ratios = (own.set_index(keys)["training_macs"] / base).dropna()
    if ratios.empty:
        return ""
    ends = " to ".join(dict.fromkeys(f"{ratio:.1f}" for ratio in (ratios.min(), ratios.max())))
    return f" All training of a pruned network, its start included, costs {ends} times that of the unpruned one."


def _is_it_small(losses: Sequence[Loss], printed: Mapping[str, Printed], longer: str) -> Answer:
    question = "Do large reductions cost little accuracy on the paper's own data?"
    known = [own for own in losses if own.line == OURS and own.verdict not in (NOT_ATTEMPTED, NOT_PRINTED)]
    if not known:
        return Answer(question, NOT_YET, "No network pruned by the paper's method has a record.")
    good = sum(own.verdict == WITHIN for own in known)
    short = f"For {good} of the {len(known)} networks measured."
    if good in {0, len(known)}:
        short = f"{'Yes' if good else _no(known)}, for {_networks(len(known))}."
    found = "; ".join(_in_words(own) for own in known)
    ranges = "; ".join(
        _range(name, printed[name]) for name in dict.fromkeys(o.dataset for o in known) if name in printed
    )
    beside = f" The paper prints {ranges}." if ranges else ""
    return Answer(question, short, f"By {label(OURS)}: {found}.{beside}{_elsewhere(losses)}{longer}")


def _elsewhere(losses: Sequence[Loss]) -> str:
    """Say what the paper's method loses on data for which the paper prints no loss."""
    found = "; ".join(_in_words(own) for own in losses if own.line == OURS and own.verdict == NOT_PRINTED)
    return f" On other data: {found}." if found else ""


def _no(known: Sequence[Loss]) -> str:
    return "No" if any(own.verdict == BEYOND for own in known) else "Not shown"


def _networks(count: int) -> str:
    return f"the {count} networks measured" if count > 1 else "the one network measured"


def _in_words(own: Loss) -> str:
    assert own.reduction is not None
    assert own.unpruned is not None
    assert own.pruned is not None
    size = f" at {own.pixels} pixels" if own.pixels else ""
    goal = f" (its goal of {own.goal:g} % is missed)" if own.short_of_goal else ""
    return (
        f"{own.model}{size} on {_title(own.dataset)} has {own.unpruned:.2f} % unpruned{goal} and {own.pruned:.2f} % "
        f"with {own.reduction:.0f} % fewer MACs"
    )


def _title(dataset: str) -> str:
    return PLACES[dataset].title if dataset in PLACES else dataset


def _range(dataset: str, own: Printed) -> str:
    return (
        f"losses of {min(own.losses):.2f} to {max(own.losses):.2f} points at reductions of {min(own.reductions):.0f} "
        f"to {max(own.reductions):.0f} % for its {len(own.networks)} networks on {_title(dataset)}"
    )


def _for_which(losses: Sequence[Loss]) -> Answer:
    question = "For which networks?"
    own = [each for each in losses if each.line == OURS]
    parts = {
        verdict: list(dict.fromkeys(each.model for each in own if each.verdict == verdict))
        for verdict in (WITHIN, SHORT, BEYOND, NOT_PRINTED, NOT_ATTEMPTED)
    }
    known = {each.model for each in own if each.verdict != NOT_ATTEMPTED}
    # A network that is measured at one target only is measured.
    parts[NOT_ATTEMPTED] = [model for model in parts[NOT_ATTEMPTED] if model not in known]
    words = "; ".join(f"{verdict}: {', '.join(models)}" for verdict, models in parts.items() if models)
    measured = len(known)
    short = f"{measured} of {len({each.model for each in own})} networks of this scale are measured."
    missed = [each for each in own if each.short_of_goal]
    more = "".join(
        f" The unpruned {each.model} has {each.unpruned:.2f} %, less than its goal of {each.goal:g} %."
        for each in {each.model: each for each in missed}.values()
    )
    strange = sorted({each.model for each in own} - {*MODELS.values()})
    apart = f" Not in the paper's tables: {', '.join(strange)}." if strange else ""
    return Answer(question, short, f"The loss is {words}.{more}{apart}")


def _is_it_the_score(grid: Grid, apart: Mapping[tuple[Any, ...], Difference]) -> Answer:
    question = "Is the flow score the reason?"
    names = {f"{name}{SAME_WIDTHS}" for name in CONTROLS}
    at_widths = {key: found for key, found in apart.items() if key[-1] in names and found.mean is not None}
    free = {
        key: found for key, found in apart.items() if grid.lines().get(key[-1]) in CONTROLS and found.mean is not None
    }
    used, where = (at_widths, "with the same layer widths") if at_widths else (free, "each with widths of its own")
    if not used:
        return Answer(
            question, NOT_YET, "It needs random and magnitude pruning beside the paper's method: no record yet."
        )
    verdicts = [found.verdict for found in used.values()]
    if all(verdict == WORSE for verdict in verdicts):  # a control is worse than the paper's method
        short = "Yes: the controls are worse."
    elif BETTER in verdicts:
        short = "No: a control is better."
    elif any(verdict == NO_DIFFERENCE for verdict in verdicts):
        short = "Not shown: no difference at this number of seeds."
    else:
        short = "Not shown: one seed allows no statement."
    words = "; ".join(
        f"{label(key[-1].removesuffix(SAME_WIDTHS))} on {key[2]}: {_signed(found.mean)} points (n={found.n})"
        for key, found in used.items()
    )
    return Answer(question, short, f"Accuracy minus that of {label(OURS)}, {where}: {words}.")


def _difference_row(key: tuple[Any, ...], found: Difference) -> tuple[str, ...]:
    interval = "" if found.low is None or found.high is None else f"{_signed(found.low)} to {_signed(found.high)}"
    mean = "" if found.mean is None else _signed(found.mean)
    return (
        str(key[2]),
        label(str(key[-1])),
        f"{100 * float(key[4]):.0f} %",
        mean,
        interval,
        str(found.n),
        found.verdict,
    )


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    shown = fixed(value, 2)
    return shown if shown.startswith(MINUS) else f"+{shown}"


def _missing(cell: Cell, provenance: Mapping[Cell, Provenance]) -> str:
    """Name a cell without a record, and the hours that recorded cells of the same network and kind took."""
    alike = [
        own.seconds
        for other, own in provenance.items()
        if other[:3] == cell[:3] and other.is_baseline == cell.is_baseline
    ]
    return f"{cell} ({f'about {median(alike) / 3600:.1f} hours' if alike else 'hours not known'})"


def _without_record(report: Report) -> list[Cell]:
    known = {Cell.of(row) for row in report.runs[list(Cell._fields)].to_dict("records")}
    return [cell for cell in report.grid.cells() if cell not in known]
