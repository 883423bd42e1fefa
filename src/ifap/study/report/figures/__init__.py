"""The figures of one scale, as files that have the same bytes on every run.

The four dynamics plots follow one network (the one of Table IV) over its pruning iterations, the
paper's method beside the controls, and the published trace in grey as a share of its own start; their
curves are measured on the validation split. The trade-off plots show final networks on the test split,
every method at every target beside the unpruned network. The flow evaluation scheme and the layer
widths read ``widths.csv``; a figure whose records are missing says so in its place.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd

from ifap.errors import ConfigError, nearest
from ifap.study.grid import Grid
from ifap.study.report import FIGURES, LOSSES, SAMPLES
from ifap.study.report.figures.drawing import STYLE, Picture, use_shipped_fonts
from ifap.study.report.figures.dynamics import QUANTITIES, draw_accuracy_over_macs, draw_dynamics
from ifap.study.report.figures.experiments import draw_experiments
from ifap.study.report.figures.flow_scheme import draw_flow_scheme
from ifap.study.report.figures.layer_widths import draw_layer_widths
from ifap.study.report.figures.losses import draw_losses
from ifap.study.report.figures.samples import draw_samples
from ifap.study.report.figures.trade_off import draw_trade_off, has_curves

__all__ = ["Picture", "draw"]


def draw(name: str, grid: Grid, runs: pd.DataFrame, trace: pd.DataFrame, *, root: Path = Path()) -> Picture:
    """Draw one figure, of `ifap.study.report.figure_names`, as SVG and PNG.

    `runs` and `trace` are the content of ``records.csv`` and ``trace.csv``. The published numbers, the widths and the
    images of generators are read below `root`.
    """
    if name not in (*FIGURES, SAMPLES, LOSSES):
        raise ConfigError(f"unknown figure '{name}': {nearest(name, (*FIGURES, SAMPLES, LOSSES))}")
    use_shipped_fonts()
    with mpl.rc_context(STYLE):
        if name == LOSSES:
            return draw_losses(name, grid, runs, root)
        if name in QUANTITIES:
            return draw_dynamics(name, grid, trace, root)
        if name == "flow_scheme":
            return draw_flow_scheme(name, grid, root)
        if name == "layer_widths":
            return draw_layer_widths(name, grid, runs, root)
        if name == "experiments":
            return draw_experiments(name, grid, runs)
        if name == SAMPLES:
            return draw_samples(name, grid, runs, root)
        if name == "accuracy_params" or has_curves(grid, runs):
            return draw_trade_off(name, grid, runs)
        return draw_accuracy_over_macs(name, grid, runs, trace)
