"""How long the paper's grid would take on 4, 16 and 64 GPUs: the graph of its jobs, scheduled as Snakemake does.

Every time is a prediction from `ifap.study.report.estimate.Assumptions`; no job is started. Preparing data is left
out: it takes no GPU, and what it takes is up to the network.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import typer

from benchmarks.ratio import RESULTS
from ifap.files import write_csv
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.report.estimate import Assumptions, stated_seconds
from ifap.study.report.figures.drawing import use_shipped_fonts

GPUS = (4, 16, 64)
HOUR = 3600
FIGURE = Path("docs") / "figures" / "makespan.svg"
COLUMNS = (
    "scale", "cells", "jobs", "gpus", "makespan_hours", "utilisation", "work_hours", "longest_chain_hours", "bound",
    "least_hours", "images_per_second", "iteration_seconds", "job_seconds",
)  # fmt: skip
PRIORITY = {"baseline": 1, "prune": 2, "finetune": 3, "evaluate": 4}
"""As in the rules of the workflow: later steps of a cell come first."""


@dataclass(frozen=True)
class Job:
    """One job of the workflow that takes a GPU.

    Parameters
    ----------
    name : str
        Stage and cell.
    stage : str
        Its stage.
    seconds : float
        What it takes.
    after : tuple of str
        Names of the jobs that must have ended.
    """

    name: str
    stage: str
    seconds: float
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """What a number of GPUs would do.

    Parameters
    ----------
    gpus : int
        Their number.
    makespan : float
        Seconds from the first start to the last end.
    work : float
        Seconds of all jobs.
    chain : float
        Seconds of the longest chain of jobs that wait for one another.
    spans : list of (str, float, float)
        Name, start and end of each job.
    """

    gpus: int
    makespan: float
    work: float
    chain: float
    spans: list[tuple[str, float, float]]

    @property
    def utilisation(self) -> float:
        """Share of the GPUs' time that jobs run."""
        return self.work / (self.makespan * self.gpus) if self.makespan else 0.0

    @property
    def bound(self) -> str:
        """What no schedule could undercut: ``work`` shared out evenly, or the longest ``chain``."""
        return "work" if self.work / self.gpus >= self.chain else "chain"

    @property
    def least(self) -> float:
        """Seconds that no schedule could undercut."""
        return max(self.work / self.gpus, self.chain)


def jobs_of(grid: Grid, assume: Assumptions | None = None) -> list[Job]:
    """Return the jobs of every cell of a scale, with stated times.

    Parameters
    ----------
    grid : Grid
        The cells of the scale.
    assume : Assumptions, optional
        What holds for their times.

    Returns
    -------
    list of Job
        In the order of the cells and of the stages.
    """
    assume, jobs = assume or Assumptions(), []
    for cell in grid.cells():
        before = () if cell.is_baseline else (f"baseline {cell.baseline}",)
        for stage, seconds in stated_seconds(grid, cell, assume).items():
            jobs.append(Job(f"{stage} {cell}", stage, seconds, before))
            before = (f"{stage} {cell}",)
    return jobs


def schedule(jobs: Sequence[Job], gpus: int) -> Schedule:
    """Give each free GPU the ready job that comes first: by priority of its stage, then by order.

    Parameters
    ----------
    jobs : sequence of Job
        What to run.
    gpus : int
        How many run at a time.

    Returns
    -------
    Schedule
        When each job runs.
    """
    by_name = {job.name: job for job in jobs}
    number = {job.name: index for index, job in enumerate(jobs)}
    waiting = {job.name: len(job.after) for job in jobs}
    followers: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        for name in job.after:
            followers[name].append(job.name)
    ready = [(-PRIORITY[job.stage], number[job.name]) for job in jobs if not job.after]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    spans, now = [], 0.0
    while ready or running:
        while ready and len(running) < gpus:
            job = jobs[heapq.heappop(ready)[1]]
            heapq.heappush(running, (now + job.seconds, number[job.name]))
            spans.append((job.name, now, now + job.seconds))
        now, index = heapq.heappop(running)
        for name in followers[jobs[index].name]:
            waiting[name] -= 1
            if not waiting[name]:
                heapq.heappush(ready, (-PRIORITY[by_name[name].stage], number[name]))
    return Schedule(gpus, now, sum(job.seconds for job in jobs), _longest_chain(jobs, by_name), spans)


def _longest_chain(jobs: Sequence[Job], by_name: Mapping[str, Job]) -> float:
    """Return the seconds of the longest chain; each job stands after those that it waits for."""
    ends: dict[str, float] = {}
    for job in jobs:
        ends[job.name] = job.seconds + max((ends[name] for name in job.after), default=0.0)
        assert all(name in by_name for name in job.after)
    return max(ends.values(), default=0.0)


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
    use_shipped_fonts()
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
