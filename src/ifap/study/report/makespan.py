"""How long a scale would take on a number of GPUs: the graph of its jobs, scheduled as Snakemake does.

Every time is a prediction from `ifap.study.report.estimate.Assumptions`; no job is started. Preparing data is left
out: it takes no GPU, and what it takes is up to the network.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ifap.study.grid import Grid
from ifap.study.report.estimate import Assumptions, stated_seconds

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
