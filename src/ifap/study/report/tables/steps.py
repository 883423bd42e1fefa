"""Table IV: the pruning iterations of one network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from ifap.study.config.params import TableParams
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.networks import link, not_attempted, select
from ifap.study.report.tables.numbers import Unit, choose_unit, fixed
from ifap.study.report.tables.options import table_cell
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import label, samples, scale_notes
from ifap.study.templates import NO_VALUE


def table_4(name: str, options: TableParams, report: Report) -> Table:
    """Return Table IV of a scale."""
    grid, cell = report.grid, table_cell(name, options)
    own, base = select(report.runs, cell), select(report.runs, cell.baseline)
    steps = select(report.trace, cell)
    macs, params = choose_unit([*steps["macs"], *own["macs"]]), choose_unit([*steps["params"], *own["params"]])
    rows = [_step_row(step, macs, params) for step in steps.to_dict("records")]
    if rows:
        rows[0] = replace(rows[0], starts_group=True)
        rows += [
            *_test_row("unpruned network", base, macs, params, new=True),
            *_test_row("final network", own, macs, params, new=base.empty),
        ]
    else:
        rows = [Row((Item("all"), *not_attempted([cell], report.missing, columns=6)), starts_group=True)]
    return Table(
        name, options.title, _table_4_columns(macs, params), tuple(rows), _table_4_notes(grid, cell, own, steps)
    )


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


def _step_row(step: dict[Any, Any], macs: Unit, params: Unit) -> Row:
    href = link(step["record"], step["scale"])
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
                Item(params.text(run["params"]), link(run["record"], run["scale"])),
                Item(macs.text(run["macs"]), link(run["record"], run["scale"])),
                Item(NO_VALUE),
                *(_share(run[column], link(run["record"], run["scale"])) for column in ("test_top1", "test_top5")),
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
            f"The iterations are measured on the validation split{samples(own, 'validation_size')}. The test split"
            f"{samples(own, 'test_size')} is opened once, for the final network: pruned, then fine-tuned.",
            "b",
        ),
    )
