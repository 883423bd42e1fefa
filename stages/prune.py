"""Prune the baseline of a cell: iterations of scoring, removing and distilling."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ifap import plan
from ifap.files import atomic_write_text, write_csv
from ifap.forward import call, evaluation_mode, to_device
from ifap.layers import is_producer, sides
from ifap.pruning import prune
from ifap.results import Pruned, Receipt, Target
from ifap.saving import store
from ifap.scores.flow import flow_scores
from ifap.seeds import seeded
from ifap.study.config.recipes import LIMITS
from ifap.study.distil import distillation, validator
from ifap.study.machine.determinism import device
from ifap.study.paths import Cell, cell_dir, flow_json, kept_json, receipts_file, receipts_json
from ifap.study.report.record import RECEIPT_FIELDS
from ifap.study.rivals import SPARSE, Context, Event, Outcome
from ifap.study.rivals.run import masked_plan
from ifap.study.rounding import rounded
from ifap.study.stage import run_stage
from stages.job import Job, Timing, cell_stage


@cell_stage("prune")
def main(job: Job) -> None:
    """Prune the baseline of a cell to its target and save it with its receipts."""
    with job.run() as timing:
        network = baseline_network(job)
        flow = flow_before(job, network)
        if job.grid.mask_options(job.cell) is None:
            pruned, watched = prune_cell(job, network, timing)
            timing.more["seconds"] = seconds_of(pruned)
            save(job, pruned, watched)
        else:
            trained = mask_cell(job, network, timing)
            if trained.cut is None:
                save_masked(job, trained)
            else:
                save(job, trained.cut, {}, own_training(trained))
        atomic_write_text(flow_json(job.grid.scale, job.cell), json.dumps(flow, indent=1) + "\n")


def baseline_network(job: Job) -> nn.Module:
    """Load the trained, unpruned network of a cell."""
    baseline = Job(job.grid, job.cell.baseline, "baseline")
    baseline.check_stage("baseline")
    return baseline.load("final")[1].to(device())


def prune_cell(job: Job, network: nn.Module, timing: Timing) -> tuple[Pruned, dict[str, dict[str, float]]]:
    """Return the pruned network of a cell, and what was measured on validation data after each iteration."""
    options, recovery = job.grid.pruning(job.cell), job.grid.recovery(job.cell)
    train, validation = job.split("train"), job.split("validation")
    calibration = train.calibration(options.calibration_samples, options.batch_size, job.cell.seed)
    state = PruneState(job, timing)
    newest: dict[str, float] = {}

    def watch(model: nn.Module, receipt: Receipt) -> None:
        # The network that an iteration keeps is the one that was validated last.
        state.note(receipt.iteration, dict(newest))

    chosen = options.model_dump(exclude={"target", "calibration_samples", "batch_size"})
    example_inputs = to_device(job.example_inputs(), device())
    with evaluation_mode(network), torch.no_grad():
        outputs = job.task.outputs(call(network, example_inputs))
    result = prune(
        network,
        example_inputs,
        calibration,
        **wanted(job),
        recover=distillation(train, validation, recovery, task=job.task, augment=True, seed=job.cell.seed),
        validate=validator(validation, job.task, options.batch_size, newest=newest),
        method=job.grid.variant(job.cell).method,
        labelled=calibration.labelled,
        loss=job.task.loss,
        outputs=outputs,
        seed=job.cell.seed,
        teacher=recovery.teacher,
        on_step=watch,
        resume=state.folder if job.grid.options.resume else None,
        **chosen,
    )
    return result, state.watched


def wanted(job: Job) -> dict[str, Any]:
    """Return where pruning is to end: at a target, or at the widths of another cell's network."""
    other = job.grid.like(job.cell)
    if other is None:
        return {"target": Target(**job.grid.pruning(job.cell).target.model_dump(exclude={"published"}))}
    Job(job.grid, other, "prune").check_stage("prune")
    return {"like": plan.read_plan(cell_dir(job.grid.scale, other))}


def mask_cell(job: Job, network: nn.Module, timing: Timing) -> Outcome:
    """Return the network of a cell whose method prunes in a training of its own."""
    options, pruning = job.grid.mask_options(job.cell), job.grid.pruning(job.cell)
    assert options is not None

    def untrained() -> nn.Module:
        # The network that the baseline started from as well.
        with seeded(job.cell.seed, torch.device("cpu")):
            return job.build().to(device())

    result = SPARSE.get(job.grid.variant(job.cell).method)(
        Context(
            build=untrained,
            baseline=lambda: network,
            example_inputs=job.example_inputs(),
            train=job.split("train"),
            validation=job.split("validation"),
            task=job.task,
            options=options,
            target=Target(**pruning.target.model_dump(exclude={"published"})),
            recipe=job.grid.masked_training(job.cell),
            seed=job.cell.seed,
            augment=True,
            limits=pruning.model_dump(include=set(LIMITS)),
            state=job.state if job.grid.options.resume else None,
            guard=job.guard,
            pretrained=job.model_options.pretrained is not None,
        )
    )
    timing.resume_count, timing.extra_seconds = result.progress.resumes, result.progress.earlier_seconds
    return result


def flow_before(job: Job, network: nn.Module) -> dict[str, list[float]]:
    """Return the flow scores of the network before pruning, whatever method then prunes it."""
    options = job.grid.pruning(job.cell)
    batches = job.split("train").calibration(options.calibration_samples, options.batch_size, job.cell.seed)
    scores = flow_scores(network, batches, normalize=options.normalize, site=options.site)
    return {name: [float(f"{value:.5g}") for value in values] for name, values in scores.items()}


class PruneState:
    """What a killed pruning job leaves behind: its network, its receipts and what it watched.

    Parameters
    ----------
    job : Job
        The job; a state made under another configuration is discarded.
    timing : Timing
        Told what earlier sessions cost.
    """

    def __init__(self, job: Job, timing: Timing) -> None:
        self.folder = job.state / "network"
        self._file = job.state / "watched.json"
        stored = self._read()
        if stored.get("guard") != job.guard:
            job.discard_state()
            stored = {"guard": job.guard, "sessions": 0, "watched": {}}
        self._stored = stored
        self.watched: dict[str, dict[str, float]] = stored["watched"]
        timing.resume_count = stored["sessions"]
        timing.extra_seconds = earlier_seconds(self.folder / "receipts.json")
        stored["sessions"] += 1
        self._write()

    def note(self, iteration: int, values: dict[str, float]) -> None:
        """Keep what was measured after one iteration."""
        self.watched[str(iteration)] = values
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self) -> None:
        atomic_write_text(self._file, json.dumps(self._stored))


def earlier_seconds(receipts: Any) -> float:
    """Return how long the iterations of earlier sessions took."""
    if not receipts.exists():
        return 0.0
    return float(sum(sum(receipt["seconds"].values()) for receipt in json.loads(receipts.read_text())["receipts"]))


def save(
    job: Job, result: Pruned, watched: dict[str, dict[str, float]], further: Mapping[str, Any] | None = None
) -> None:
    """Write the pruned network, its plan and its receipts; receipts.json ends with what there is to say further."""
    identifier, arguments = job.builder()
    record = result.plan.model_copy(update={"builder": plan.Builder(id=identifier, args=arguments)})
    folder = job.checkpoint("pruned")
    store.write_network(result.model.cpu(), record, folder)
    scale, cell = job.grid.scale, job.cell
    atomic_write_text(kept_json(scale, cell), (folder / "plan.json").read_text())
    receipts = [as_measured(receipt, job.task.sign) for receipt in result.receipts]
    rows = [receipt_row(receipt, watched.get(str(receipt.iteration), {})) for receipt in receipts]
    full = [{k: v for k, v in dataclasses.asdict(receipt).items() if k != "seconds"} for receipt in receipts]
    full[-1] |= further or {}
    write_receipts(scale, cell, rows, full)


def write_receipts(
    scale: str, cell: Cell, rows: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]
) -> None:
    """Write one row an iteration as CSV, and all that is known of each as JSON."""
    write_csv(receipts_file(scale, cell), map(rounded, rows), RECEIPT_FIELDS)
    atomic_write_text(receipts_json(scale, cell), json.dumps(rounded(full), indent=1) + "\n")


def seconds_of(pruned: Pruned) -> dict[str, float]:
    """Return how long all iterations took, by phase."""
    phases = dict.fromkeys(phase for receipt in pruned.receipts for phase in receipt.seconds)
    return {phase: round(sum(receipt.seconds.get(phase, 0.0) for receipt in pruned.receipts), 3) for phase in phases}


def as_measured(receipt: Receipt, sign: float) -> Receipt:
    """Return a receipt with the metrics of the task, which pruning sees with a sign by which more is better."""
    before, after = (None if value is None else sign * value for value in (receipt.metric_before, receipt.metric_after))
    return dataclasses.replace(receipt, metric_before=before, metric_after=after)


def save_masked(job: Job, result: Outcome) -> None:
    """Write the masked network, its plan and its receipts: costs of dense kernels, and in receipts.json theory."""
    identifier, arguments = job.builder()
    model = result.model.cpu()
    record = masked_plan(model, result.split_attention, job.example_inputs())
    record = record.model_copy(update={"builder": plan.Builder(id=identifier, args=arguments)})
    folder = job.checkpoint("pruned")
    store.write_network(model, record, folder, result.masks)
    scale, cell = job.grid.scale, job.cell
    atomic_write_text(kept_json(scale, cell), (folder / "plan.json").read_text())
    # No unit goes: the widths are those of the unpruned network.
    widths = {name: sides(module)["out"] for name, module in model.named_modules() if is_producer(module)}
    rows = [{**masked_row(event, record.costs, result, job.task.primary), "widths": widths} for event in result.events]
    write_receipts(scale, cell, [{k: row.get(k) for k in RECEIPT_FIELDS} for row in rows], rows)


def masked_row(event: Event, costs: plan.Costs, result: Outcome, metric: str) -> dict[str, Any]:
    """Return what receipts.json says of one event; receipts.csv has the part that fits its columns."""
    row: dict[str, Any] = {
        "iteration": event.number,
        "accepted": True,
        "macs": costs.macs_after,
        "params": costs.params_after,
        "macs_nonzero": event.macs,
        "weights_kept": event.kept,
        "density": event.density,
    }
    if event.validation is not None:
        measured = event.validation.validation_metric
        row |= {"metric_after": measured, metric: measured, "loss": event.validation.validation_loss}
    if event is result.events[-1]:
        row |= own_training(result)
    return row


def own_training(result: Outcome) -> dict[str, Any]:
    """Return what receipts.json says at its end of a method that prunes in a training of its own."""
    return {
        "training_macs": result.training_macs,
        "dense_training_macs": result.dense_training_macs,
        "history": [dataclasses.asdict(epoch) for epoch in result.history],
    }


def receipt_row(receipt: Receipt, watched: dict[str, float]) -> dict[str, Any]:
    """Return one line of receipts.csv; the full receipt is in receipts.json."""
    at_floor = f"at floor: {', '.join(receipt.at_floor)}" if receipt.at_floor else ""
    pinned = f"pinned: {', '.join(sorted(receipt.pinned))}" if receipt.pinned else ""
    values = {field: getattr(receipt, field) for field in RECEIPT_FIELDS if hasattr(receipt, field)}
    return {
        **values,
        **{name: watched.get(name) for name in ("top1", "top5", "loss")},
        "refused": "; ".join(text for text in (pinned, at_floor) if text),
    }


if __name__ == "__main__":
    run_stage(main)
