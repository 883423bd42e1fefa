"""Measure a finished network: the only stage that opens the test split."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from torch import nn

from ifap.costs import cost, nonzero_macs
from ifap.data import Role
from ifap.files import atomic_write_bytes, atomic_write_text
from ifap.latency import Latency, latency
from ifap.study.machine.determinism import device
from ifap.study.machine.provenance import provenance
from ifap.study.paper.vocabulary import METRICS
from ifap.study.paths import metrics_file, receipts_json, samples_file
from ifap.study.report.record import SCHEMA_VERSION
from ifap.study.rounding import rounded
from ifap.study.sample_sheet import sample_sheet
from ifap.study.stage import run_stage
from stages.job import Job, cell_stage

USUAL = "top1"  # what a record watches that does not say so


@cell_stage("evaluate")
def main(job: Job) -> None:
    """Measure the final network of a cell and write metrics.json, and of a generator images that it makes."""
    earlier = ["baseline"] if job.cell.is_baseline else ["prune", "finetune"]
    with job.run() as timing:
        for stage in earlier:
            job.check_stage(stage)
        network = job.load("final")[1].to(device())
        report = rounded(measure(job, network))
        timing.more = {**provenance(), "latency": dataclasses.asdict(measure_latency(job, network))}
        atomic_write_text(metrics_file(job.grid.scale, job.cell), json.dumps(report, indent=2, sort_keys=True) + "\n")


def measure_latency(job: Job, network: nn.Module) -> Latency:
    """Time the network on this machine."""
    options = job.grid.options.evaluate
    inputs = job.example_inputs(options.latency_batch)
    return latency(network, inputs, warmup=options.latency_warmup, runs=options.latency_runs)


def measure(job: Job, network: nn.Module) -> dict[str, Any]:
    """Return everything that ``metrics.json`` says about the network: the same on every run."""
    counted = cost(network, job.example_inputs())
    if job.cell.task == "generation":
        write_samples(job, network)
    test, validation = split_metrics(job, network, "test"), split_metrics(job, network, "validation")
    manifest = job.manifest()
    return {
        "schema_version": SCHEMA_VERSION,
        "cell": {"scale": job.grid.scale, **job.cell._asdict()},
        "config": job.config,
        "metrics": {
            name: {"value": value, "unit": METRICS[name].unit, "split": "test"} for name, value in test.items()
        },
        "validation": {name: value for name, value in validation.items() if name != "ece"},
        **({} if job.task.primary == USUAL else {"primary": job.task.primary}),
        "split_sizes": {
            # A set with boxes and masks may have other images for each task.
            role: entry.get("of_tasks", {}).get(job.cell.task, entry["samples"])
            for role, entry in manifest["splits"].items()
        },
        "data_checksum": manifest["checksum"],
        "synthetic": manifest["synthetic"],
        "macs": counted.macs,
        "macs_nonzero": nonzero_macs(network, job.example_inputs()),
        "params": counted.params,
        "params_nonzero": sum(int(p.count_nonzero()) for p in network.parameters()),
        **own_training(job),
    }


def write_samples(job: Job, network: nn.Module) -> None:
    """Write a picture of what a generator makes, if that can be shown."""
    sheet = sample_sheet(network, job.split("test"))
    if sheet is not None:
        atomic_write_bytes(samples_file(job.grid.scale, job.cell), sheet)


def own_training(job: Job) -> dict[str, int]:
    """Return what the training of a method cost that prunes while it trains; other costs follow from receipts.csv."""
    if job.cell.is_baseline or job.grid.mask_options(job.cell) is None:
        return {}
    last = json.loads(receipts_json(job.grid.scale, job.cell).read_text())[-1]
    return {name: last[name] for name in ("training_macs", "dense_training_macs")}


def split_metrics(job: Job, network: nn.Module, role: Role) -> dict[str, float]:
    """Return all metrics of the network on one split."""
    options = job.grid.options.evaluate
    return job.task.evaluate(network, job.split(role), options.samples(job.cell.task), bins=options.calibration_bins)


if __name__ == "__main__":
    run_stage(main)
