"""From the model of a table to text in four formats."""

from __future__ import annotations

import csv
import io
import traceback
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError

from ifap.errors import ConfigError, first_line
from ifap.study import paths
from ifap.study.report.tables.model import Row, Table
from ifap.study.templates import MINUS, environment


def render(table: Table, extension: str, templates: Path | None = None) -> str:
    """Render a table as text: as ``md``, ``html``, ``tex`` or ``csv``.

    CSV has one row a value and needs no template. `templates` is the folder of the templates, the project's by default.
    """
    if extension == "csv":
        return _csv(table)
    template = f"table.{extension}.j2"
    try:
        return environment(extension, templates).get_template(template).render(table=table)
    except TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else _template_line(error)
        where = (templates or paths.templates_dir()) / template
        raise ConfigError(f"{where}{line}: {first_line(error)} ({table.name})") from None


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
