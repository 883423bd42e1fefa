"""Layers and units of the networks that figures show: taken from the work of cells, kept in ``widths.csv``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.csv_files import as_csv, load_frame
from ifap.study.report.figures.drawing import MOST_PANELS
from ifap.study.report.figures.selection import shown_methods
from ifap.study.report.json_files import read_json
from ifap.study.report.kept import Kept
from ifap.study.report.record import WIDTHS_COLUMNS
from ifap.study.report.tables.networks import select
from ifap.study.report.tables.options import table_cell, table_options


@dataclass(frozen=True)
class LayerFlow:
    """The units of one layer, the highest flow first, and which of them were kept."""

    name: str
    scores: tuple[float, ...]
    kept: tuple[bool, ...]


def compared_methods(grid: Grid) -> list[str]:
    """Return the two methods whose layers are shown beside each other."""
    methods = shown_methods(grid)
    return [name for name in ("ifap", "magnitude") if name in methods] or methods[:2]


def compared_cells(grid: Grid, recorded: Collection[Cell]) -> dict[Cell, list[Cell]]:
    """Return for each network the recorded cells whose layers are shown, those of the first seed."""
    seed = grid.options.seeds[0]
    networks = dict.fromkeys(cell._replace(method="", seed=seed) for cell in grid.pruned())
    found = {first: [first._replace(method=method) for method in compared_methods(grid)] for first in networks}
    known = {first: [cell for cell in cells if cell in recorded] for first, cells in found.items()}
    return {first: cells for first, cells in known.items() if cells}


def flow_cell(grid: Grid) -> Cell:
    """Return the cell whose units are shown one by one: that of Table IV."""
    return table_cell("table-4", table_options("table-4", grid))


def widths_table(grid: Grid, recorded: Collection[Cell], *, kept: Kept, root: Path = Path()) -> str:
    """Lay out as CSV text the layers that figures show; of more networks than one figure holds, none is kept.

    `recorded` are the cells that have a record, and `kept` the recorded rows of those among them whose work is not
    here. The work of the others is read below `root`.
    """
    networks = compared_cells(grid, recorded)
    shown = [cell for cells in networks.values() for cell in cells] if len(networks) <= MOST_PANELS else []
    rows = [row for cell in shown for row in _widths(grid, cell, kept, root)]
    return as_csv(WIDTHS_COLUMNS, [*rows, *_flows(grid, flow_cell(grid), kept, root)])


def load_widths(scale: str, *, root: Path = Path()) -> pd.DataFrame:
    """Read ``widths.csv`` of one scale."""
    return load_frame(root, paths.widths_csv(scale), WIDTHS_COLUMNS)


def _widths(grid: Grid, cell: Cell, kept: Kept, root: Path) -> Iterator[Mapping[str, Any]]:
    """Return the rows that count the units of a cell's layers: as recorded, or from its work."""
    if cell in kept.records:
        return (row for row in kept.widths.get(cell, ()) if not row["flow"])
    return _width_rows(grid, cell, root)


def _flows(grid: Grid, cell: Cell, kept: Kept, root: Path) -> Iterator[Mapping[str, Any]]:
    """Return the rows that list the flow of a cell's units: as recorded, or from its work."""
    if cell in kept.records:
        return (row for row in kept.widths.get(cell, ()) if row["flow"])
    return _flow_rows(grid, cell, root)


def _width_rows(grid: Grid, cell: Cell, root: Path) -> Iterator[dict[str, Any]]:
    """Return the width of every layer before pruning and in the network that was kept."""
    file = paths.receipts_json(grid.scale, cell)
    receipts = read_json(root / file, file)
    if receipts is None:
        return
    try:
        last = [receipt for receipt in receipts if receipt["accepted"] is not False][-1]["widths"]
        for layer, width in receipts[0]["widths"].items():
            row = {"layer": layer, "before": int(width), "after": int(last[layer])}
            yield {"scale": grid.scale, **cell._asdict(), **row}
    except (KeyError, IndexError, TypeError) as error:
        raise ResultsError(f"malformed {file}: no widths of the layers: {error}") from None


def _flow_rows(grid: Grid, cell: Cell, root: Path) -> Iterator[dict[str, Any]]:
    files = [
        paths.flow_json(grid.scale, cell),
        paths.kept_json(grid.scale, cell),
        paths.receipts_json(grid.scale, cell),
    ]
    found = [read_json(root / file, file) for file in files]
    if any(content is None for content in found):
        return
    for layer in layer_flows(cell, *found):
        flow, kept = " ".join(f"{score:g}" for score in layer.scores), "".join(str(int(unit)) for unit in layer.kept)
        yield {"scale": grid.scale, **cell._asdict(), "layer": layer.name, "flow": flow, "kept": kept}


def recorded_flows(widths: pd.DataFrame, cell: Cell) -> list[LayerFlow]:
    """Return the units of one cell's network, layer by layer; none if they were not kept."""
    listed = select(widths, cell).dropna(subset=["flow", "kept"])
    flows = [
        LayerFlow(str(layer), tuple(map(float, flow.split())), tuple(unit == "1" for unit in kept))
        for layer, flow, kept in listed[["layer", "flow", "kept"]].itertuples(index=False, name=None)
    ]
    if odd := [flow.name for flow in flows if len(flow.scores) != len(flow.kept)]:
        raise ResultsError(f"malformed widths.csv: layer {odd[0]} has other units in flow than in kept")
    return flows


def layer_flows(cell: Cell, flow: Any, plan: Any, receipts: Any) -> list[LayerFlow]:
    """Bring the scored layers in the order of the network and say which units are left."""
    try:
        sides, widths = plan["kept"], receipts[0]["widths"]
        order = {layer: place for place, layer in enumerate(sides)}
        named = [(_plan_name(layer, sides), layer, scores) for layer, scores in flow.items() if scores]
        named.sort(key=lambda item: order.get(item[0], len(order)))
        return [_layer_flow(layer, scores, sides.get(key, {}), widths.get(key)) for key, layer, scores in named]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ResultsError(f"malformed records of {cell}: flow, plan and receipts do not match: {error}") from None


def _layer_flow(name: str, scores: list[float], sides: Mapping[str, list[int]], width: int | None) -> LayerFlow:
    left = set(sides.get("out", range(len(scores))))
    size = max(1, (width or len(scores)) // len(scores))  # channels a unit: several for an attention head
    units = {index // size for index in left} if "out" in sides else left
    ranked = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
    return LayerFlow(name, tuple(scores[unit] for unit in ranked), tuple(unit in units for unit in ranked))


def _plan_name(layer: str, sides: Mapping[str, Any]) -> str:
    """Return how the plan calls a scored layer: heads by their values, ``out_proj`` by ``out``."""
    for name in (layer, f"{layer}.v", f"{layer.removesuffix('_proj')}"):
        if name in sides:
            return name
    return layer
