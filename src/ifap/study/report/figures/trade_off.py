"""Accuracy of final networks against their cost, every method at every target."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS
from ifap.study.report.figures.drawing import (
    COLOURS,
    COLUMNS,
    DASHES,
    MARKERS,
    Picture,
    label_axes,
    not_attempted,
    save_picture,
    too_many,
)
from ifap.study.report.figures.selection import networks, of_network, shown_lines
from ifap.study.report.tables.wording import label

PANEL = ["task", "dataset", "model"]
ACCURACIES = {"top1", "accuracy"}
LETTERS = 38  # of a line beside an axis
_LEAST_SPAN = 6.0  # of an axis, in percent


@dataclass(frozen=True)
class _Axis:
    """What stands along the cost axis of a trade-off plot: columns of the records, for cut and for masked networks."""

    cut: str
    masked: str
    words: str


AXES = {
    "accuracy_macs": _Axis("macs_reduction", "macs_theoretical_reduction", "MACs"),
    "accuracy_params": _Axis("nonzero_params_reduction", "nonzero_params_reduction", "Non-zero parameters"),
}


def has_curves(grid: Grid, runs: pd.DataFrame) -> bool:
    """Whether final networks say more than pruning iterations: at several targets, or with masks that cut nothing."""
    pruned = _with_lines(grid, runs)
    points = pruned.groupby([*PANEL, "line"])["method"].nunique()
    return bool((points > 1).any() or (pruned["structure"] == "weights").any())


def _with_lines(grid: Grid, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the pruned runs, each with the method whose curve it is a point of."""
    lines = shown_lines(grid)
    pruned = runs[runs["method"].isin(lines)]
    return pruned.assign(line=pruned["method"].map(lines))


def draw_trade_off(name: str, grid: Grid, runs: pd.DataFrame) -> Picture:
    """Draw one curve a method over its targets: mean and standard deviation over seeds of what was reached."""
    axis = AXES[name]
    what = "Top-1 accuracy" if set(runs["metric"]) <= ACCURACIES else "Scores"
    title = f"{what} on the test split against {_lower(axis.words)}"
    pruned = _with_lines(grid, runs).dropna(subset=[axis.cut, axis.masked])
    panels = [network for network in networks(grid) if len(of_network(pruned, network))]
    if not panels:
        return not_attempted(name, title, "no record of any pruned network beside its unpruned one")
    if why := too_many(panels):
        return not_attempted(name, title, why)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.4, 3.1 * rows + 0.9), layout="constrained")
    grid_axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid_axes.flat[len(panels) :]:
        axes.set_visible(False)
    words = []
    for axes, panel in zip(grid_axes.flat, panels, strict=False):
        named = panel[2] if len(grid.datasets()) == 1 else f"{panel[2]}, {panel[1]}"
        own = of_network(pruned, panel)
        metric = str(own["metric"].iloc[0])
        words += _panel(axes, grid, own, axis, named, unit=" %" if METRICS[metric].unit == "%" else "")
        _baseline(axes, of_network(runs, panel))
        axes.set_title(named)
        label_axes(axes, f"{axis.words} (% of unpruned)", _scores(metric))
        # The unpruned network is at the left, so that pruning reads from left to right.
        axes.invert_xaxis()
        axes.margins(x=0.06)
        _widen(axes, METRICS[metric].high)
    _joint_legend(figure, grid_axes.flat[: len(panels)])
    several = ", mean and standard deviation over seeds" if pruned["seed"].nunique() > 1 else ""
    hollow = "; hollow: weights are masked, so that fewer MACs are theoretical" if _any_masked(pruned, axis) else ""
    alt = (
        f"Line charts, one a network. {title}{several}; a curve a method, a point a target, the unpruned network as a "
        f"dashed line. {' '.join(words)}"
    )
    return save_picture(name, f"{title}{several}{hollow}", alt, figure)


def _scores(metric: str) -> str:
    """Return how the axis of scores is called, on two lines where its name is long."""
    if metric in ACCURACIES:
        return "Top-1, test (%)"
    less = "; less is better" * METRICS[metric].less_is_better
    return textwrap.fill(f"Test: {METRICS[metric].title}{less}", LETTERS)


def _widen(axes: Axes, highest: float) -> None:
    """Let each axis show some points at least, else differences of rounding would fill the picture; nothing above."""
    for (start, end), place in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        middle, missing = (start + end) / 2, _LEAST_SPAN / 2 * (1 if end >= start else -1)
        if abs(end - start) < _LEAST_SPAN:
            place(middle - missing, middle + missing)
    axes.set_ylim(top=min(axes.get_ylim()[1], highest + _LEAST_SPAN / 10))


def _panel(axes: Axes, grid: Grid, frame: pd.DataFrame, axis: _Axis, named: str, unit: str) -> list[str]:
    """Draw the curves of one network and return them in words."""
    lines = list(dict.fromkeys(shown_lines(grid).values()))
    words = []
    for line in [name for name in lines if name in set(frame["line"])]:
        own = frame[frame["line"] == line]
        masked = bool((own["structure"] == "weights").any())
        points = _points(own, axis.masked if masked else axis.cut)
        style = _style(lines, line)
        theoretical = masked and axis.cut != axis.masked
        several = bool(points["top1_sd"].notna().any())
        if theoretical:
            style |= {"markerfacecolor": "white", "label": f"{style['label']} (theoretical {axis.words})"}
        axes.errorbar(
            points["left"],
            points["top1"],
            yerr=points["top1_sd"] if several else None,
            xerr=points["left_sd"] if several else None,
            capsize=2.5,
            elinewidth=0.9,
            **style,
        )
        ends = ", ".join(f"{row.top1:.2f}{unit} at {row.left:.0f} %" for row in points.itertuples())
        words.append(f"{named}, {style['label']}: {ends}.")
    return words


def _points(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return one row a target: what is left and the accuracy, means and deviations over the seeds."""
    by_target = frame.assign(left=100 + frame[column]).groupby("method", sort=False)
    points = by_target.agg(
        left=("left", "mean"), left_sd=("left", "std"), top1=("test_metric", "mean"), top1_sd=("test_metric", "std")
    )
    return points.sort_values("left", ascending=False)


def _baseline(axes: Axes, frame: pd.DataFrame) -> None:
    top1 = frame.loc[frame["method"] == "baseline", "test_metric"]
    if top1.empty:
        return
    mean, sd = float(top1.mean()), float(top1.std()) if len(top1) > 1 else 0.0
    axes.axhline(mean, color="#444444", linestyle=(0, (4, 3)), linewidth=1.2, zorder=1, label="unpruned")
    if sd:
        axes.axhspan(mean - sd, mean + sd, color="#444444", alpha=0.1, linewidth=0, zorder=0)


def _any_masked(frame: pd.DataFrame, axis: _Axis) -> bool:
    return axis.cut != axis.masked and bool((frame["structure"] == "weights").any())


def _lower(words: str) -> str:
    return words if words.isupper() or words == "MACs" else words[0].lower() + words[1:]


def _style(lines: Sequence[str], line: str) -> dict[str, Any]:
    """Return the look of one curve; the paper's method is bold and underneath."""
    index = lines.index(line)
    bold = line == "ifap"
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
        "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)],
        "label": label(line),
        "linewidth": 2.6 if bold else 1.3,
        "markersize": 6.5 if bold else 4.8,
        "zorder": 2 if bold else 3,
    }


def _joint_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Place one legend for all panels, with every curve that any of them has."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(text, getattr(handle, "lines", [handle])[0])  # an error bar by its line alone
    last = entries.pop("unpruned", None)
    if last is not None:
        entries["unpruned"] = last
    columns = max(1, min(4 if len(panels) > 1 else 2, len(entries)))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
        columnspacing=1.2,
        fontsize=8.5,
    )
