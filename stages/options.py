"""The options that stages share; needs no torch, so that tables and figures start fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.study.config.reading import load_params, select_scale
from ifap.study.grid import Grid

ScaleOption = Annotated[str | None, typer.Option(help="Scale; the one in the parameter file by default.")]
TaskOption = Annotated[str, typer.Option(help="Task of the cell.")]
DatasetOption = Annotated[str, typer.Option(help="Data set of the cell.")]
ModelOption = Annotated[str, typer.Option(help="Model of the cell.")]
MethodOption = Annotated[str, typer.Option(help="Method of the cell; 'baseline' is the unpruned network.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the cell.")]
ParamsOption = Annotated[Path, typer.Option(help="Parameter file.")]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-recorded",
        help="Keep the recorded rows of cells that are not here, if params.yaml still describes them.",
    ),
]
PARAMS = Path("params.yaml")


def open_grid(params: Path, scale: str | None) -> Grid:
    """Read the parameter file and return the grid of one scale."""
    checked = load_params(params)
    return Grid(checked, select_scale(checked, scale))
