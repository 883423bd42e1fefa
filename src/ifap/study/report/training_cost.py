"""What training a cell cost, in multiply-accumulates, from what is recorded of it.

A sample's forward and backward pass counts as three forward passes (backward computes the gradients
of inputs and of weights, each as many products as the forward). Networks count as they are computed:
a mask saves nothing, since dense kernels multiply its zeros. Scoring, validation and test passes, the
adapters of the distillation and the optimiser are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

TRAINING = 3
"""Forward passes that the forward and backward pass of one sample cost."""


class Step(Protocol):
    """One pruning iteration, as `ifap.study.report.record.Receipt` has it."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input after the iteration."""
        ...


def baseline_macs(config: Mapping[str, Any], samples: int, macs: int) -> int:
    """Return what the training of the unpruned network costs.

    ``3 * epochs * samples * macs``.
    """
    return TRAINING * int(config["baseline"]["epochs"]) * samples * macs


def training_macs(
    config: Mapping[str, Any],
    samples: int,
    base: int,
    macs: int,
    receipts: Sequence[Step],
    *,
    from_init: bool,
    own: int | None = None,
) -> int | None:
    """Return what all training of a pruned cell costs, its baseline's included.

    The recovery of iteration k costs ``epochs * seen * (3 * macs_k + teacher)``: `seen` are the samples of an epoch,
    and the teacher's forward pass is that of the unpruned network or of the iteration before, and nothing if no loss
    looks at a teacher. An iteration that was rolled back was trained as well. Distillation may stop before its last
    epoch, so that this is an upper bound; with one epoch it is exact.

    `config` is the resolved configuration of the cell, with the steps ``baseline``, ``prune`` and ``finetune``.
    `samples` counts the training samples; `base` and `macs` are the multiply-accumulates of one input of the unpruned
    and of the final network. `receipts` are the pruning iterations, from the unpruned start on.

    `from_init` says that the method trains from the initialisation and not from the trained baseline. `own` is what its
    own training cost, of a method that prunes while it trains; there is no recovery then. None for a method from the
    initialisation whose own training is not known.
    """
    finetuning = TRAINING * int(config["finetune"]["epochs"]) * samples * macs
    if from_init:
        return None if own is None else own + finetuning
    if own is not None:
        return baseline_macs(config, samples, base) + own + finetuning
    recovery = config["prune"]["recovery"]
    taught = bool(recovery["feature_weight"] or recovery["logit_weight"])
    seen, distilled = min(samples, recovery.get("samples") or samples), 0
    for before, after in pairwise(receipts):
        teacher = base if recovery["teacher"] == "original" else before.macs
        distilled += int(recovery["epochs"]) * seen * (TRAINING * after.macs + taught * teacher)
    return baseline_macs(config, samples, base) + distilled + finetuning
