"""What a task is: how outputs are compared with targets, and how a network is measured.

The pruning loop never knows the task: it gets a loss and one number to watch.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ifap.errors import ConfigError, nearest
from ifap.registry import Registry
from ifap.runtime import derive_seed, loader_workers
from ifap.splits import Split
from ifap.tracing import call, children, device_of, evaluation_mode, to_device

Augment = Callable[[Any, torch.Generator], Any]
Batches = Iterable[tuple[Any, Any]]


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

    @abstractmethod
    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return a split's metrics, `primary` and ``loss`` among them; calibration only if `bins` is given.

        `texts` is what the split holds beyond targets; most tasks need nothing of the kind.
        """

    def evaluate(
        self, model: nn.Module, data: Split | Batches, batch_size: int, *, bins: int | None = None
    ) -> dict[str, float]:
        """Measure a network in evaluation mode, without gradients; its modes are put back.

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

        Returns
        -------
        dict
            Metric names and values.
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


TASKS: Registry[Task] = Registry("task", "ifap.tasks")


def batches(
    data: Split | Batches,
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    augment: bool | Augment | None = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Any, Any]]:
    """Yield batches of (inputs, targets).

    Parameters
    ----------
    data : Split or iterable of (inputs, targets)
        An iterable keeps its own batches and order.
    batch_size : int
        Samples a batch; a single left-over sample joins the batch before it, because batch norm
        cannot train on one sample.
    generator : torch.Generator, optional
        Shuffles a split and seeds augmentation; without it the order stays and nothing is changed.
    augment : bool or callable, optional
        True for the split's own augmentation, or ``augment(inputs, generator)`` for another.
    share : tuple of int, optional
        Which process this is and how many there are: only its part of every batch of a split is
        read. Parts are equal, so the last few samples of an epoch may be left out.
    """
    own = augment is True
    read = data if not isinstance(data, Split) else _batches_of(data, batch_size, generator, own=own, share=share)
    change = augment if callable(augment) else None
    for inputs, targets in read:
        yield (inputs if change is None or generator is None else change(inputs, generator)), targets


def chunks(
    total: int, batch_size: int, generator: torch.Generator | None = None, *, share: tuple[int, int] = (0, 1)
) -> list[Tensor]:
    """Return the rows of each batch; see `batches`."""
    order = torch.arange(total) if generator is None else torch.randperm(total, generator=generator)
    rows = list(torch.split(order, batch_size))
    if len(rows) > 1 and len(rows[-1]) == 1:
        last = rows.pop()
        rows[-1] = torch.cat([rows[-1], last])
    rank, processes = share
    if processes == 1:
        return rows
    if rank and generator is not None:
        # What is drawn from here on, such as augmentation, differs between the processes.
        generator.manual_seed(derive_seed(generator.initial_seed(), rank))
    # Batch norm cannot train on a part of one sample either.
    shared = [batch[: len(batch) // processes * processes] for batch in rows if len(batch) >= 2 * processes]
    return [batch[rank::processes] for batch in shared]


class _Reading(Dataset[tuple[Any, Any]]):
    """The batches of one pass over a split; item n is batch n."""

    def __init__(self, split: Split, plan: list[tuple[Tensor, int | None]]) -> None:
        self._split, self._plan = split, plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self._split.read(*self._plan[number])


def _batches_of(
    split: Split, batch_size: int, generator: torch.Generator | None, *, own: bool, share: tuple[int, int]
) -> Iterable[tuple[Any, Any]]:
    rows = chunks(len(split), batch_size, generator, share=share)
    # One seed a batch, drawn here: what is read does not depend on how many processes read it.
    seeds = [_draw(generator) if own and generator is not None else None for _ in rows]
    reading = _Reading(split, list(zip(rows, seeds, strict=True)))
    workers = loader_workers() if getattr(split.inputs, "decodes", False) else 0
    if not workers:
        return (reading[number] for number in range(len(reading)))
    # Its own generator: the loader would otherwise draw from the one that seeds dropout.
    return DataLoader(reading, batch_size=None, num_workers=workers, generator=torch.Generator())


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def logits(outputs: Any) -> Tensor:
    """Return the scores inside what a network returned: the tensor, ``.logits`` or the first item.

    Scores of the start and the end of a span are returned as one tensor of shape (batch, 2, tokens).
    """
    if isinstance(outputs, Tensor):
        return outputs
    if hasattr(outputs, "start_logits"):
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
    if hasattr(outputs, "logits"):
        return logits(outputs.logits)
    if isinstance(outputs, Mapping):
        return logits(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())))
    return logits(outputs[0])
