"""How figures look, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ifap.study.grid import Grid
from ifap.study.report.figures.selection import shown_methods
from ifap.study.report.tables.wording import label

PIXELS_PER_INCH = 160
COLUMNS = 3  # panels side by side
MOST_PANELS = 24  # of one figure: more could not be read, and make the page too large
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


def use_shipped_fonts() -> None:
    """Let matplotlib use only the fonts that it ships: a font of the machine, of the same name, draws other bytes."""
    manager = font_manager.fontManager
    manager.ttflist = []
    for path in sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        manager.addfont(path)  # it also forgets which file was found for a name before


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


def method_style(grid: Grid, method: str) -> dict[str, Any]:
    """Return the look of one method: the paper's is bold and underneath, so that equal curves stay visible."""
    index = shown_methods(grid).index(method)
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


def too_many(panels: Sequence[Any]) -> str:
    """Return why one figure cannot show so many networks; empty if it can."""
    if len(panels) <= MOST_PANELS:
        return ""
    return f"{len(panels)} networks are too many for one figure: see the tables"


def not_attempted(name: str, title: str, reason: str) -> Picture:
    """Say in the figure's place why there is none."""
    figure = Figure(figsize=(5.2, 3.7))
    figure.text(0.5, 0.5, f"not attempted:\n{reason}", ha="center", va="center", color="#555555", wrap=True)
    return save_picture(name, title, f"Not attempted: {reason}.", figure)


def short_layer(layer: str) -> str:
    """Shorten the long parts of a layer's name, so that it stands below a column."""
    for long, short in (("encoder.layers.encoder_layer_", "enc."), ("self_attention", "attn"), ("features.", "f.")):
        layer = layer.replace(long, short)
    return layer if len(layer) <= 18 else "\N{HORIZONTAL ELLIPSIS}" + layer[-17:]


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=3, color="#555555")


def add_legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    """Place one legend below all panels, with the curves of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    ncols = max(1, min(columns, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, handlelength=2.4, columnspacing=1.2)


def read_picture(name: str, title: str, alt: str, files: dict[str, Path]) -> Picture:
    """Return a figure that was drawn before; `files` are by format."""
    from PIL import Image

    with Image.open(files["png"]) as image:
        width, height = (round(96 * side / PIXELS_PER_INCH) for side in image.size)
    return Picture(name, title, alt, {extension: file.read_bytes() for extension, file in files.items()}, width, height)


def save_picture(name: str, title: str, alt: str, figure: Figure) -> Picture:
    """Save the figure in every format, without a date or a version in it."""
    width, height = (round(96 * float(side)) for side in figure.get_size_inches())
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "ifap"})
    figure.savefig(png, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": "ifap"})
    return Picture(name, title, alt, {"svg": svg.getvalue(), "png": png.getvalue()}, width, height)
