"""An overview of all experiments."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS
from ifap.study.report.figures.drawing import Picture, save_picture
from ifap.study.report.figures.selection import networks, of_network, shown_methods
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.wording import label

_LONGEST_LINE = 18  # characters above a column


def draw_experiments(name: str, grid: Grid, runs: pd.DataFrame) -> Picture:
    """Draw every network and method as a cell: what was removed, and the colour says at what loss."""
    rows = networks(grid)
    methods = shown_methods(grid)
    wanted = {cell[:4] for cell in grid.pruned()}
    figure = Figure(figsize=(1.25 * len(methods) + 2.4, 0.62 * len(rows) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    # Distances have no points and no end: the colours are those of the scores.
    known = runs.loc[~runs["metric"].map(_less_is_better).astype(bool), "metric_delta"].dropna().abs()
    reach = max(1.0, float(known.max()) if len(known) else 1.0)
    words = []
    for row, network in enumerate(rows):
        for column, method in enumerate(methods):
            frame = of_network(runs, network)
            frame = frame[frame["method"] == method].dropna(subset=["metric_delta", "macs_reduction"])
            if (*network, method) in wanted:
                words.append(_experiment(axes, column, row, frame, reach, method, network[2]))
    axes.set_xticks(range(len(methods)), [_in_lines(label(method)) for method in methods])
    axes.set_yticks(range(len(rows)), [f"{model}\n{dataset}" for _, dataset, model in rows])
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-reach, reach), "PuOr")
    bar = figure.colorbar(scale, ax=axes, pad=0.02, orientation="horizontal", shrink=0.8, aspect=40)
    bar.set_label("Change of the score on the test split (points)")
    alt = f"Grid of {len(words)} experiments, networks as rows and methods as columns. {' '.join(words)}"
    return save_picture(
        name, "All experiments: change of the MACs and of the accuracy, mean over the seeds", alt, figure
    )


def _experiment(axes: Axes, x: int, y: int, frame: pd.DataFrame, reach: float, method: str, model: str) -> str:
    """Draw one cell of the overview and return it in words."""
    where = f"{model}, {label(method)}:"
    box: dict[str, Any] = {"xy": (x - 0.47, y - 0.45), "width": 0.94, "height": 0.9}
    if frame.empty:
        axes.add_patch(Rectangle(**box, facecolor="white", edgecolor="#999999", hatch="///", linewidth=0.6))
        axes.text(x, y, "not attempted", ha="center", va="center", fontsize=8, backgroundcolor="white")
        return f"{where} not attempted."
    delta, macs = float(frame["metric_delta"].mean()), float(frame["macs_reduction"].mean())
    less = _less_is_better(frame["metric"].iloc[0])
    better = min(1.0, max(-1.0, (-delta if less else delta) / reach))
    colour = mpl.colormaps["PuOr"]((better + 1) / 2)
    dark = sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), colour, strict=False)) < 0.5
    axes.add_patch(Rectangle(**box, facecolor=colour, edgecolor="#777777", linewidth=0.6))
    several = f" (n={len(frame)})" if len(frame) > 1 else ""
    sign = "+" if delta > 0 else ""
    unit = "less is better" if less else "points"
    text = f"{fixed(macs, 1)} % MACs\n{sign}{fixed(delta, 2)} {unit}{several}"
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return f"{where} {fixed(macs, 1)} % MACs, {sign}{fixed(delta, 2)} {unit}."


def _less_is_better(metric: object) -> bool:
    return isinstance(metric, str) and METRICS[metric].less_is_better


def _in_lines(text: str) -> str:
    """Break a long name at its underscores, so that the names of two columns do not touch."""
    lines = textwrap.wrap(text.replace("_", "_ "), _LONGEST_LINE)
    return "\n".join(line.replace("_ ", "_") for line in lines)
