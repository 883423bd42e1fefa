"""Train the unpruned network that every method of a (task, data set, model, seed) starts from."""

from __future__ import annotations

from ifap import plan
from ifap.saving import plans, store
from ifap.study.machine.determinism import rank
from ifap.study.stage import run_stage
from stages.job import Job, cell_stage


@cell_stage("baseline")
def main(job: Job) -> None:
    """Train the unpruned network of a cell and save it."""
    with job.run() as timing:
        network = job.build()
        identifier, arguments = job.builder()
        record = plans.unpruned_plan(network, job.example_inputs(), plan.Builder(id=identifier, args=arguments))
        trained = job.train(network, timing)
        if rank() == 0:
            store.write_network(trained, record, job.checkpoint("final"))


if __name__ == "__main__":
    run_stage(main)
