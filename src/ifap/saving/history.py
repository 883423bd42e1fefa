"""Write and read ``report.json``, the history of a saved network; loading does not need it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ifap.errors import PlanError
from ifap.example_inputs import Count, Part
from ifap.files import read_bounded
from ifap.plan import PLAN_FILE, Costs, Plan, one_line_errors
from ifap.results import Pruned

REPORT_FILE = "report.json"
_MAX_BYTES = 32 * 2**20
_MOST = 100_000  # layers or iterations of one network
_Word = Annotated[str, Field(max_length=300)]


class Layer(Part):
    """One layer before and after: costs, widths where it can be cut, and otherwise why it stays."""

    macs_before: Count = 0
    macs_after: Count = 0
    params_before: Count = 0
    params_after: Count = 0
    width_before: Count | None = None
    width_after: Count | None = None
    stays: Annotated[str, Field(max_length=1000)] | None = None


class Step(Part):
    """One iteration; the first is the network as it was given."""

    iteration: Count
    macs: Count
    params: Count
    units_removed: Count = 0
    metric_before: float | None = None
    metric_after: float | None = None
    accepted: bool = True


class ProofRecord(Part):
    """What comparing the cut network with the masked one showed."""

    difference: float | None
    units_checked: Count
    does_not_apply: dict[_Word, Count] = Field(default_factory=dict)


class History(Part):
    """What `ifap.prune` reported.

    Parameters
    ----------
    costs : Costs
        Those of the plan that it belongs to.
    method : str
        How units were scored.
    metric : str or None
        What `validate` measured.
    target : dict of str to float
        Kind of cost to the share that was to go; empty where another plan gave the widths.
    bytes_before : int or None
        What the tensors of the unpruned network take in a file.
    layers : dict of str to Layer
        In the order of the network.
    steps : list of Step
        The iterations.
    proof : ProofRecord or None
        None where the proof was switched off.
    """

    format: Literal[1] = 1
    costs: Costs
    method: _Word = ""
    metric: _Word | None = None
    target: dict[_Word, float] = Field(default_factory=dict)
    bytes_before: Count | None = None
    layers: Annotated[dict[str, Layer], Field(max_length=_MOST)] = Field(default_factory=dict)
    steps: Annotated[list[Step], Field(max_length=_MOST)] = Field(default_factory=list)
    proof: ProofRecord | None = None


def history_of(pruned: Pruned) -> History:
    """Return the history of a run. It holds no times, so that equal runs write equal bytes."""
    first, last = pruned.receipts[0], [receipt for receipt in pruned.receipts if receipt.accepted][-1]
    names = dict.fromkeys([*pruned.layers, *first.widths, *last.pinned])
    layers = {}
    for name in names:
        cost, reason = pruned.layers.get(name), last.pinned.get(name)
        layers[name] = Layer(
            macs_before=cost.macs_before if cost else 0,
            macs_after=cost.macs_after if cost else 0,
            params_before=cost.params_before if cost else 0,
            params_after=cost.params_after if cost else 0,
            width_before=first.widths.get(name),
            width_after=last.widths.get(name),
            stays=None if reason is None else reason[:1000],
        )
    target, proof = pruned.target, pruned.proof
    return History(
        costs=pruned.plan.costs,
        method=pruned.method[:300],
        metric=None if pruned.metric is None else pruned.metric[:300],
        target={} if target is None else {target.kind: target.share},
        bytes_before=pruned.before.bytes,
        layers=layers,
        steps=[
            Step(
                iteration=receipt.iteration,
                macs=receipt.macs,
                params=receipt.params,
                units_removed=receipt.units_removed,
                metric_before=_finite(receipt.metric_before),
                metric_after=_finite(receipt.metric_after),
                accepted=receipt.accepted,
            )
            for receipt in pruned.receipts
        ],
        proof=None
        if proof is None
        else ProofRecord(
            difference=proof.difference,
            units_checked=proof.units_checked,
            does_not_apply={reason[:300]: number for reason, number in proof.does_not_apply.items()},
        ),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read_history(folder: Path, plan: Plan) -> History | None:
    """Read ``report.json``; None where there is none, as in folders of version 0.1.

    Raises a PlanError if it is damaged, or belongs to another network than `plan`.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        return None
    with one_line_errors(path):
        found = History.model_validate(json.loads(read_bounded(path, _MAX_BYTES)))
    if found.costs != plan.costs:
        raise PlanError(f"{path}: belongs to another network than {PLAN_FILE}: delete it")
    return found
