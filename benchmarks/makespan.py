"""How long the paper's grid would take on 4, 16 and 64 GPUs: a prediction from stated speeds, nothing is run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import typer

from benchmarks.ratio import RESULTS
from ifap.files import write_csv
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.report.estimate import Assumptions
from ifap.study.report.makespan import Schedule, jobs_of, schedule

GPUS = (4, 16, 64)
HOUR = 3600
FIGURE = Path("docs") / "figures" / "makespan.svg"
COLUMNS = (
    "scale", "cells", "jobs", "gpus", "makespan_hours", "utilisation", "work_hours", "longest_chain_hours", "bound",
    "least_hours", "images_per_second", "iteration_seconds", "job_seconds",
)  # fmt: skip


def main() -> None:
    """Write results/bench/makespan.csv and docs/figures/makespan.svg."""
    assume = Assumptions()
    grid = Grid(load_params(Path("params.yaml")), "paper")
    jobs = jobs_of(grid, assume)
    found = [schedule(jobs, gpus) for gpus in GPUS]
    stated = {field.name: getattr(assume, field.name) for field in fields(assume) if field.name in COLUMNS}
    rows = [{"scale": "paper", "cells": len(grid.cells()), "jobs": len(jobs), **_row(one), **stated} for one in found]
    write_csv(RESULTS / "makespan.csv", rows, COLUMNS)
    _draw(found)
    for row in rows:
        typer.echo(", ".join(f"{key} {row[key]}" for key in COLUMNS[3:10]))
    typer.echo(f"predicted from stated speeds; wrote {RESULTS / 'makespan.csv'} and {FIGURE}")


def _row(one: Schedule) -> dict[str, object]:
    return {
        "gpus": one.gpus,
        "makespan_hours": round(one.makespan / HOUR, 1),
        "utilisation": round(one.utilisation, 3),
        "work_hours": round(one.work / HOUR, 1),
        "longest_chain_hours": round(one.chain / HOUR, 1),
        "bound": one.bound,
        "least_hours": round(one.least / HOUR, 1),
    }


def _draw(found: list[Schedule]) -> None:
    plt.rcParams["svg.hashsalt"] = "ifap"  # the same figure is the same file
    figure, axes = plt.subplots(1, len(found), figsize=(10, 3), layout="constrained", sharey=True)
    for axis, one in zip(axes, found, strict=True):
        times, busy = _busy(one)
        axis.fill_between(times / HOUR / 24, 100 * busy / one.gpus, step="post", alpha=0.5)
        axis.axvline(one.least / HOUR / 24, color="black", linestyle="--", linewidth=1)
        axis.set_title(f"{one.gpus} GPUs: {one.makespan / HOUR / 24:.1f} days, {one.utilisation:.0%} in use")
        axis.set_xlabel("days (predicted)")
    axes[0].set_ylabel("GPUs in use (%)")
    axes[0].set_ylim(0, 105)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    plt.close(figure)


def _busy(one: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Return the times at which the number of running jobs changes, and that number."""
    changes = sorted([(start, 1) for _, start, _ in one.spans] + [(end, -1) for _, _, end in one.spans])
    return np.array([time for time, _ in changes]), np.cumsum([change for _, change in changes])


if __name__ == "__main__":
    typer.run(main)
