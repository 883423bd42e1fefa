"""Image classification: cross-entropy, top-1, top-5 and the expected calibration error."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.data import logits
from ifap.study.tasks.base import TASKS, Task

AUXILIARY_WEIGHT = 0.4


class Classification(Task):
    """One class a sample."""

    primary = "top1"

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy in nats; `targets` are class numbers, shape (batch,).

        An auxiliary head, which Inception has in training, adds 0.4 times its own (Szegedy et al. 2016).
        """
        loss = F.cross_entropy(logits(outputs), targets, label_smoothing=label_smoothing)
        auxiliary = getattr(outputs, "aux_logits", None)
        if auxiliary is None:
            return loss
        return loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, targets, label_smoothing=label_smoothing)

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return ``top1`` and ``top5`` in percent, ``loss`` in nats and, if `bins` is given, ``ece`` in percent.

        ``ece`` is the mean distance between confidence and accuracy over `bins` equal bins of
        confidence, weighted by the samples in each (Guo et al. 2017).
        """
        scores = logits(outputs).detach().float().cpu()
        targets = targets.cpu()
        found = {
            "top1": _top(scores, targets, 1),
            "top5": _top(scores, targets, 5),
            "loss": float(F.cross_entropy(scores, targets)),
        }
        return found if bins is None else {**found, "ece": calibration_error(scores, targets, bins)}


def calibration_error(scores: Tensor, targets: Tensor, bins: int) -> float:
    """Return the expected calibration error in percent; see `Classification.metrics`."""
    # The same number as torchmetrics (a test compares), whose import takes longer than a whole evaluation.
    confidence, predicted = scores.softmax(1).max(dim=1)
    edges = torch.linspace(0, 1, bins + 1)[1:-1]
    number = torch.bucketize(confidence, edges)
    weight = torch.bincount(number, minlength=bins)
    gap = torch.zeros(bins).index_add_(0, number, (predicted == targets).float() - confidence)
    return 100 * float(gap.abs().sum() / weight.sum())


def _top(scores: Tensor, targets: Tensor, k: int) -> float:
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    hits = int((best == targets[:, None]).sum())
    return 100 * hits / len(targets)


TASKS.register("classification")(Classification())
