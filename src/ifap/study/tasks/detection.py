"""Object detection: the network's own losses, and mAP as COCO measures it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.passes import modes
from ifap.data import Batches, Split, batches
from ifap.errors import TrainingError
from ifap.forward import call, device_of, evaluation_mode, map_tensors, to_device
from ifap.seeds import seeded
from ifap.study.tasks.base import TASKS, Task


class Detection(Task):
    """Boxes with classes, as many an image as it has.

    A network gets, in training, images and what they teach, and returns a dict of losses; in
    evaluation it gets images and returns a list with ``boxes``, ``labels`` and ``scores`` of each.
    """

    primary = "map"
    names = ("map", "map50", "map75")

    def losing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which a detector returns its losses, although it is evaluated."""
        return modes(model, training=True)

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the sum of the losses that the network has computed; see `own_loss`."""
        return own_loss(outputs)

    def evaluate(
        self, model: nn.Module, data: Split | Batches, batch_size: int, *, bins: int | None = None
    ) -> dict[str, float]:
        """Measure a detector; see `Task.evaluate`.

        ``loss`` is what the network says in training about the same images, with norms and dropouts as
        in evaluation. What it draws at random for that, such as which regions count, is always the same.
        """
        where, metric = device_of(model), _mean_average_precision()
        total, count = 0.0, 0
        with evaluation_mode(model), torch.no_grad(), seeded(0, where):
            for inputs, expected in batches(data, batch_size):
                placed = to_device(inputs, where)
                found = call(model, placed[0])
                metric.update(map_tensors(found, _plain), map_tensors(expected, _plain))
                with modes(model, training=True):
                    total += float(own_loss(call(model, placed))) * len(expected)
                count += len(expected)
        if not count:
            raise TrainingError("measuring a detector needs at least one batch of images")
        return {**_percent(metric.compute()), "loss": total / count}


def own_loss(outputs: Any) -> Tensor:
    """Return the sum of the losses that a network in training has returned by name, or its one loss.

    Raises
    ------
    TrainingError
        If it returned something else, as it does in evaluation.
    """
    if isinstance(outputs, Tensor) and outputs.dim() == 0:
        return outputs
    if not isinstance(outputs, Mapping) or not outputs:
        raise TrainingError(f"the network returned {type(outputs).__name__} in training, not its losses by name")
    return torch.stack([value.reshape(()) for value in outputs.values()]).sum()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _mean_average_precision() -> Any:
    from torchmetrics.detection import MeanAveragePrecision  # slow to import, and only this needs it

    metric = MeanAveragePrecision(iou_type="bbox", backend="pycocotools")
    metric.warn_on_many_detections = False
    return metric


def _percent(found: Mapping[str, Tensor]) -> dict[str, float]:
    # -1 stands for no box of any class: nothing was found then either.
    names = {"map": "map", "map50": "map_50", "map75": "map_75"}
    return {name: 100 * max(0.0, float(found[theirs])) for name, theirs in names.items()}


TASKS.register("detection")(Detection())
