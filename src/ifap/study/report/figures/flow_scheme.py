"""The flow of every unit of a network before pruning, and which of them were cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.figures.drawing import Picture, not_attempted, save_picture, short_layer
from ifap.study.report.figures.layers import LayerFlow, flow_cell, load_widths, recorded_flows
from ifap.study.report.tables.wording import label

VECTOR_UNITS = 4000  # more units than this are drawn as an image inside the SVG


def draw_flow_scheme(name: str, grid: Grid, root: Path) -> Picture:
    """Draw the scored layers of the network of Table IV, their units as cells."""
    cell = flow_cell(grid)
    title = f"Flow evaluation scheme: {cell.model} on {cell.dataset}, {label(cell.method)}"
    layers = recorded_flows(load_widths(grid.scale, root=root), cell)
    if not layers:
        return not_attempted(name, title, f"no flow scores of {cell}")
    figure = Figure(figsize=(max(5.6, 0.42 * len(layers) + 1.6), 4.6), layout="constrained")
    axes = figure.add_subplot()
    drawn = _units(axes, layers)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, shrink=0.8)
    bar.set_label(_flow_label(grid, cell))
    bar.outline.set_visible(False)
    axes.set_xticks(range(len(layers)), [short_layer(layer.name) for layer in layers], rotation=90, fontsize=7.5)
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
    return save_picture(name, f"{title}; colour: flow of a unit before pruning", alt, figure)


def _flow_label(grid: Grid, cell: Cell) -> str:
    shown = {"layer": "Flow (its layer's mean is 1)", "volume": "Flow (per volume)"}
    return shown.get(grid.pruning(cell).normalize, "Flow")


def _units(axes: Axes, layers: Sequence[LayerFlow]) -> PatchCollection:
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
