"""Image classification: cross-entropy, top-1, top-5 and the expected calibration error."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.tasks.base import TASKS, Task, logits


class Classification(Task):
    """One class a sample."""

    primary = "top1"

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy in nats; `targets` are class numbers, shape (batch,)."""
        return F.cross_entropy(logits(outputs), targets, label_smoothing=label_smoothing)

    def metrics(self, outputs: Any, targets: Any, *, bins: int = 15) -> dict[str, float]:
        """Return ``top1``, ``top5`` and ``ece`` in percent and ``loss`` in nats.

        ``ece`` is the mean distance between confidence and accuracy over `bins` equal bins of
        confidence, weighted by the samples in each (Guo et al. 2017).
        """
        # torchmetrics takes seconds to import, which listing the tasks should not.
        from torchmetrics.functional.classification import multiclass_calibration_error

        scores = logits(outputs).detach().float().cpu()
        targets = targets.cpu()
        probabilities = scores.softmax(1)
        error = multiclass_calibration_error(probabilities, targets, num_classes=scores.shape[1], n_bins=bins)
        return {
            "top1": _top(scores, targets, 1),
            "top5": _top(scores, targets, 5),
            "loss": float(F.cross_entropy(scores, targets)),
            "ece": 100 * float(error),
        }


def _top(scores: Tensor, targets: Tensor, k: int) -> float:
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    hits = int((best == targets[:, None]).sum())
    return 100 * hits / len(targets)


TASKS.register("classification")(Classification())
