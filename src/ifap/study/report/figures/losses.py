"""What is lost against what is removed: printed and measured, in one picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paper.published import load_claims
from ifap.study.report.evidence import Loss, measured_losses, printed_losses
from ifap.study.report.figures.drawing import COLOURS, GREY, MARKERS, Picture, label_axes, not_attempted, save_picture
from ifap.study.report.tables.wording import label

TITLE = "Accuracy lost against MACs removed, printed and measured"


def draw_losses(name: str, grid: Grid, runs: pd.DataFrame, root: Path) -> Picture:
    """Draw the losses of Table II in grey, and those of this scale: a colour a method, a marker a network."""
    printed = printed_losses(load_claims(root / paths.published_claims()).to_dict("records"))
    found = measured_losses(grid, runs, printed)
    points = [(own, own.reduction, own.loss) for own in found if own.reduction is not None and own.loss is not None]
    measured = [own for own, _, _ in points]
    if not measured:
        return not_attempted(name, TITLE, "no record of any pruned network beside its unpruned one")
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    datasets = dict.fromkeys(own.dataset for own in measured)
    for dataset in (each for each in datasets if each in printed):
        table = printed[dataset]
        named = f"printed: {len(table.networks)} networks on {dataset}, at the paper's size"
        axes.scatter(table.reductions, table.losses, s=34, color=GREY, marker="o", alpha=0.85, label=named)
    models, methods = (list(dict.fromkeys(getattr(own, key) for own in measured)) for key in ("model", "line"))
    shown: set[str] = set()
    for own, reduction, loss in points:
        axes.scatter(
            reduction,
            loss,
            s=62,
            color=COLOURS[methods.index(own.line) % len(COLOURS)],
            marker=MARKERS[(1 + models.index(own.model)) % len(MARKERS)],
            edgecolor="white",
            zorder=3,
            label=None if _named(own) in shown else _named(own),
        )
        shown.add(_named(own))  # a method at several targets is one line of the legend
    axes.axhline(0, color="#444444", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    label_axes(axes, "MACs removed (%)", "Accuracy lost, test (points)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    words = "; ".join(f"{_named(own)}: {loss:.2f} points at {reduction:.0f} %" for own, reduction, loss in points)
    return save_picture(name, TITLE, f"Scatter plot. {TITLE}. {words}.", figure)


def _named(own: Loss) -> str:
    pixels = f", {own.pixels} pixels" if own.pixels else ""
    return f"{label(own.line)}: {own.model}{pixels}"
