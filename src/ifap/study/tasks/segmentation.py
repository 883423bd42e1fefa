"""Semantic segmentation: cross-entropy of each pixel, and the mean overlap of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ifap.data import Batches, Split, batches, logits
from ifap.errors import TrainingError
from ifap.forward import call, device_of, evaluation_mode, to_device
from ifap.study.tasks.base import TASKS, Task

IGNORED = 255
"""What a target has for pixels that do not count."""
AUXILIARY_WEIGHT = 0.5  # as torchvision's own training has it


class Segmentation(Task):
    """One class a pixel. Scores of another size than the targets are resized first."""

    primary = "miou"
    names = ("miou", "pixel_accuracy")

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy in nats over pixels that count.

        Parameters
        ----------
        outputs : Tensor, mapping or object with ``.logits``
            Scores of shape (batch, classes, height, width), under ``out`` in a mapping. Those under
            ``aux``, of a head that is used in training alone, add half of their own loss.
        targets : Tensor, int64, shape (batch, height, width)
            Class numbers; 255 for pixels that do not count.
        label_smoothing : float, optional
            As for classes of images.
        """
        loss = _cross_entropy(scores_of(outputs), targets, label_smoothing)
        if isinstance(outputs, Mapping) and "aux" in outputs:
            return loss + AUXILIARY_WEIGHT * _cross_entropy(outputs["aux"], targets, label_smoothing)
        return loss

    def evaluate(
        self, model: nn.Module, data: Split | Batches, batch_size: int, *, bins: int | None = None
    ) -> dict[str, float]:
        """Measure a segmenter; see `Task.evaluate`. Scores are not kept: they are larger than the images.

        ``miou`` in percent, the mean over classes of overlap over union (Jaccard's index) of all pixels, without
        classes that are nowhere; ``pixel_accuracy`` in percent; ``loss`` in nats, a mean over pixels.
        """
        where, measured = device_of(model), _Measured()
        with evaluation_mode(model), torch.no_grad():
            for inputs, expected in batches(data, batch_size):
                scores = scores_of(call(model, to_device(inputs, where)))
                measured.add(self, scores.detach().float().cpu(), expected.cpu())
        return measured.result()


def scores_of(outputs: Any) -> Tensor:
    """Return the scores inside what a segmenter returned: the tensor, ``out``, ``.logits`` or the first item."""
    return logits(outputs["out"] if isinstance(outputs, Mapping) and "out" in outputs else outputs)


class _Measured:
    """The metrics of batches that come one after the other."""

    def __init__(self) -> None:
        self._overlap: Any = None
        self._loss, self._pixels = 0.0, 0

    def add(self, task: Segmentation, scores: Tensor, targets: Tensor) -> None:
        """Take note of a batch."""
        from torchmetrics.classification import MulticlassJaccardIndex  # slow to import, and only this needs it

        if self._overlap is None:
            self._overlap = MulticlassJaccardIndex(scores.shape[1], ignore_index=IGNORED, average="macro")
        pixels = int((targets != IGNORED).sum())
        if not pixels:
            return
        self._overlap.update(_resized(scores, targets).argmax(1), targets)
        self._loss += float(task.loss(scores, targets)) * pixels
        self._pixels += pixels

    def result(self) -> dict[str, float]:
        """Return the metrics."""
        if not self._pixels:
            raise TrainingError("measuring a segmenter needs at least one pixel that counts")
        confusion = self._overlap.confmat
        return {
            "miou": 100 * float(self._overlap.compute()),
            "pixel_accuracy": 100 * float(confusion.diagonal().sum() / confusion.sum()),
            "loss": self._loss / self._pixels,
        }


def _resized(scores: Tensor, targets: Tensor) -> Tensor:
    size = targets.shape[-2:]
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def _cross_entropy(scores: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    total = F.cross_entropy(
        _resized(scores, targets), targets, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    # Without any pixel that counts the loss is zero, and not the mean of nothing.
    return total / (targets != IGNORED).sum().clamp(min=1)


TASKS.register("segmentation")(Segmentation())
