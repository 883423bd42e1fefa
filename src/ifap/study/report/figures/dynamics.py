"""How networks change over their pruning iterations: the four dynamics plots, and accuracy over MACs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paper.published import STEPS, load_claims
from ifap.study.report.figures.drawing import (
    COLUMNS,
    GREY,
    Picture,
    add_legend,
    label_axes,
    method_style,
    not_attempted,
    save_picture,
    too_many,
)
from ifap.study.report.figures.selection import accepted, methods_with_rows, networks, of_network
from ifap.study.report.tables.numbers import PREFIXES, choose_unit
from ifap.study.report.tables.options import table_cell, table_options
from ifap.study.report.tables.wording import label


@dataclass(frozen=True)
class _Quantity:
    """What a dynamics plot shows over the iterations, and what the paper calls it."""

    column: str
    title: str
    axis: str
    published: str
    is_count: bool = False


QUANTITIES = {
    "parameters": _Quantity("params", "Parameters", "Parameters", "params", is_count=True),
    "macs": _Quantity("macs", "Multiply-accumulates", "MACs", "gmacs", is_count=True),
    "top1": _Quantity("top1", "Top-1 accuracy", "Top-1, validation (%)", "top1"),
    "top5": _Quantity("top5", "Top-5 accuracy", "Top-5, validation (%)", "top5"),
}


def draw_dynamics(name: str, grid: Grid, trace: pd.DataFrame, root: Path) -> Picture:
    """Draw a quantity of the network of Table IV over its iterations, beside the published trace."""
    quantity = QUANTITIES[name]
    cell = table_cell("table-4", table_options("table-4", grid))
    here = accepted(trace)
    here = here[(here["task"] == cell.task) & (here["dataset"] == cell.dataset) & (here["model"] == cell.model)]
    here = here[here["seed"] == cell.seed]
    if here.empty:
        return not_attempted(name, quantity.title, f"no record of {cell.model} on {cell.dataset}, seed {cell.seed}")
    # What trains with masks has no pruning iterations.
    methods = [name for name in methods_with_rows(grid, here) if grid.mask_options(cell._replace(method=name)) is None]
    here = here[here["method"].isin(methods)]
    unit = choose_unit(here[quantity.column]).prefix if quantity.is_count else ""
    figure = Figure(figsize=(5.6, 4.1), layout="constrained")
    axes = figure.add_subplot()
    for method in methods:
        frame = here[here["method"] == method]
        axes.plot(frame["iteration"], frame[quantity.column] / PREFIXES[unit], **method_style(grid, method))
    start = float(here.loc[here["iteration"] == here["iteration"].min(), quantity.column].mean()) / PREFIXES[unit]
    note = _published_trace(axes, quantity, start, float(here["iteration"].max()), root)
    named = f"{quantity.axis} ({unit})" if unit else quantity.axis
    label_axes(axes, "Pruning iteration", named.replace("MACs (M)", "MMACs").replace("MACs (G)", "GMACs"))
    axes.set_title(f"{quantity.title}: {cell.model}, {cell.dataset}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity.is_count:
        axes.set_ylim(bottom=0)
    _share_axis(axes, start)
    add_legend(figure, axes, columns=3)
    split = "" if quantity.is_count else " on the validation split, after recovery"
    ends = "; ".join(_journey(here[here["method"] == method], method, quantity, unit) for method in methods)
    alt = f"Line chart. {quantity.title} of {cell.model} on {cell.dataset}{split} over the pruning iterations. {ends}."
    title = f"{quantity.title} over the pruning iterations{split}"
    return save_picture(name, f"{title}{'; grey: ' + note if note else ''}", f"{alt}{_in_grey(note)}", figure)


def _published_trace(axes: Axes, quantity: _Quantity, start: float, last: float, root: Path) -> str:
    """Draw the published trace as a share of its own start, its steps along the upper edge.

    The first published step is the unpruned network; it stands at our iteration 0.
    """
    file = root / paths.published_claims()
    if not file.exists() or not start > 0 or not last > 0:
        return ""
    claims = load_claims(file)
    rows = claims[(claims["table"] == 4) & (claims["quantity"] == quantity.published)].sort_values("step")
    steps, share = rows["step"].astype(float), rows["number"] / rows["number"].iloc[0]
    ratio = last / (STEPS - 1)
    network = f"{rows['model'].iloc[0]} on {rows['dataset'].iloc[0].replace('Cifar', 'CIFAR')}"
    named = f"published, {network}"
    axes.plot((steps - 1) * ratio, share * start, color=GREY, linewidth=1.6, zorder=1, label=named, clip_on=False)
    upper = axes.secondary_xaxis("top", functions=_linear(1 / ratio, 1))
    upper.set_ticks([1, 5, 10, 15, 20, 25, STEPS])
    upper.tick_params(colors=GREY, length=3)
    upper.set_xlabel("Published pruning step", color=GREY, fontsize=8.5)
    return f"{named}, in % of its own start ({100 * share.iloc[-1]:.1f} % at step {STEPS})"


def _share_axis(axes: Axes, start: float) -> None:
    """Show on the right what share of the unpruned network a value is."""
    if start > 0:
        right = axes.secondary_yaxis("right", functions=_linear(100 / start))
        right.set_ylabel("% of the unpruned network", color="#555555")
        right.tick_params(length=3, color="#555555")


def _linear(slope: float, offset: float = 0.0) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return a linear map and its inverse, as a second axis needs them."""
    return lambda x: x * slope + offset, lambda y: (y - offset) / slope


def _in_grey(note: str) -> str:
    return f" In grey: {note}; another network and data set, so that only the shape compares." if note else ""


def _journey(frame: pd.DataFrame, method: str, quantity: _Quantity, unit: str) -> str:
    values = frame[quantity.column].dropna() / PREFIXES[unit]
    suffix = unit or ("" if quantity.is_count else " %")
    ends = f": {values.iloc[0]:.2f}{suffix} to {values.iloc[-1]:.2f}{suffix}" if len(values) else ""
    return label(method) + ends


def draw_accuracy_over_macs(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame) -> Picture:
    """Draw the accuracy of every network and method over the MACs that its iterations leave."""
    here = accepted(trace).dropna(subset=["top1"])
    panels = [network for network in networks(grid) if len(of_network(here, network))]
    title = "Top-1 accuracy on the validation split, after recovery, against the MACs that are left"
    if not panels:
        return not_attempted(name, title, "no record of any pruned network")
    if why := too_many(panels):
        return not_attempted(name, title, why)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 3.0 * rows + 0.5), layout="constrained")
    grid_axes: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid_axes.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid_axes.flat, panels, strict=False):
        _curves(axes, grid, of_network(here, panel))
        axes.set_title(panel[2] if len(grid.datasets()) == 1 else f"{panel[2]}, {panel[1]}")
        label_axes(axes, "MACs (% of unpruned)", "Top-1, validation (%)")
        axes.label_outer()
    # The unpruned network is at the left, so that pruning reads from left to right.
    grid_axes[0, 0].set_xlim(103, max(0, float(_share(here).min()) - 5))
    add_legend(figure, grid_axes[0, 0])
    alt = (
        f"Line charts, one a network, on {' and '.join(grid.datasets())}. Validation top-1 after recovery "
        f"against the MACs that are left. {_ends(grid, runs)}"
    )
    return save_picture(name, title, alt.strip(), figure)


def _curves(axes: Axes, grid: Grid, frame: pd.DataFrame) -> None:
    """Draw one curve a method: the mean over the seeds, and their range where there are several."""
    for method in methods_with_rows(grid, frame):
        of_method = frame[frame["method"] == method]
        by_step = of_method.assign(share=_share(of_method)).groupby("iteration")
        share, top1 = by_step["share"].mean(), by_step["top1"]
        style = method_style(grid, method)
        axes.plot(share, top1.mean(), **style)
        if of_method["seed"].nunique() > 1:
            axes.fill_between(share, top1.min(), top1.max(), color=style["color"], alpha=0.15, linewidth=0)


def _share(frame: pd.DataFrame) -> pd.Series[float]:
    """Return the MACs left, in percent of the first iteration of the same cell."""
    start = frame.groupby(["task", "dataset", "model", "method", "seed"])["macs"].transform("first")
    return 100.0 * frame["macs"] / start


def _ends(grid: Grid, runs: pd.DataFrame) -> str:
    pruned = runs[runs["method"].isin({cell.method for cell in grid.pruned()})]
    means = pruned.groupby(["model", "method"], sort=False)["macs_reduction"].mean()
    if means.dropna().empty:
        return ""
    return f"All runs end with between {-means.max():.0f} % and {-means.min():.0f} % fewer MACs."
