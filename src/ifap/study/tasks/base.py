"""What a task is: how outputs are compared with targets, and how a network is measured.

The pruning loop never knows the task: it gets a loss and one number to watch.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ifap.data import Batches, Split, batches, logits
from ifap.errors import ConfigError, nearest
from ifap.forward import call, children, device_of, evaluation_mode, to_device
from ifap.registry import Registry


class Task(ABC):
    """Loss and metrics of one kind of problem."""

    primary: str
    """The metric to watch; higher is better, unless `sign` says otherwise."""
    sign: float = 1.0
    """-1 where a lower value of the metric is better."""
    names: tuple[str, ...] = ()
    """The metrics that may be watched, if there are several."""
    teaches: bool = True
    """Whether a teacher in evaluation computes what a network in training does, so that it can be copied."""
    reads: tuple[str, ...] = ()
    """Which outputs it reads where a network returns them by name; pruning need not keep the others."""

    def watching(self, metric: str | None) -> Task:
        """Return this task with another metric to watch, such as the one that a data set is known by.

        Raises
        ------
        ConfigError
            If the task has no such metric.
        """
        if metric in (None, self.primary):
            return self
        if metric not in self.names:
            raise ConfigError(f"metric '{metric}' is not one of this task: {nearest(str(metric), self.names)}")
        twin = copy.copy(self)
        twin.primary = str(metric)
        return twin

    def outputs(self, found: Any) -> tuple[str, ...] | None:
        """Return which of the outputs that a network returned are read, for `ifap.prune`; None stands for all."""
        return tuple(name for name in self.reads if name in children(found)) or None

    def losing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which an evaluated network returns what `loss` needs; most do so anyway."""
        return nullcontext()

    @abstractmethod
    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the training loss of a batch, a scalar."""

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return a split's metrics, `primary` and ``loss`` among them; calibration only if `bins` is given.

        `texts` is what the split holds beyond targets; most tasks need nothing of the kind. A task that keeps no
        outputs has an `evaluate` of its own instead.
        """
        raise NotImplementedError

    def evaluate(
        self, model: nn.Module, data: Split | Batches, batch_size: int, *, bins: int | None = None
    ) -> dict[str, float]:
        """Measure a network in evaluation mode, without gradients; its modes are put back.

        Returns the value of each metric by its name.

        Parameters
        ----------
        model : Module
            The network, on any device.
        data : Split or iterable of (inputs, targets)
            What to measure it on.
        batch_size : int
            Samples a batch of a `Split`.
        bins : int, optional
            Bins of the calibration error; it is left out without them.
        """
        where = device_of(model)
        outputs, targets = [], []
        with evaluation_mode(model), torch.no_grad():
            for inputs, expected in batches(data, batch_size):
                outputs.append(logits(call(model, to_device(inputs, where))).cpu())
                targets.append(expected.cpu())
        texts = getattr(data, "texts", None)
        further = {} if texts is None else {"texts": texts}  # a task that needs none need not take any
        return self.metrics(torch.cat(outputs), torch.cat(targets), bins=bins, **further)


TASKS: Registry[Task] = Registry("task", "ifap.study.tasks")
