"""Train the unpruned network that every method of a (task, data set, model, seed) starts from."""

from __future__ import annotations

from ifap import plan, saving
from ifap.study.machine.determinism import rank
from ifap.study.paths import Cell
from ifap.study.stage import run_stage
from stages.job import open_job
from stages.options import (
    PARAMS,
    DatasetOption,
    MethodOption,
    ModelOption,
    ParamsOption,
    ScaleOption,
    SeedOption,
    TaskOption,
)


def main(
    task: TaskOption,
    dataset: DatasetOption,
    model: ModelOption,
    seed: SeedOption,
    method: MethodOption = "baseline",
    scale: ScaleOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Train the unpruned network of a cell and save it."""
    job = open_job(params, scale, Cell(task, dataset, model, method, seed), "baseline")
    with job.run() as timing:
        network = job.build()
        identifier, arguments = job.builder()
        record = saving.unpruned_plan(network, job.example_inputs(), plan.Builder(id=identifier, args=arguments))
        trained = job.train(network, timing)
        if rank() == 0:
            saving.write_network(trained, record, job.checkpoint("final"))


if __name__ == "__main__":
    run_stage(main)
