"""Classification of texts and of pairs of texts: accuracy, F1, Matthews' correlation and the calibration error."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.data import logits
from ifap.study.tasks.base import TASKS, Task
from ifap.study.tasks.classification import calibration_error


class TextClassification(Task):
    """One class a text, or pair of texts."""

    primary = "accuracy"
    names = ("accuracy", "f1", "mcc")
    reads = ("logits",)

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy in nats; `targets` are class numbers, shape (batch,)."""
        return F.cross_entropy(logits(outputs), targets, label_smoothing=label_smoothing)

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return the metrics of a split.

        ``accuracy`` in percent; ``f1`` in percent, of class 1 if there are two classes, else the mean over classes;
        ``mcc``, Matthews' correlation times 100; ``loss`` in nats; and, if `bins` is given, ``ece`` in percent (see
        `ifap.study.tasks.classification`).
        """
        from sklearn.metrics import f1_score, matthews_corrcoef  # slow to import, and only this needs them

        scores, targets = logits(outputs).detach().float().cpu(), targets.cpu()
        best = scores.argmax(1)
        average = "binary" if scores.shape[1] == 2 else "macro"
        found = {
            "accuracy": 100 * float((best == targets).double().mean()),
            "f1": 100 * float(f1_score(targets.numpy(), best.numpy(), average=average, zero_division=0.0)),
            "mcc": 100 * float(matthews_corrcoef(targets.numpy(), best.numpy())),
            "loss": float(F.cross_entropy(scores, targets)),
        }
        return found if bins is None else {**found, "ece": calibration_error(scores, targets, bins)}


TASKS.register("text_classification")(TextClassification())
