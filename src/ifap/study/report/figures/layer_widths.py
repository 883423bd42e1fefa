"""The widths of the layers before and after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.figures.drawing import (
    COLOURS,
    Picture,
    add_legend,
    not_attempted,
    save_picture,
    short_layer,
    too_many,
)
from ifap.study.report.figures.layers import compared_cells, compared_methods, load_widths
from ifap.study.report.figures.selection import recorded_cells, shown_methods
from ifap.study.report.tables.networks import select
from ifap.study.report.tables.wording import label


def draw_layer_widths(name: str, grid: Grid, runs: pd.DataFrame, root: Path) -> Picture:
    """Draw the layers of every network for two methods, one panel a network."""
    title = "Layer widths before and after pruning"
    shown = compared_methods(grid)
    networks = compared_cells(grid, recorded_cells(runs))
    if why := too_many(list(networks)):
        return not_attempted(name, title, why)
    frame = load_widths(grid.scale, root=root)
    panels = []
    for first, cells in networks.items():
        widths = {cell.method: found for cell in cells if (found := _widths(frame, cell))}
        if widths:
            panels.append((first, widths))
    if not panels:
        return not_attempted(name, title, "no record of any pruned network")
    figure = Figure(figsize=(8.4, 2.75 * len(panels) + 0.4), layout="constrained")
    rows: Any = figure.subplots(len(panels), 1, squeeze=False)
    for axes, (cell, widths) in zip(rows.flat, panels, strict=True):
        _width_bars(axes, grid, widths)
        axes.set_title(f"{cell.model}, {cell.dataset}")
    # The first network may lack a method that others have.
    add_legend(figure, max(rows.flat, key=lambda axes: len(axes.containers)))
    words = " ".join(_width_words(cell, widths) for cell, widths in panels)
    alt = f"Bar charts, one a network: the output width of every layer before pruning and after it. {words}"
    methods = " and ".join(label(method) for method in shown)
    return save_picture(name, f"{title}, {methods}, seed {grid.options.seeds[0]}", alt, figure)


def _width_bars(axes: Axes, grid: Grid, widths: dict[str, dict[str, tuple[int, int]]]) -> None:
    layers = list(next(iter(widths.values())))
    places = range(len(layers))
    before = [next(iter(widths.values()))[layer][0] for layer in layers]
    axes.bar(places, before, width=0.92, color="#dcdcdc", label="before")
    for index, (method, of_layer) in enumerate(widths.items()):
        shift = (index - (len(widths) - 1) / 2) * 0.4
        after = [of_layer[layer][1] if layer in of_layer else 0 for layer in layers]
        colour = COLOURS[shown_methods(grid).index(method) % len(COLOURS)]
        axes.bar([place + shift for place in places], after, width=0.36, color=colour, label=f"after, {label(method)}")
    size = 7.5 if len(layers) <= 45 else 5
    axes.set_xticks(places, [short_layer(layer) for layer in layers], rotation=90, fontsize=size)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylabel("Output units")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)


def _widths(frame: pd.DataFrame, cell: Cell) -> dict[str, tuple[int, int]]:
    """Return the width of every layer before pruning and in the network that was kept."""
    rows = select(frame, cell).dropna(subset=["before", "after"])
    return {
        str(layer): (int(before), int(after))
        for layer, before, after in rows[["layer", "before", "after"]].itertuples(index=False, name=None)
    }


def _width_words(cell: Cell, widths: dict[str, dict[str, tuple[int, int]]]) -> str:
    left = (
        f"{100 * sum(after for _, after in layers.values()) / sum(before for before, _ in layers.values()):.0f} % "
        f"({label(method)})"
        for method, layers in widths.items()
    )
    return f"{cell.model}: {' and '.join(left)} of the units are left."
