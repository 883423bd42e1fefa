"""The pruning dynamics and the accuracy-versus-MACs curves, as files that have the same bytes on every run.

The four dynamics plots follow one network (the one of Table IV) over its pruning iterations, the
paper's method beside the controls. All curves are measured on the validation split.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ifap.claims import FIGURES
from ifap.claims.tables import PREFIXES, choose_unit, label, table_cell, table_options
from ifap.errors import ConfigError, nearest
from ifap.grid import Grid

PIXELS_PER_INCH = 160
COLUMNS = 3  # panels side by side
# Okabe and Ito's colours, told apart with any colour vision; markers tell the methods apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), "-.")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ifap",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 100,
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its bytes per format and the words that stand for it."""

    name: str
    title: str
    alt: str
    files: dict[str, bytes]
    width: int
    height: int

    @property
    def is_broad(self) -> bool:
        """Whether it has several panels side by side."""
        return self.width > 1.6 * self.height


@dataclass(frozen=True)
class _Quantity:
    """What a dynamics plot shows over the iterations."""

    column: str
    title: str
    axis: str
    is_count: bool = False


QUANTITIES = {
    "parameters": _Quantity("params", "Parameters", "Parameters", is_count=True),
    "macs": _Quantity("macs", "Multiply-accumulates", "MACs", is_count=True),
    "top1": _Quantity("top1", "Top-1 accuracy", "Top-1, validation (%)"),
    "top5": _Quantity("top5", "Top-5 accuracy", "Top-5, validation (%)"),
}


def draw(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame) -> Picture:
    """Draw one figure.

    Parameters
    ----------
    name : str
        One of `ifap.claims.FIGURES`.
    grid : Grid
        The cells and their order.
    runs, trace : DataFrame
        Content of ``runs.csv`` and ``trace.csv``.

    Returns
    -------
    Picture
        The figure as SVG and PNG.
    """
    if name not in FIGURES:
        raise ConfigError(f"unknown figure '{name}': {nearest(name, FIGURES)}")
    with mpl.rc_context(STYLE):
        if name in QUANTITIES:
            return _dynamics(name, QUANTITIES[name], grid, trace)
        return _accuracy_over_macs(name, grid, runs, trace)


def _dynamics(name: str, quantity: _Quantity, grid: Grid, trace: pd.DataFrame) -> Picture:
    cell = table_cell("table-4", table_options("table-4", grid))
    here = _accepted(trace)
    here = here[(here["task"] == cell.task) & (here["dataset"] == cell.dataset) & (here["model"] == cell.model)]
    here = here[here["seed"] == cell.seed]
    if here.empty:
        return _not_attempted(name, quantity.title, f"no record of {cell.model} on {cell.dataset}, seed {cell.seed}")
    methods = _ordered(grid, here)
    unit = choose_unit(here[quantity.column]).prefix if quantity.is_count else ""
    factor = PREFIXES[unit]
    figure = Figure(figsize=(5.2, 3.7), layout="constrained")
    axes = figure.add_subplot()
    for method in methods:
        frame = here[here["method"] == method]
        axes.plot(frame["iteration"], frame[quantity.column] / factor, **_line(grid, method))
    named = f"{quantity.axis} ({unit})" if unit else quantity.axis
    _label_axes(axes, "Pruning iteration", named.replace("MACs (M)", "MMACs").replace("MACs (G)", "GMACs"))
    axes.set_title(f"{quantity.title}: {cell.model}, {cell.dataset}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity.is_count:
        axes.set_ylim(bottom=0)
    _legend(figure, axes)
    ends = "; ".join(_journey(here[here["method"] == method], method, quantity, unit) for method in methods)
    note = "" if quantity.is_count else " on the validation split, after recovery"
    alt = f"Line chart. {quantity.title} of {cell.model} on {cell.dataset}{note} over the pruning iterations. {ends}."
    return _picture(name, f"{quantity.title} over the pruning iterations{note}", alt, figure)


def _journey(frame: pd.DataFrame, method: str, quantity: _Quantity, unit: str) -> str:
    values = frame[quantity.column].dropna() / PREFIXES[unit]
    suffix = unit or ("" if quantity.is_count else " %")
    ends = f": {values.iloc[0]:.2f}{suffix} to {values.iloc[-1]:.2f}{suffix}" if len(values) else ""
    return label(method) + ends


def _accuracy_over_macs(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame) -> Picture:
    here = _accepted(trace).dropna(subset=["top1"])
    panels = list(dict.fromkeys((cell.task, cell.dataset, cell.model) for cell in grid.pruned()))
    panels = [panel for panel in panels if len(_of(here, panel))]
    title = "Top-1 accuracy on the validation split, after recovery, against the MACs that are left"
    if not panels:
        return _not_attempted(name, title, "no record of any pruned network")
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 3.0 * rows + 0.5), layout="constrained")
    grid_axes: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid_axes.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid_axes.flat, panels, strict=False):
        _curves(axes, grid, _of(here, panel))
        axes.set_title(panel[2] if len(grid.datasets()) == 1 else f"{panel[2]}, {panel[1]}")
        _label_axes(axes, "MACs (% of unpruned)", "Top-1, validation (%)")
        axes.label_outer()
    # The unpruned network is at the left, so that pruning reads from left to right.
    grid_axes[0, 0].set_xlim(103, max(0, _least_share(here) - 5))
    _legend(figure, grid_axes[0, 0])
    alt = (
        f"Line charts, one a network, on {' and '.join(grid.datasets())}. Validation top-1 after recovery "
        f"against the MACs that are left. {_ends(grid, runs)}"
    )
    return _picture(name, title, alt.strip(), figure)


def _curves(axes: Axes, grid: Grid, frame: pd.DataFrame) -> None:
    """Draw one curve a method: the mean over the seeds, and their range where there are several."""
    for method in _ordered(grid, frame):
        of_method = frame[frame["method"] == method]
        by_step = of_method.assign(share=_share(of_method)).groupby("iteration")
        share, top1 = by_step["share"].mean(), by_step["top1"]
        style = _line(grid, method)
        axes.plot(share, top1.mean(), **style)
        if of_method["seed"].nunique() > 1:
            axes.fill_between(share, top1.min(), top1.max(), color=style["color"], alpha=0.15, linewidth=0)


def _share(frame: pd.DataFrame) -> pd.Series[float]:
    """Return the MACs left, in percent of the first iteration of the same cell."""
    start = frame.groupby(["task", "dataset", "model", "method", "seed"])["macs"].transform("first")
    return 100.0 * frame["macs"] / start


def _least_share(frame: pd.DataFrame) -> float:
    return float(_share(frame).min())


def _ends(grid: Grid, runs: pd.DataFrame) -> str:
    pruned = runs[runs["method"].isin({cell.method for cell in grid.pruned()})]
    means = pruned.groupby(["model", "method"], sort=False)["macs_reduction"].mean()
    if means.dropna().empty:
        return ""
    return f"All runs end with between {-means.max():.0f} % and {-means.min():.0f} % fewer MACs."


def _of(frame: pd.DataFrame, panel: tuple[str, str, str]) -> pd.DataFrame:
    task, dataset, model = panel
    return frame[(frame["task"] == task) & (frame["dataset"] == dataset) & (frame["model"] == model)]


def _accepted(trace: pd.DataFrame) -> pd.DataFrame:
    return trace[trace["accepted"].astype(str).str.lower() != "false"]


def _ordered(grid: Grid, frame: pd.DataFrame) -> list[str]:
    """Return the methods that have rows, in the order of the grid."""
    present = set(frame["method"])
    return [name for name in _methods(grid) if name in present]


def _methods(grid: Grid) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in grid.pruned()))


def _line(grid: Grid, method: str) -> dict[str, Any]:
    """Return the look of one method: the paper's is bold and underneath, so that equal curves stay visible."""
    index = _methods(grid).index(method)
    bold = method == "ifap"
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "label": label(method),
        "linewidth": 3.2 if bold else 1.4,
        "markersize": 6.5 if bold else 3.8,
        "zorder": 2 if bold else 3,
        "clip_on": False,
    }


def _not_attempted(name: str, title: str, reason: str) -> Picture:
    """Say in the figure's place why there is none."""
    figure = Figure(figsize=(5.2, 3.7))
    figure.text(0.5, 0.5, f"not attempted:\n{reason}", ha="center", va="center", color="#555555", wrap=True)
    return _picture(name, title, f"Not attempted: {reason}.", figure)


def _label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=3, color="#555555")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), handlelength=3)


def _picture(name: str, title: str, alt: str, figure: Figure) -> Picture:
    """Save the figure in every format, without a date or a version in it."""
    width, height = (round(96 * float(side)) for side in figure.get_size_inches())
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "ifap"})
    figure.savefig(png, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": "ifap"})
    return Picture(name, title, alt, {"svg": svg.getvalue(), "png": png.getvalue()}, width, height)
