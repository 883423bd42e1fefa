"""What the generators make, before and after pruning."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ifap.errors import ResultsError
from ifap.files import read_bounded
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS
from ifap.study.paths import Cell
from ifap.study.report.csv_files import MOST_BYTES
from ifap.study.report.figures.drawing import MOST_PANELS, Picture, not_attempted, save_picture, too_many
from ifap.study.report.figures.selection import of_network, recorded_cells, shown_methods
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.wording import label

Sheet = NDArray[np.uint8]


def draw_samples(name: str, grid: Grid, runs: pd.DataFrame, root: Path) -> Picture:
    """Show, a row a generator, what it makes before and after pruning, from the same noise."""
    title = "Images made by the generators, unpruned and pruned, from the same noise"
    rows = _sheets(grid, recorded_cells(runs), root)
    if not rows:
        return not_attempted(name, title, "no generator has a record of images")
    if len(rows) > MOST_PANELS:
        return not_attempted(name, title, too_many(rows))
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(4.4 * columns, 2.2 * len(rows)), layout="constrained")
    grid_axes: Any = figure.subplots(len(rows), columns, squeeze=False)
    words = []
    for axes_of_row, row in zip(grid_axes, rows, strict=True):
        for axes in axes_of_row:
            axes.set_axis_off()
        for axes, (cell, sheet) in zip(axes_of_row, row.items(), strict=False):
            axes.imshow(sheet, interpolation="nearest")
            words.append(_words(runs, cell))
            axes.set_title(words[-1], fontsize=9)
    measured = runs.loc[runs["task"] == "generation", "metric"].dropna()
    distance = f"; distance from real ones: {METRICS[measured.iloc[0]].title}" if len(measured) else ""
    alt = f"Grids of small images that generators made. {'; '.join(words)}."
    return save_picture(name, f"{title}, seed {grid.options.seeds[0]}{distance}", alt, figure)


def _sheets(grid: Grid, recorded: Collection[Cell], root: Path) -> list[dict[Cell, Sheet]]:
    """Return for each generator the pictures that its cells recorded; those without any are left out."""
    methods = ["baseline", *shown_methods(grid)]
    rows = []
    for first in dict.fromkeys(cell.baseline for cell in grid.pruned() if cell.task == "generation"):
        cells = [first._replace(method=method, seed=grid.options.seeds[0]) for method in methods]
        sheets = {cell: _sheet(grid.scale, cell, root) for cell in cells if cell in recorded}
        known = {cell: sheet for cell, sheet in sheets.items() if sheet is not None}
        if known:
            rows.append(known)
    return rows


def _sheet(scale: str, cell: Cell, root: Path) -> Sheet | None:
    """Read the picture of a recorded cell's images; None where its generator makes nothing that can be shown."""
    from PIL import Image, UnidentifiedImageError

    file = root / paths.samples_file(scale, cell)
    if not file.parent.is_dir():
        how = f"run make pull SCALE={scale}, or make reproduce SCALE={scale}"
        raise ResultsError(f"{paths.cell_dir(scale, cell)} is not here, with the images that the figure shows: {how}")

    try:
        with Image.open(io.BytesIO(read_bounded(file, MOST_BYTES))) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ResultsError(f"malformed {file}: {error}") from None


def _words(runs: pd.DataFrame, cell: Cell) -> str:
    """Name a generator and say how far its images are from real ones."""
    named = f"{cell.model}, {cell.dataset}, {'unpruned' if cell.is_baseline else label(cell.method)}"
    own = of_network(runs, (cell.task, cell.dataset, cell.model))
    own = own[(own["method"] == cell.method) & (own["seed"] == cell.seed)]
    if own.empty:
        return named
    return f"{named}: distance {fixed(float(own['test_metric'].iloc[0]), 2)}"
