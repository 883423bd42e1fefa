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
from ifap.study.report.figures.drawing import MOST_PANELS, Picture, not_attempted, read_picture, save_picture, too_many
from ifap.study.report.figures.selection import of_network, recorded_cells, shown_methods
from ifap.study.report.tables.numbers import fixed
from ifap.study.report.tables.wording import label

Sheet = NDArray[np.uint8]


def draw_samples(name: str, grid: Grid, runs: pd.DataFrame, root: Path) -> Picture:
    """Show, a row a generator, what it makes before and after pruning, from the same noise."""
    title = "Images made by the generators, unpruned and pruned, from the same noise"
    measured = runs.loc[runs["task"] == "generation", "metric"].dropna()
    distance = f"; distance from real ones: {METRICS[measured.iloc[0]].title}" if len(measured) else ""
    whole_title = f"{title}, seed {grid.options.seeds[0]}{distance}"
    cells = _cells(grid, recorded_cells(runs))
    if kept := _kept(name, grid.scale, [cell for row in cells for cell in row], root):
        words = [_words(runs, cell) for row in cells for cell in row]
        return read_picture(name, whole_title, _alt(words), kept)
    rows = _sheets(grid.scale, cells, root)
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
    return save_picture(name, whole_title, _alt(words), figure)


def _alt(words: list[str]) -> str:
    return f"Grids of small images that generators made. {'; '.join(words)}."


def _cells(grid: Grid, recorded: Collection[Cell]) -> list[list[Cell]]:
    """Return the recorded cells of each generator."""
    methods = ["baseline", *shown_methods(grid)]
    firsts = dict.fromkeys(cell.baseline for cell in grid.pruned() if cell.task == "generation")
    rows = ([first._replace(method=method, seed=grid.options.seeds[0]) for method in methods] for first in firsts)
    return [[cell for cell in row if cell in recorded] for row in rows]


def _kept(name: str, scale: str, cells: list[Cell], root: Path) -> dict[str, Path]:
    """Return the files of the figure as it was drawn, if the cells were recorded elsewhere and none of them is here."""
    files = {extension: root / paths.figure_file(scale, name, extension) for extension in ("svg", "png")}
    is_away = bool(cells) and not any((root / paths.cell_dir(scale, cell)).is_dir() for cell in cells)
    return files if is_away and all(file.is_file() for file in files.values()) else {}


def _sheets(scale: str, cells: list[list[Cell]], root: Path) -> list[dict[Cell, Sheet]]:
    """Return for each generator the pictures that its cells recorded; those without any are left out."""
    rows = ({cell: sheet for cell in row if (sheet := _sheet(scale, cell, root)) is not None} for row in cells)
    return [row for row in rows if row]


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
