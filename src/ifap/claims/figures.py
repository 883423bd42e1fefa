"""The figures of one scale, as files that have the same bytes on every run.

The four dynamics plots follow one network (the one of Table IV) over its pruning iterations, the
paper's method beside the controls, and the published trace in grey as a share of its own start; their
curves are measured on the validation split. The trade-off plots show final networks on the test split,
every method at every target beside the unpruned network. The flow evaluation scheme and the layer
widths read the records of the cells; a figure whose records are missing says so in its place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ifap import paths
from ifap.claims import FIGURES, SAMPLES
from ifap.claims.names import METRICS
from ifap.claims.published import STEPS, load_claims
from ifap.claims.records import MOST_BYTES
from ifap.claims.tables import PREFIXES, choose_unit, fixed, label, table_cell, table_options
from ifap.errors import ConfigError, ResultsError, nearest
from ifap.files import read_bounded
from ifap.grid import Grid
from ifap.paths import Cell

PIXELS_PER_INCH = 160
COLUMNS = 3  # panels side by side
MOST_PANELS = 24  # of one figure: more could not be read, and make the page too large
PANEL = ["task", "dataset", "model"]
VECTOR_UNITS = 4000  # more units than this are drawn as an image inside the SVG
GREY = "#8a8a8a"
# Okabe and Ito's colours, told apart with any colour vision; markers tell the methods apart in grey.
# Where there are more methods than those seven, Tol's darker ones follow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#6F4C9B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h")
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
        """Whether it needs the whole width of a page to be readable."""
        return self.width > 1.6 * self.height or self.width > 700


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


def draw(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame, *, root: Path = Path()) -> Picture:
    """Draw one figure.

    Parameters
    ----------
    name : str
        One of `ifap.claims.figure_names`.
    grid : Grid
        The cells and their order.
    runs, trace : DataFrame
        Content of ``runs.csv`` and ``trace.csv``.
    root : Path
        The project's root: the published numbers and the records of the cells are read below it.

    Returns
    -------
    Picture
        The figure as SVG and PNG.
    """
    if name not in (*FIGURES, SAMPLES):
        raise ConfigError(f"unknown figure '{name}': {nearest(name, (*FIGURES, SAMPLES))}")
    with mpl.rc_context(STYLE):
        if name in QUANTITIES:
            return _dynamics(name, QUANTITIES[name], grid, trace, root)
        if name == "flow_scheme":
            return _flow_scheme(name, grid, root)
        if name == "layer_widths":
            return _layer_widths(name, grid, root)
        if name == "experiments":
            return _experiments(name, grid, runs)
        if name == SAMPLES:
            return _samples(name, grid, runs, root)
        if name == "accuracy_params" or _has_curves(grid, runs):
            return _trade_off(name, grid, runs)
        return _accuracy_over_macs(name, grid, runs, trace)


# --- Dynamics ------------------------------------------------------------------------------------


def _dynamics(name: str, quantity: _Quantity, grid: Grid, trace: pd.DataFrame, root: Path) -> Picture:
    cell = table_cell("table-4", table_options("table-4", grid))
    here = _accepted(trace)
    here = here[(here["task"] == cell.task) & (here["dataset"] == cell.dataset) & (here["model"] == cell.model)]
    here = here[here["seed"] == cell.seed]
    if here.empty:
        return _not_attempted(name, quantity.title, f"no record of {cell.model} on {cell.dataset}, seed {cell.seed}")
    # What trains with masks has no pruning iterations.
    methods = [name for name in _ordered(grid, here) if grid.mask_options(cell._replace(method=name)) is None]
    here = here[here["method"].isin(methods)]
    unit = choose_unit(here[quantity.column]).prefix if quantity.is_count else ""
    figure = Figure(figsize=(5.6, 4.1), layout="constrained")
    axes = figure.add_subplot()
    for method in methods:
        frame = here[here["method"] == method]
        axes.plot(frame["iteration"], frame[quantity.column] / PREFIXES[unit], **_line(grid, method))
    start = float(here.loc[here["iteration"] == here["iteration"].min(), quantity.column].mean()) / PREFIXES[unit]
    note = _published_trace(axes, quantity, start, float(here["iteration"].max()), root)
    named = f"{quantity.axis} ({unit})" if unit else quantity.axis
    _label_axes(axes, "Pruning iteration", named.replace("MACs (M)", "MMACs").replace("MACs (G)", "GMACs"))
    axes.set_title(f"{quantity.title}: {cell.model}, {cell.dataset}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity.is_count:
        axes.set_ylim(bottom=0)
    _share_axis(axes, start)
    _legend(figure, axes, columns=3)
    split = "" if quantity.is_count else " on the validation split, after recovery"
    ends = "; ".join(_journey(here[here["method"] == method], method, quantity, unit) for method in methods)
    alt = f"Line chart. {quantity.title} of {cell.model} on {cell.dataset}{split} over the pruning iterations. {ends}."
    title = f"{quantity.title} over the pruning iterations{split}"
    return _picture(name, f"{title}{'; grey: ' + note if note else ''}", f"{alt}{_in_grey(note)}", figure)


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


# --- Trade-off of accuracy and cost --------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """What stands along the cost axis of a trade-off plot: columns of ``runs.csv`` for cut and for masked networks."""

    cut: str
    masked: str
    words: str


AXES = {
    "accuracy_macs": _Axis("macs_reduction", "macs_theoretical_reduction", "MACs"),
    "accuracy_params": _Axis("nonzero_params_reduction", "nonzero_params_reduction", "Non-zero parameters"),
}


def _has_curves(grid: Grid, runs: pd.DataFrame) -> bool:
    """Whether final networks say more than pruning iterations: at several targets, or with masks that cut nothing."""
    pruned = _with_lines(grid, runs)
    points = pruned.groupby([*PANEL, "line"])["method"].nunique()
    return bool((points > 1).any() or (pruned["structure"] == "weights").any())


def _with_lines(grid: Grid, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the pruned runs, each with the method whose curve it is a point of."""
    lines = _drawn(grid)
    pruned = runs[runs["method"].isin(lines)]
    return pruned.assign(line=pruned["method"].map(lines))


def _trade_off(name: str, grid: Grid, runs: pd.DataFrame) -> Picture:
    """Draw one curve a method over its targets: mean and standard deviation over seeds of what was reached."""
    axis = AXES[name]
    title = f"Top-1 accuracy on the test split against {_lower(axis.words)}"
    pruned = _with_lines(grid, runs).dropna(subset=[axis.cut, axis.masked])
    panels = list(dict.fromkeys((cell.task, cell.dataset, cell.model) for cell in grid.pruned()))
    panels = [panel for panel in panels if len(_of(pruned, panel))]
    if not panels:
        return _not_attempted(name, title, "no record of any pruned network beside its unpruned one")
    if len(panels) > MOST_PANELS:
        return _not_attempted(name, title, _too_many(panels))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.4, 3.1 * rows + 0.9), layout="constrained")
    grid_axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid_axes.flat[len(panels) :]:
        axes.set_visible(False)
    words = []
    for axes, panel in zip(grid_axes.flat, panels, strict=False):
        named = panel[2] if len(grid.datasets()) == 1 else f"{panel[2]}, {panel[1]}"
        words += _panel(axes, grid, _of(pruned, panel), axis, named)
        _baseline(axes, _of(runs, panel))
        axes.set_title(named)
        _label_axes(axes, f"{axis.words} (% of unpruned)", "Top-1, test (%)")
        # The unpruned network is at the left, so that pruning reads from left to right.
        axes.invert_xaxis()
        axes.margins(x=0.06)
    _joint_legend(figure, grid_axes.flat[: len(panels)])
    several = ", mean and standard deviation over seeds" if pruned["seed"].nunique() > 1 else ""
    hollow = "; hollow: weights are masked, so that fewer MACs are theoretical" if _any_masked(pruned, axis) else ""
    alt = (
        f"Line charts, one a network. {title}{several}; a curve a method, a point a target, the unpruned network as a "
        f"dashed line. {' '.join(words)}"
    )
    return _picture(name, f"{title}{several}{hollow}", alt, figure)


def _panel(axes: Axes, grid: Grid, frame: pd.DataFrame, axis: _Axis, named: str) -> list[str]:
    """Draw the curves of one network and return them in words."""
    lines = list(dict.fromkeys(_drawn(grid).values()))
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
        ends = ", ".join(f"{row.top1:.2f} % at {row.left:.0f} %" for row in points.itertuples())
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


# --- Accuracy against MACs -----------------------------------------------------------------------


def _accuracy_over_macs(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame) -> Picture:
    here = _accepted(trace).dropna(subset=["top1"])
    panels = list(dict.fromkeys((cell.task, cell.dataset, cell.model) for cell in grid.pruned()))
    panels = [panel for panel in panels if len(_of(here, panel))]
    title = "Top-1 accuracy on the validation split, after recovery, against the MACs that are left"
    if not panels:
        return _not_attempted(name, title, "no record of any pruned network")
    if len(panels) > MOST_PANELS:
        return _not_attempted(name, title, _too_many(panels))
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


# --- Flow of the units ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerFlow:
    """The units of one layer, the highest flow first, and which of them were kept."""

    name: str
    scores: tuple[float, ...]
    kept: tuple[bool, ...]


def _flow_scheme(name: str, grid: Grid, root: Path) -> Picture:
    cell = table_cell("table-4", table_options("table-4", grid))
    title = f"Flow evaluation scheme: {cell.model} on {cell.dataset}, {label(cell.method)}"
    records = [_record(root / file(grid.scale, cell)) for file in (paths.flow_json, _plan_json, paths.receipts_json)]
    if any(record is None for record in records):
        return _not_attempted(name, title, f"no flow scores of {cell}")
    layers = _layer_flows(cell, *records)
    figure = Figure(figsize=(max(5.6, 0.42 * len(layers) + 1.6), 4.6), layout="constrained")
    axes = figure.add_subplot()
    drawn = _units(axes, layers)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, shrink=0.8)
    bar.set_label(_flow_label(grid, cell))
    bar.outline.set_visible(False)
    axes.set_xticks(range(len(layers)), [_short(layer.name) for layer in layers], rotation=90, fontsize=7.5)
    axes.set_yticks([0, 1], ["lowest", "highest"])
    axes.set_ylabel("Units of a layer, by flow")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    marks = [Rectangle((0, 0), 1, 1, color="#3b7d78"), Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#D55E00")]
    figure.legend(marks, ["kept", "cut (narrow, framed)"], loc="outside lower center", ncols=2, handlelength=1.2)
    cut = sum(layer.kept.count(False) for layer in layers)
    units = sum(len(layer.kept) for layer in layers)
    most = max(layers, key=lambda layer: layer.kept.count(False) / len(layer.kept))
    alt = (
        f"Heat map. The {len(layers)} scored layers of the unpruned {cell.model} on {cell.dataset} as columns, their "
        f"units sorted by flow as cells; {cut} of {units} units were cut, most of all in {most.name} "
        f"({most.kept.count(False)} of {len(most.kept)}). Units of layers that are added go together."
    )
    return _picture(name, f"{title}; colour: flow of a unit before pruning", alt, figure)


def _flow_label(grid: Grid, cell: Cell) -> str:
    shown = {"layer": "Flow (its layer's mean is 1)", "volume": "Flow (per volume)"}
    return shown.get(grid.pruning(cell).normalize, "Flow")


def _units(axes: Axes, layers: Sequence[_LayerFlow]) -> PatchCollection:
    """Draw every unit as a cell of its layer's column; what was cut is narrow and framed."""
    boxes: dict[bool, list[Rectangle]] = {True: [], False: []}
    values: dict[bool, list[float]] = {True: [], False: []}
    for place, layer in enumerate(layers):
        height = 1 / len(layer.scores)
        for rank, (score, kept) in enumerate(zip(layer.scores, layer.kept, strict=True)):
            width = 0.84 if kept else 0.3
            boxes[kept].append(Rectangle((place - width / 2, 1 - (rank + 1) * height), width, height))
            values[kept].append(score)
    everything = values[True] + values[False]
    low, high = min(everything), max(everything)
    for kept, edge, line in ((True, "white", 0.25), (False, "#D55E00", 0.55)):
        drawn = PatchCollection(boxes[kept], cmap="viridis", edgecolor=edge, linewidth=line)
        drawn.set_array(values[kept])
        drawn.set_clim(low, high)
        drawn.set_rasterized(len(everything) > VECTOR_UNITS)
        axes.add_collection(drawn)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(0, 1)
    return drawn


def _layer_flows(cell: Cell, flow: Any, plan: Any, receipts: Any) -> list[_LayerFlow]:
    """Bring the scored layers in the order of the network and say which units are left."""
    try:
        sides, widths = plan["kept"], receipts[0]["widths"]
        order = {layer: place for place, layer in enumerate(sides)}
        named = [(_plan_name(layer, sides), layer, scores) for layer, scores in flow.items() if scores]
        named.sort(key=lambda item: order.get(item[0], len(order)))
        return [_layer_flow(layer, scores, sides.get(key, {}), widths.get(key)) for key, layer, scores in named]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ResultsError(f"malformed records of {cell}: flow, plan and receipts do not match: {error}") from None


def _layer_flow(name: str, scores: list[float], sides: dict[str, list[int]], width: int | None) -> _LayerFlow:
    left = set(sides.get("out", range(len(scores))))
    size = max(1, (width or len(scores)) // len(scores))  # channels a unit: several for an attention head
    units = {index // size for index in left} if "out" in sides else left
    ranked = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
    return _LayerFlow(name, tuple(scores[unit] for unit in ranked), tuple(unit in units for unit in ranked))


def _plan_name(layer: str, sides: dict[str, Any]) -> str:
    """Return how the plan calls a scored layer: heads by their values, ``out_proj`` by ``out``."""
    for name in (layer, f"{layer}.v", f"{layer.removesuffix('_proj')}"):
        if name in sides:
            return name
    return layer


# --- Layer widths --------------------------------------------------------------------------------


def _layer_widths(name: str, grid: Grid, root: Path) -> Picture:
    title = "Layer widths before and after pruning"
    shown = _compared(grid)
    panels = []
    seed = grid.options.seeds[0]
    for first in dict.fromkeys(cell._replace(method="", seed=seed) for cell in grid.pruned()):
        found = {method: _widths(grid, first._replace(method=method), root) for method in shown}
        known = {method: widths for method, widths in found.items() if widths}
        if known:
            panels.append((first, known))
    if not panels:
        return _not_attempted(name, title, "no record of any pruned network")
    if len(panels) > MOST_PANELS:
        return _not_attempted(name, title, _too_many(panels))
    figure = Figure(figsize=(8.4, 2.75 * len(panels) + 0.4), layout="constrained")
    rows: Any = figure.subplots(len(panels), 1, squeeze=False)
    for axes, (cell, widths) in zip(rows.flat, panels, strict=True):
        _width_bars(axes, grid, widths)
        axes.set_title(f"{cell.model}, {cell.dataset}")
    _legend(figure, rows[0, 0])
    words = " ".join(_width_words(cell, widths) for cell, widths in panels)
    alt = f"Bar charts, one a network: the output width of every layer before pruning and after it. {words}"
    methods = " and ".join(label(method) for method in shown)
    return _picture(name, f"{title}, {methods}, seed {seed}", alt, figure)


def _compared(grid: Grid) -> list[str]:
    methods = _methods(grid)
    return [name for name in ("ifap", "magnitude") if name in methods] or methods[:2]


def _width_bars(axes: Axes, grid: Grid, widths: dict[str, dict[str, tuple[int, int]]]) -> None:
    layers = list(next(iter(widths.values())))
    places = range(len(layers))
    before = [next(iter(widths.values()))[layer][0] for layer in layers]
    axes.bar(places, before, width=0.92, color="#dcdcdc", label="before")
    for index, (method, of_layer) in enumerate(widths.items()):
        shift = (index - (len(widths) - 1) / 2) * 0.4
        after = [of_layer[layer][1] if layer in of_layer else 0 for layer in layers]
        colour = COLOURS[_methods(grid).index(method) % len(COLOURS)]
        axes.bar([place + shift for place in places], after, width=0.36, color=colour, label=f"after, {label(method)}")
    size = 7.5 if len(layers) <= 45 else 5
    axes.set_xticks(places, [_short(layer) for layer in layers], rotation=90, fontsize=size)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylabel("Output units")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)


def _widths(grid: Grid, cell: Cell, root: Path) -> dict[str, tuple[int, int]]:
    """Return the width of every layer before pruning and in the network that was kept."""
    file = root / paths.receipts_json(grid.scale, cell)
    receipts = _record(file)
    if receipts is None:
        return {}
    try:
        last = [receipt for receipt in receipts if receipt["accepted"] is not False][-1]["widths"]
        return {layer: (int(width), int(last[layer])) for layer, width in receipts[0]["widths"].items()}
    except (KeyError, IndexError, TypeError) as error:
        raise ResultsError(f"malformed {file}: no widths of the layers: {error}") from None


def _width_words(cell: Cell, widths: dict[str, dict[str, tuple[int, int]]]) -> str:
    left = (
        f"{100 * sum(after for _, after in layers.values()) / sum(before for before, _ in layers.values()):.0f} % "
        f"({label(method)})"
        for method, layers in widths.items()
    )
    return f"{cell.model}: {' and '.join(left)} of the units are left."


# --- Overview of the experiments -----------------------------------------------------------------


def _experiments(name: str, grid: Grid, runs: pd.DataFrame) -> Picture:
    networks = list(dict.fromkeys((cell.task, cell.dataset, cell.model) for cell in grid.pruned()))
    methods = _methods(grid)
    wanted = {cell[:4] for cell in grid.pruned()}
    figure = Figure(figsize=(1.25 * len(methods) + 2.4, 0.62 * len(networks) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    # Distances have no points and no end: the colours are those of the scores.
    known = runs.loc[~runs["metric"].map(_less_is_better).astype(bool), "metric_delta"].dropna().abs()
    reach = max(1.0, float(known.max()) if len(known) else 1.0)
    words = []
    for row, network in enumerate(networks):
        for column, method in enumerate(methods):
            frame = _of(runs, network)
            frame = frame[frame["method"] == method].dropna(subset=["metric_delta", "macs_reduction"])
            if (*network, method) in wanted:
                words.append(_experiment(axes, column, row, frame, reach, method, network[2]))
    axes.set_xticks(range(len(methods)), [label(method) for method in methods])
    axes.set_yticks(range(len(networks)), [f"{model}\n{dataset}" for _, dataset, model in networks])
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.set_ylim(len(networks) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(-reach, reach), "PuOr")
    bar = figure.colorbar(scale, ax=axes, pad=0.02, orientation="horizontal", shrink=0.8, aspect=40)
    bar.set_label("Change of the score on the test split (points)")
    alt = f"Grid of {len(words)} experiments, networks as rows and methods as columns. {' '.join(words)}"
    return _picture(name, "All experiments: change of the MACs and of the accuracy, mean over the seeds", alt, figure)


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


# --- What generators make ------------------------------------------------------------------------


def _samples(name: str, grid: Grid, runs: pd.DataFrame, root: Path) -> Picture:
    """Show, a row a generator, what it makes before and after pruning, from the same noise."""
    title = "Images made by the generators, unpruned and pruned, from the same noise"
    seed = grid.options.seeds[0]
    methods = ["baseline", *_methods(grid)]
    rows = []
    for first in dict.fromkeys(cell.baseline for cell in grid.pruned() if cell.task == "generation"):
        cells = [first._replace(method=method, seed=seed) for method in methods]
        sheets = {cell: _sheet(root / paths.samples_file(grid.scale, cell)) for cell in cells}
        known = {cell: sheet for cell, sheet in sheets.items() if sheet is not None}
        if known:
            rows.append(known)
    if not rows:
        return _not_attempted(name, title, "no generator has a record of images")
    if len(rows) > MOST_PANELS:
        return _not_attempted(name, title, _too_many(rows))
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(4.4 * columns, 2.2 * len(rows)), layout="constrained")
    grid_axes: Any = figure.subplots(len(rows), columns, squeeze=False)
    words = []
    for axes_of_row, row in zip(grid_axes, rows, strict=True):
        for axes in axes_of_row:
            axes.set_axis_off()
        for axes, (cell, sheet) in zip(axes_of_row, row.items(), strict=False):
            axes.imshow(sheet, interpolation="nearest")
            words.append(_sample_words(runs, cell))
            axes.set_title(words[-1], fontsize=9)
    measured = runs.loc[runs["task"] == "generation", "metric"].dropna()
    distance = f"; distance from real ones: {METRICS[measured.iloc[0]].title}" if len(measured) else ""
    alt = f"Grids of small images that generators made. {'; '.join(words)}."
    return _picture(name, f"{title}, seed {seed}{distance}", alt, figure)


def _sheet(file: Path) -> NDArray[np.uint8] | None:
    """Read the picture of a cell's images; None where there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read_bounded(file, MOST_BYTES))) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ResultsError(f"malformed {file}: {error}") from None


def _sample_words(runs: pd.DataFrame, cell: Cell) -> str:
    """Name a generator and say how far its images are from real ones."""
    named = f"{cell.model}, {cell.dataset}, {'unpruned' if cell.is_baseline else label(cell.method)}"
    own = _of(runs, (cell.task, cell.dataset, cell.model))
    own = own[(own["method"] == cell.method) & (own["seed"] == cell.seed)]
    if own.empty:
        return named
    return f"{named}: distance {fixed(float(own['test_metric'].iloc[0]), 2)}"


def _less_is_better(metric: object) -> bool:
    return isinstance(metric, str) and METRICS[metric].less_is_better


# --- Shared --------------------------------------------------------------------------------------


def _record(file: Path) -> Any:
    """Read one JSON record of a cell; None where there is none."""
    try:
        return json.loads(read_bounded(file, MOST_BYTES).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"malformed {file}: {error}") from None


def _plan_json(scale: str, cell: Cell) -> Path:
    return paths.cell_dir(scale, cell) / "plan.json"


def _short(layer: str) -> str:
    """Shorten the long parts of a layer's name, so that it stands below a column."""
    for long, short in (("encoder.layers.encoder_layer_", "enc."), ("self_attention", "attn"), ("features.", "f.")):
        layer = layer.replace(long, short)
    return layer if len(layer) <= 18 else "\N{HORIZONTAL ELLIPSIS}" + layer[-17:]


def _of(frame: pd.DataFrame, panel: tuple[str, str, str]) -> pd.DataFrame:
    task, dataset, model = panel
    return frame[(frame["task"] == task) & (frame["dataset"] == dataset) & (frame["model"] == model)]


def _accepted(trace: pd.DataFrame) -> pd.DataFrame:
    return trace[trace["accepted"].astype(str).str.lower() != "false"]


def _ordered(grid: Grid, frame: pd.DataFrame) -> list[str]:
    """Return the methods that have rows, in the order of the grid."""
    present = set(frame["method"])  # further targets among them, which these figures leave out
    return [name for name in _methods(grid) if name in present]


def _methods(grid: Grid) -> list[str]:
    """Return the methods, each once: of those that differ in their target only, the first."""
    first: dict[str, str] = {}
    for method, line in _drawn(grid).items():
        first.setdefault(line, method)
    return list(first.values())


def _drawn(grid: Grid) -> dict[str, str]:
    """Return the methods that figures show, each with its curve: beside curves nothing that is one point only."""
    points = grid.options.points
    if not any(points.values()):
        return grid.lines()
    return {method: line for method, line in grid.lines().items() if points.get(line)}


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


def _too_many(panels: Sequence[Any]) -> str:
    return f"{len(panels)} networks are too many for one figure: see the tables"


def _not_attempted(name: str, title: str, reason: str) -> Picture:
    """Say in the figure's place why there is none."""
    figure = Figure(figsize=(5.2, 3.7))
    figure.text(0.5, 0.5, f"not attempted:\n{reason}", ha="center", va="center", color="#555555", wrap=True)
    return _picture(name, title, f"Not attempted: {reason}.", figure)


def _label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=3, color="#555555")


def _legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    handles, labels = axes.get_legend_handles_labels()
    ncols = max(1, min(columns, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, handlelength=2.4, columnspacing=1.2)


def _picture(name: str, title: str, alt: str, figure: Figure) -> Picture:
    """Save the figure in every format, without a date or a version in it."""
    width, height = (round(96 * float(side)) for side in figure.get_size_inches())
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "ifap"})
    figure.savefig(png, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": "ifap"})
    return Picture(name, title, alt, {"svg": svg.getvalue(), "png": png.getvalue()}, width, height)
