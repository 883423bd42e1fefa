"""Scores of texts, such as how alike two of them are: Pearson's and Spearman's correlation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.data import logits
from ifap.study.tasks.base import TASKS, Task


class TextRegression(Task):
    """One number a text, or pair of texts."""

    primary = "pearson"
    names = ("pearson", "spearman")
    reads = ("logits",)

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean squared distance; `targets` are scores, shape (batch,). Nothing is smoothed."""
        return F.mse_loss(logits(outputs).squeeze(-1), targets)

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return ``pearson`` and ``spearman``, correlations times 100, and ``loss``, the mean squared distance.

        The correlation of outputs that are all the same is 0: they say nothing about the targets.
        """
        from scipy.stats import pearsonr, spearmanr  # slow to import, and only this needs them

        scores, targets = logits(outputs).detach().float().cpu().squeeze(-1), targets.cpu().float()
        return {
            "pearson": _correlation(pearsonr, scores, targets),
            "spearman": _correlation(spearmanr, scores, targets),
            "loss": float(F.mse_loss(scores, targets)),
        }


def _correlation(measure: Callable[..., Any], scores: Tensor, targets: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant input, which is dealt with here
        value = float(measure(scores.double().numpy(), targets.double().numpy())[0]) if len(scores) > 1 else 0.0
    return 0.0 if math.isnan(value) else 100 * value


TASKS.register("text_regression")(TextRegression())
