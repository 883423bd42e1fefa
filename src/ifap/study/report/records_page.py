"""The page of all records of one scale: what a value of a table links to, readable in a browser and offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifap.study import paths
from ifap.study.paths import Cell
from ifap.study.report.configs import config_hash, flat
from ifap.study.report.csv_files import csv_lines
from ifap.study.report.provenance import Provenance
from ifap.study.report.record import CELL_COLUMNS, RECEIPT_FIELDS
from ifap.study.report.tables.networks import link
from ifap.study.report.tables.report import Report
from ifap.study.templates import environment, shown_record

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """One record as the page shows it; `iterations` are anchors and values, `steps` names and hashes of parameters."""

    name: str
    anchor: str
    values: Pairs
    steps: Pairs
    iterations: list[tuple[str, list[str]]]
    provenance: Pairs


def render_records(
    report: Report,
    configs: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[Cell, Provenance],
    *,
    root: Path = Path(),
    templates: Path | None = None,
) -> str:
    """Render ``records.html`` of one scale: one file that loads nothing.

    `configs` are the configurations behind the hashes of the records, see `ifap.study.report.configs.load_configs`.
    `provenance` is how the records came to be, as far as that is recorded. `templates` is the folder of the templates,
    the project's by default.
    """
    scale = report.grid.scale
    iterations = _iterations(report, root)
    file = paths.records_csv(scale)
    header, *lines = csv_lines(root / file, file)
    shown = []
    for line, place in zip(lines, report.runs["record"], strict=True):
        row = dict(zip(header, line, strict=True))
        cell = Cell.of(row)
        values = [(name, value) for name, value in row.items() if value and name not in CELL_COLUMNS]
        steps = [(step, config_hash(block)) for step, block in configs.get(row["config_hash"], {}).items()]
        own = _pairs(provenance[cell].model_dump(mode="json")) if cell in provenance else []
        shown.append(Shown(str(cell), _anchor(place, scale), values, steps, iterations.get(cell, []), own))
    steps_once = {config_hash(block): (step, block) for own in configs.values() for step, block in own.items()}
    return (
        environment("html", templates)
        .get_template("records.html.j2")
        .render(
            scale=scale,
            records=shown,
            columns=RECEIPT_FIELDS,
            steps=[(name, step, _pairs(block)) for name, (step, block) in sorted(steps_once.items())],
            files={"records": link(file.as_posix(), scale), "trace": link(paths.trace_csv(scale).as_posix(), scale)},
            report=paths.report_page(scale).name,
        )
    )


def _iterations(report: Report, root: Path) -> dict[Cell, list[tuple[str, list[str]]]]:
    """Return the pruning iterations of every cell, each with the anchor that tables link to."""
    scale = report.grid.scale
    file = paths.trace_csv(scale)
    _, *lines = csv_lines(root / file, file)
    found: dict[Cell, list[tuple[str, list[str]]]] = {}
    for line, place in zip(lines, report.trace["record"], strict=True):
        _, task, dataset, model, method, seed, *values = line
        found.setdefault(Cell(task, dataset, model, method, int(seed)), []).append((_anchor(place, scale), values))
    return found


def _anchor(place: object, scale: str) -> str:
    """Return the place on this page that stands for a line of a file; see `ifap.study.templates.shown_record`."""
    return shown_record(link(str(place), scale)).partition("#")[2]


def _pairs(block: Mapping[str, Any]) -> Pairs:
    return [(name, str(value)) for name, value in flat(dict(block)).items() if value not in (None, "", {})]
