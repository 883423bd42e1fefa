"""Train a pruned network once more; its shape stays as the plan has it."""

from __future__ import annotations

from ifap.saving import store
from ifap.study.machine.determinism import rank
from ifap.study.rivals.controller import MaskController
from ifap.study.stage import run_stage
from stages.job import Job, cell_stage


@cell_stage("finetune")
def main(job: Job) -> None:
    """Fine-tune the pruned network of a cell and save it."""
    with job.run() as timing:
        job.check_stage("prune")
        record, network = job.load("pruned")
        masks = store.read_masks(job.checkpoint("pruned"))
        trained = job.train(network, timing, MaskController(masks) if masks else None)
        if rank() == 0:
            store.write_network(trained, record, job.checkpoint("final"), masks)


if __name__ == "__main__":
    run_stage(main)
