"""Jobs on GPUs, by hand."""

from __future__ import annotations

import pytest
from claims_made_up import made_up_grid

from benchmarks.makespan import Job, jobs_of, schedule
from ifap.study.report.estimate import Assumptions, estimate, stated_seconds


def chain(name, *seconds):
    stages = ("baseline", "prune", "finetune", "evaluate")
    names = [f"{stage} {name}" for stage in stages]
    return [Job(names[i], stages[i], time, tuple(names[i - 1 : i] if i else ())) for i, time in enumerate(seconds)]


def test_one_gpu_runs_all_and_later_steps_come_first():
    found = schedule([*chain("a", 1, 2), *chain("b", 3)], 1)
    assert found.spans == [("baseline a", 0, 1), ("prune a", 1, 3), ("baseline b", 3, 6)]
    assert (found.makespan, found.utilisation, found.bound) == (6, 1, "work")


def test_a_chain_bounds_what_more_gpus_can_do():
    jobs = [*chain("a", 5, 5, 5), *chain("b", 3)]
    found = schedule(jobs, 8)
    assert (found.makespan, found.least, found.bound) == (15, 15, "chain")
    assert found.utilisation == pytest.approx(18 / (8 * 15))


def test_no_job_starts_before_what_it_waits_for_and_no_gpu_runs_two():
    jobs = jobs_of(made_up_grid())
    for gpus in (1, 2, 3, 50):
        found = schedule(jobs, gpus)
        ends = {name: end for name, _, end in found.spans}
        starts = {name: start for name, start, _ in found.spans}
        assert len(found.spans) == len(jobs)
        assert all(starts[job.name] >= ends[name] for job in jobs for name in job.after)
        for moment in starts.values():
            assert sum(start <= moment < end for _, start, end in found.spans) <= gpus
        assert found.least - 1e-6 <= found.makespan <= found.work / gpus + found.chain + 1e-6  # Graham's bound


def test_jobs_take_what_the_estimate_says(tmp_path):
    grid = made_up_grid()
    total = sum(job.seconds for job in jobs_of(grid))
    assert estimate(grid, root=tmp_path)["all"].gpu_hours == pytest.approx(total / 3600)
    assert all(list(stated_seconds(grid, cell, Assumptions()))[-1] == "evaluate" for cell in grid.cells())
