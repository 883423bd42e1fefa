"""Tables I-V: from the CSV files of one scale to a model of the table, to text in four formats.

The model holds plain text and links; each format's templates add its own marks, and its escaper is
applied to every value, so that no name or note can break a rendering.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from ifap.errors import ConfigError, ResultsError, nearest
from ifap.study import paths
from ifap.study.config import ModelOptions, TableParams, TextOptions
from ifap.study.grid import Grid
from ifap.study.paper.vocabulary import METRICS, best
from ifap.study.paths import Cell
from ifap.study.report.records import NO_RECORD

if TYPE_CHECKING:
    from ifap.study.report.judge import Judged

MINUS, PLUS_MINUS, NO_VALUE = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}", "\N{EN DASH}"
PREFIXES = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
METHOD_LABELS = {
    "bn_scale": "BN scale",
    "granet": "GraNet",
    "ifap": "IFAP",
    "ifap_centered": "IFAP (centred)",
    "ifap_cost": "IFAP (per MAC)",
    "ifap_readers": "IFAP (readers)",
    "ifap_rms": "IFAP (RMS)",
    "lth": "LTH",
    "mvp": "MvP",
    "pdp": "PDP",
    "pdp_channel": "PDP (channels)",
    "rfp": "RFP",
    "rigl": "RigL",
    "small_dense": "small dense",
    "taylor": "Taylor",
}
DATASET_NOTES = {
    "agreement": "agreement holds sentences of a small grammar that are always generated: do subject and verb agree?",
    "digits": "digits holds real scans of handwritten digits, 8\N{MULTIPLICATION SIGN}8 pixels each",
}
SYNTHETIC_NOTE = (
    "data sets marked synthetic are generated in the on-disk format of the real ones, with fewer classes and samples: "
    "accuracies on them say nothing about the real data"
)
VERDICT = "not comparable (scale)"

Align = Literal["left", "right"]


@dataclass(frozen=True)
class Item:
    """One printed value.

    Parameters
    ----------
    text : str
        What is printed, without any markup.
    href : str or None
        Where the value comes from, relative to the report's folder.
    bold : bool
        Whether it is the best of its group.
    rows, columns : int
        How many rows and columns it spans; an item with ``rows=0`` is covered by the one above.
    mark : str
        Mark of its footnote.
    measured, origin : str, str or None
        What was measured for a published value, printed beside it, and where that comes from.
    why : str
        Mark of the footnote that says why nothing was measured, or how.
    """

    text: str
    href: str | None = None
    bold: bool = False
    rows: int = 1
    columns: int = 1
    mark: str = ""
    measured: str = ""
    origin: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Column:
    """One column: its heading, the heading above it, and the mark of its footnote."""

    label: str
    group: str = ""
    mark: str = ""
    align: Align = "right"

    @property
    def full_label(self) -> str:
        """Both headings in one, for formats that have a single row of them."""
        return f"{self.group}: {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Note:
    """A footnote; `mark` is empty where it belongs to the whole table."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One row; `starts_group` asks for a line above it."""

    items: tuple[Item, ...]
    starts_group: bool = False


@dataclass(frozen=True)
class Table:
    """A table, ready to be rendered in any format."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    published: Table | None = None
    """The same table of the paper, shown below what was measured."""
    detail: Table | None = None
    """Further columns of the same rows, too many for one table."""

    @property
    def parts(self) -> tuple[Table, ...]:
        """The table itself, its further columns and the published one below it."""
        return tuple(part for part in (self, self.detail, self.published) if part is not None)

    @property
    def number_and_heading(self) -> tuple[str, str]:
        """The title in two parts, such as ``("II", "Pruning results")``; the number may be empty."""
        match = re.fullmatch(r"Table ([IVX]+)\. (.+)", self.title)
        return (match[1], match[2]) if match else ("", self.title)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper headings and how many columns each spans; empty headings stay single."""
        groups: list[tuple[str, int]] = []
        for column in self.columns:
            if groups and column.group and groups[-1][0] == column.group:
                groups[-1] = (column.group, groups[-1][1] + 1)
            else:
                groups.append((column.group, 1))
        return groups

    @property
    def links(self) -> list[str]:
        """Every target of a link, once, in reading order."""
        items = [item for part in self.parts for row in part.rows for item in row.items]
        return list(dict.fromkeys(href for item in items for href in (item.href, item.origin) if href))

    @property
    def group_rules(self) -> list[tuple[int, int]]:
        """First and last column, counted from 1, under each upper heading."""
        rules, first = [], 1
        for text, span in self.groups:
            if text:
                rules.append((first, first + span - 1))
            first += span
        return rules

    @property
    def header_columns(self) -> int:
        """How many columns at the left name the row."""
        return sum(1 for _ in takewhile(lambda column: column.align == "left", self.columns))


def build_table(
    name: str,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    claims: Sequence[Judged] | None = None,
    missing: Mapping[Cell, str] | None = None,
) -> Table:
    """Build one table of ``params.yaml``.

    Parameters
    ----------
    name : str
        Its key in ``params.yaml``, for example ``"table-2"``.
    grid : Grid
        The cells that the table should show; those without a row in `runs` are shown as not attempted.
    runs, trace : DataFrame
        Content of ``runs.csv`` and ``trace.csv``.
    claims : sequence of Judged, optional
        Content of ``claims.csv``; read from the scale's folder by default.
    missing : mapping of Cell to str, optional
        Content of ``missing.csv``: why a cell has no row.

    Returns
    -------
    Table
        The model of the table: what was measured, above the published table where both exist.
    """
    from ifap.study.report.judge import load_judged
    from ifap.study.report.tables.language import has_language_cells
    from ifap.study.report.tables.printed import published_table
    from ifap.study.report.tables.vision import has_dense_cells

    options = table_options(name, grid)
    claims = load_judged(grid.scale) if claims is None else claims
    number = int(name.removeprefix("table-"))
    has_cells = {"table-3": has_dense_cells, "table-5": has_language_cells}
    if name not in BUILDERS or (name in has_cells and not has_cells[name](grid)):
        return published_table(number, name, options.title, claims, grid.scale)
    own = BUILDERS[name](name, options, grid, runs, trace, missing or {})
    title = f"{options.title.partition('.')[0]} as published, with verdicts"
    return replace(own, published=published_table(number, f"{name}-published", title, claims, grid.scale))


def table_options(name: str, grid: Grid) -> TableParams:
    """Return the block of one table, after checking that it exists and can be built."""
    known = list(grid.params.tables)
    if name not in known:
        raise ConfigError(f"unknown table '{name}': {nearest(name, known)}")
    options = grid.table(name)
    if name == "table-2" and options.task is None:
        raise ConfigError(f"params.yaml: tables.{name}: key is missing: task")
    return options


def table_names(grid: Grid) -> list[str]:
    """Return the tables of ``params.yaml``, in order."""
    return sorted(grid.params.tables)


def render(table: Table, extension: str, templates: Path | None = None) -> str:
    """Render a table as text.

    Parameters
    ----------
    table : Table
        The model.
    extension : {'md', 'html', 'tex', 'csv'}
        The format; CSV has one row a value and needs no template.
    templates : Path, optional
        Folder of the templates; the project's by default.

    Returns
    -------
    str
        The text of the file.
    """
    if extension == "csv":
        return _csv(table)
    template = f"table.{extension}.j2"
    try:
        return environment(extension, templates).get_template(template).render(table=table)
    except TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else _template_line(error)
        where = (templates or paths.templates_dir()) / template
        raise ConfigError(f"{where}{line}: {str(error.message).splitlines()[0]} ({table.name})") from None


def _template_line(error: TemplateError) -> str:
    """Say in which template and line a rendering failed: the last frame that a template has."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("part", "row", "column", "value", "bold", "measured", "marks", "origin"))
    for part in table.parts:
        names: dict[int, str] = {}
        section = ""
        for row in part.rows:
            if len(row.items) == 1:
                section = row.items[0].text
                continue
            writer.writerows(_csv_row(part, row, names, section))
    for part in table.parts:
        writer.writerows((part.name, "note", note.mark, note.text, "", "", "", "") for note in part.notes)
    return buffer.getvalue()


def _csv_row(part: Table, row: Row, names: dict[int, str], section: str) -> Iterator[tuple[str, ...]]:
    """Yield one line a value; its row is named by the left-aligned cells before it."""
    at = 0
    for item in row.items:
        column = part.columns[at]
        if column.align == "left":
            names[at] = item.text or names.get(at, "")
        else:
            named = [names[key] for key in sorted(names) if _start(part, at) <= key < at]
            label = " / ".join([*([section] if section else []), *named])
            value, measured = (text.replace(MINUS, "-") for text in (item.text, item.measured))
            marks = " ".join(filter(None, (item.mark, item.why)))
            origin = item.origin or item.href or ""
            bold = "best" if item.bold else ""
            yield (part.name, label, column.full_label, value, bold, measured, marks, origin)
        at += item.columns


def _start(part: Table, at: int) -> int:
    """Return the first of the columns that name the row of a value: those left of it up to another value."""
    while at and part.columns[at].align == "right":
        at -= 1
    while at and part.columns[at - 1].align == "left":
        at -= 1
    return at


def environment(extension: str, templates: Path | None = None) -> Environment:
    """Return a Jinja environment that escapes every value for one format and accepts no undefined name.

    A template reaches the values that it is given and no attribute by which Python code could be run.
    """
    escaper = ESCAPERS[extension]
    delimiters = TEX_DELIMITERS if extension == "tex" else {}

    def finalize(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(escaper(str(value)))

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(templates or paths.templates_dir()),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **delimiters,
    )
    environment.filters["tex_url"] = lambda url: Markup(re.sub(r"([%#&])", r"\\\1", _url(url)))
    environment.filters["md_url"] = lambda url: Markup(_url(url))
    return environment


def _url(text: object) -> str:
    """Return the way to a file with every sign that means something to Markdown or LaTeX as its code."""
    return quote(str(text), safe="/#?&=.,:;@+-_~")


def escape_tex(text: str) -> str:
    """Escape text for LaTeX, signs that need mathematics mode included; a line stays one line."""
    return "".join(TEX_CHARACTERS.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Return text without line ends and other control characters, which could end a row."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)


def escape_md(text: str) -> str:
    """Escape text for GitHub-flavoured Markdown, inside or outside a table."""
    return re.sub(
        r"([\\`*_\[\]|~#])", r"\\\1", one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


TEX_DELIMITERS: dict[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
TEX_CHARACTERS = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    MINUS: "$-$",
    PLUS_MINUS: r"$\pm$",
    NO_VALUE: "--",
    "\N{DAGGER}": r"\dag{}",
    "\N{DOUBLE DAGGER}": r"\ddag{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{NO-BREAK SPACE}": "~",
}
ESCAPERS: dict[str, Callable[[str], str]] = {
    "md": escape_md,
    "html": lambda text: str(escape(text)),
    "tex": escape_tex,
}


# --- Numbers as text ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A unit for all counts of one table: a prefix and the decimals that go with it."""

    prefix: str
    decimals: int

    def text(self, count: float) -> str:
        """Print a count in this unit."""
        return fixed(count / PREFIXES[self.prefix], self.decimals)


def choose_unit(counts: Iterable[float]) -> Unit:
    """Choose the largest unit in which every count shows at least three significant digits.

    At most three decimals are used, so the smallest count is at least 0.1 in the unit.
    """
    smallest = min((count for count in counts if count > 0), default=1.0)
    prefix = next((prefix for prefix, size in PREFIXES.items() if smallest >= 0.1 * size), "")
    if not prefix:
        return Unit("", 0)
    return Unit(prefix, min(3, max(0, 2 - math.floor(math.log10(smallest / PREFIXES[prefix])))))


def fixed(value: float, decimals: int) -> str:
    """Print a number with fixed decimals and a true minus sign; a rounded zero has no sign."""
    if math.isnan(value):
        return NO_VALUE
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def spread(values: pd.Series[float], show: Callable[[float], str]) -> str:
    """Print the mean of one value a seed, and their standard deviation where there are several."""
    mean = show(float(values.mean()))
    return f"{mean} {PLUS_MINUS} {show(float(values.std(ddof=1)))}" if len(values) > 1 else mean


def label(method: str) -> str:
    """Return how a method is called in print."""
    return METHOD_LABELS.get(method, method)


def link(path: str, scale: str) -> str:
    """Return the way from the report's folder to a file of the project; nothing else is linked or read."""
    inside = os.path.normpath(path)
    if os.path.isabs(inside) or inside.startswith("..") or ":" in inside or "\0" in inside:
        raise ResultsError(f"'{path[:60]}' is not a file of the project")
    return os.path.relpath(path, paths.report_dir(scale)).replace(os.sep, "/")


# --- Table I -------------------------------------------------------------------------------------


def _table_1(
    name: str,
    options: TableParams,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    missing: Mapping[Cell, str],
) -> Table:
    from ifap.study.report.comparison import table_1

    return table_1(name, options, grid, runs, missing)


# --- Table III -----------------------------------------------------------------------------------


def _table_3(
    name: str,
    options: TableParams,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    missing: Mapping[Cell, str],
) -> Table:
    from ifap.study.report.tables.vision import table_3

    return table_3(name, options, grid, runs, missing)


# --- Table V -------------------------------------------------------------------------------------


def _table_5(
    name: str,
    options: TableParams,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    missing: Mapping[Cell, str],
) -> Table:
    from ifap.study.report.tables.language import table_5

    return table_5(name, options, grid, runs, missing)


# --- Table II ------------------------------------------------------------------------------------


def _table_2(
    name: str,
    options: TableParams,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    missing: Mapping[Cell, str],
) -> Table:
    runs = runs[runs["task"] == options.task]
    if options.dataset:
        runs = runs[runs["dataset"] == options.dataset]
    cells = [cell for cell in grid.pruned() if cell.task == options.task and options.dataset in (None, cell.dataset)]
    macs, params = units(runs)
    rows = network_rows(cells, runs, macs, params, missing, grid)
    columns = network_columns(macs, params, "Top-1, test (%)")
    return Table(name, options.title, columns, tuple(rows), _table_2_notes(grid, cells, runs))


def units(runs: pd.DataFrame) -> tuple[Unit, Unit]:
    """Return the units of MACs and of parameters that fit all networks of a table, pruned or not."""
    macs = choose_unit([*runs["macs"], *runs["macs_base"].dropna()])
    return macs, choose_unit([*runs["params"], *runs["params_base"].dropna()])


def network_rows(
    cells: Sequence[Cell],
    runs: pd.DataFrame,
    macs: Unit,
    params: Unit,
    missing: Mapping[Cell, str],
    grid: Grid,
) -> list[Row]:
    """Lay out the cells of one task: data sets, their networks, and the methods of each."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        methods = blocks.setdefault((cell.dataset, cell.model), [])
        if cell.method not in methods:
            methods.append(cell.method)
    rows: list[Row] = []
    for (dataset, model), methods in blocks.items():
        wanted = [cell for cell in cells if (cell.dataset, cell.model) == (dataset, model)]
        new = not rows or rows[-1].items[0].text != dataset_label(dataset, grid)
        height = sum(len(names) for (other, _), names in blocks.items() if other == dataset)
        rows += _block(wanted, methods, runs, macs, params, missing, grid=grid, dataset_rows=height if new else 0)
    return rows


def network_columns(macs: Unit, params: Unit, score: str) -> tuple[Column, ...]:
    """Return the columns of `network_rows`; those of scores are headed `score`."""
    change = "\N{GREEK CAPITAL LETTER DELTA} %"
    counts = f"{macs.prefix}MACs"
    weights = f"Params ({params.prefix})" if params.prefix else "Params"
    return (
        Column("Data set", align="left"),
        Column("Architecture", align="left"),
        Column("Method", align="left"),
        *(Column(text, counts, "a") for text in ("Base", "Pruned", change)),
        *(Column(text, weights) for text in ("Base", "Pruned", change)),
        Column("Base", score, "b"),
        Column("Pruned", score, "b"),
        Column("\N{GREEK CAPITAL LETTER DELTA} points", score, "c"),
        Column("Seeds", mark="d"),
    )


def _block(
    cells: Sequence[Cell],
    methods: Sequence[str],
    runs: pd.DataFrame,
    macs: Unit,
    params: Unit,
    missing: Mapping[Cell, str],
    *,
    grid: Grid,
    dataset_rows: int,
) -> list[Row]:
    """Lay out the methods of one network on one data set, the best pruned accuracy in bold."""
    dataset, model = cells[0].dataset, cells[0].model
    here = runs[(runs["dataset"] == dataset) & (runs["model"] == model)]
    of_method = {method: here[here["method"] == method] for method in methods}
    shown = [_printed(frame) for frame in of_method.values() if len(frame)]
    top = best(str(here["metric"].iloc[0]), shown) if len(here) else math.nan
    rows = []
    for index, method in enumerate(methods):
        names = (
            Item(dataset_label(dataset, grid), rows=0 if index else dataset_rows),
            Item(model, rows=0 if index else len(methods)),
            Item(label(method)),
        )
        wanted = [cell for cell in cells if cell.method == method]
        frame = of_method[method]
        values = _method_items(frame, len(wanted), macs, params, top) if len(frame) else not_attempted(wanted, missing)
        rows.append(Row((*names, *values), starts_group=index == 0))
    return rows


def _printed(frame: pd.DataFrame) -> float:
    """Return the accuracy as printed, so that what looks like a tie is one."""
    return round(float(frame["test_metric"].mean()), 2)


def _method_items(frame: pd.DataFrame, seeds: int, macs: Unit, params: Unit, top: float) -> tuple[Item, ...]:
    scale = str(frame["scale"].iloc[0])
    own = [str(path) for path in frame["metrics"]]
    base = [re.sub(r"/[^/]+/(seed\d+/[^/]+)$", r"/baseline/\1", path) for path in own]
    own_link, base_link = origin(own, scale), origin(base, scale)

    def item(column: str, show: Callable[[float], str], href: str) -> Item:
        known = frame[column].dropna().astype(float)
        return Item(show(float(known.mean())), href) if len(known) else Item(NO_VALUE)

    def accuracy(column: str, href: str, *, bold: bool = False) -> Item:
        known = frame[column].dropna().astype(float)
        return Item(spread(known, points), href, bold) if len(known) else Item(NO_VALUE)

    def points(value: float) -> str:
        return fixed(value, 2)

    def percent(value: float) -> str:
        return fixed(value, 1)

    return (
        item("macs_base", macs.text, base_link),
        item("macs", macs.text, own_link),
        item("macs_reduction", percent, own_link),
        item("params_base", params.text, base_link),
        item("params", params.text, own_link),
        item("params_reduction", percent, own_link),
        accuracy("baseline_metric", base_link),
        accuracy("test_metric", own_link, bold=_printed(frame) == top),
        accuracy("metric_delta", own_link),
        Item(str(len(frame)) if len(frame) == seeds else f"{len(frame)} of {seeds}"),
    )


def origin(metrics: Sequence[str], scale: str) -> str:
    """Return the link to one seed's record, or to the folder of several seeds."""
    return link(metrics[0] if len(metrics) == 1 else os.path.dirname(os.path.dirname(metrics[0])) + "/", scale)


def not_attempted(cells: Sequence[Cell], missing: Mapping[Cell, str], columns: int = 10) -> tuple[Item, ...]:
    """Say across a row's value columns that nothing ran, and why."""
    seeds = ", ".join(str(cell.seed) for cell in cells)
    noun = "seed" if len(cells) == 1 else "seeds"
    reason = missing.get(cells[0], NO_RECORD)
    text = f"{reason} for {noun} {seeds}" if reason == NO_RECORD else reason
    return (Item(f"not attempted: {text}", columns=columns),)


def _table_2_notes(grid: Grid, cells: Sequence[Cell], runs: pd.DataFrame) -> tuple[Note, ...]:
    several = f": accuracies are mean {PLUS_MINUS} standard deviation, counts are means"
    sd = several if len(grid.options.seeds) > 1 else ""
    return (
        *scale_notes(grid, [cell.dataset for cell in cells], "Table II"),
        Note("Bold: the best pruned accuracy of each network on each data set; equal printed values share it."),
        Note("MACs: multiply-accumulates of one input; what the paper prints as GFlops are GMACs.", "a"),
        Note(
            f"Top-1 accuracy on the test split{_samples(runs, 'test_size')}, which is opened once, "
            "for the final network. Base is the unpruned network (method baseline), from which every method starts.",
            "b",
        ),
        Note("Pruned minus base, in percentage points; the paper mixes relative and absolute differences.", "c"),
        Note(f"Number of runs with different seeds{sd}.", "d"),
    )


def metric_heading(runs: pd.DataFrame) -> str:
    """Return how a column of scores is headed: by its metric, if it is the same for all."""
    return "Top-1, test (%)" if set(runs["metric"]) <= {"top1", "accuracy"} else "Score, test"


def metric_notes(runs: pd.DataFrame, grid: Grid) -> tuple[Note, ...]:
    """Say what is measured on each data set, if that is not top-1 accuracy everywhere."""
    found = dict(zip(runs["dataset"], runs["metric"], strict=True))
    if set(found.values()) <= {"top1"}:
        return ()
    text = "; ".join(f"{dataset_label(name, grid)}: {METRICS[metric].title}" for name, metric in found.items())
    return (Note(f"Measured: {text}."),)


def dataset_label(dataset: str, grid: Grid) -> str:
    """Return the name of a data set in print; a generated one says so."""
    return f"{dataset} (synthetic)" if grid.options.datasets[dataset].synthetic else dataset


def scale_notes(grid: Grid, datasets: Sequence[str], published: str) -> tuple[Note, ...]:
    """Say what sets the scale apart from the paper, and so what its numbers cannot be compared with."""
    known = [DATASET_NOTES[name] for name in dict.fromkeys(datasets) if name in DATASET_NOTES]
    if any(grid.options.datasets[name].synthetic for name in datasets if name != "agreement"):
        known.append(SYNTHETIC_NOTE)
    if grid.scale == "paper":
        return tuple(Note(f"{text}.") for text in known)
    options = [grid.model(cell) for cell in grid.baselines() if cell.dataset in datasets]
    sizes = sorted({own.image_size for own in options if isinstance(own, ModelOptions)})
    lengths = sorted({own.max_length for own in options if isinstance(own, TextOptions)})
    inputs = " or ".join(f"{size}\N{MULTIPLICATION SIGN}{size}" for size in sizes)
    taken = [f"{inputs} pixels"] if sizes else []
    taken += [f"up to {' or '.join(map(str, lengths))} tokens"] if lengths else []
    depths = {own.layers for own in options if isinstance(own, TextOptions) and own.layers}
    known += [f"language models have {depth} layers a stack, whatever the published depth" for depth in sorted(depths)]
    if not taken:
        return (Note(f"Scale {grid.scale} has no network for this table."),)
    reason = "; ".join([*known, f"the networks take inputs of {' and '.join(taken)}"])
    return (Note(f"Scale {grid.scale}: {reason}. Verdict against the paper's {published}: {VERDICT}."),)


def _samples(runs: pd.DataFrame, column: str) -> str:
    sizes = sorted({int(size) for size in runs[column].dropna()})
    return f" ({' or '.join(f'{size:,}' for size in sizes)} samples)" if sizes else ""


# --- Table IV ------------------------------------------------------------------------------------


def _table_4(
    name: str,
    options: TableParams,
    grid: Grid,
    runs: pd.DataFrame,
    trace: pd.DataFrame,
    missing: Mapping[Cell, str],
) -> Table:
    cell = table_cell(name, options)
    own, base = select(runs, cell), select(runs, cell.baseline)
    steps = select(trace, cell)
    macs, params = choose_unit([*steps["macs"], *own["macs"]]), choose_unit([*steps["params"], *own["params"]])
    rows = [_step_row(step, cell, grid.scale, macs, params) for step in steps.to_dict("records")]
    if rows:
        rows[0] = replace(rows[0], starts_group=True)
        rows += [
            *_test_row("unpruned network", base, macs, params, new=True),
            *_test_row("final network", own, macs, params, new=base.empty),
        ]
    else:
        rows = [Row((Item("all"), *not_attempted([cell], missing, columns=6)), starts_group=True)]
    return Table(
        name, options.title, _table_4_columns(macs, params), tuple(rows), _table_4_notes(grid, cell, own, steps)
    )


def table_cell(name: str, options: TableParams) -> Cell:
    """Return the cell that a table of one network shows."""
    values = {key: getattr(options, key) for key in Cell._fields}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise ConfigError(f"params.yaml: tables.{name}: key is missing: {missing[0]}")
    return Cell(**values)


def select(frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Return the rows of one cell."""
    chosen = frame
    for key, value in cell._asdict().items():
        chosen = chosen[chosen[key] == value]
    return chosen


def _table_4_columns(macs: Unit, params: Unit) -> tuple[Column, ...]:
    return (
        Column("Pruning step", align="left"),
        Column(f"Params ({params.prefix})" if params.prefix else "Params"),
        Column(f"{macs.prefix}MACs", mark="a"),
        Column("Before recovery", "Top-1 (%)"),
        Column("After recovery", "Top-1 (%)"),
        Column("Top-5 (%)"),
        Column("Split", mark="b"),
    )


def _step_row(step: dict[Any, Any], cell: Cell, scale: str, macs: Unit, params: Unit) -> Row:
    href = link(paths.receipts_file(scale, cell).as_posix(), scale)
    undone = " (rolled back)" if str(step["accepted"]).lower() == "false" else ""
    start = " (unpruned)" if step["iteration"] == 0 else ""
    return Row(
        (
            Item(f"{step['iteration']}{start}{undone}"),
            Item(params.text(step["params"]), href),
            Item(macs.text(step["macs"]), href),
            *(_share(step[column], href) for column in ("metric_before", "top1", "top5")),
            Item("validation"),
        )
    )


def _test_row(name: str, runs: pd.DataFrame, macs: Unit, params: Unit, *, new: bool) -> list[Row]:
    return [
        Row(
            (
                Item(name),
                Item(params.text(run["params"]), link(run["metrics"], run["scale"])),
                Item(macs.text(run["macs"]), link(run["metrics"], run["scale"])),
                Item(NO_VALUE),
                *(_share(run[column], link(run["metrics"], run["scale"])) for column in ("test_top1", "test_top5")),
                Item("test"),
            ),
            starts_group=new,
        )
        for run in runs.to_dict("records")
    ]


def _share(value: float, href: str) -> Item:
    return Item(NO_VALUE) if math.isnan(value) else Item(fixed(value, 2), href)


def _table_4_notes(grid: Grid, cell: Cell, own: pd.DataFrame, steps: pd.DataFrame) -> tuple[Note, ...]:
    last = int(steps["iteration"].max()) if len(steps) else 0
    return (
        Note(
            f"{label(cell.method)} applied to {cell.model} on {cell.dataset}, seed {cell.seed}, over {last} pruning "
            "iterations; iteration 0 is the network before pruning."
        ),
        *scale_notes(grid, [cell.dataset], "Table IV"),
        Note("MACs: multiply-accumulates of one input; what the paper prints as GFlops are GMACs.", "a"),
        Note(
            f"The iterations are measured on the validation split{_samples(own, 'validation_size')}. The test split"
            f"{_samples(own, 'test_size')} is opened once, for the final network: pruned, then fine-tuned.",
            "b",
        ),
    )


Builder = Callable[[str, TableParams, Grid, pd.DataFrame, pd.DataFrame, Mapping[Cell, str]], Table]
BUILDERS: dict[str, Builder] = {
    "table-1": _table_1,
    "table-2": _table_2,
    "table-3": _table_3,
    "table-4": _table_4,
    "table-5": _table_5,
}
