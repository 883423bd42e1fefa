"""Data splits as types: a step that must not see the test split cannot be handed it by mistake.

The public code scored units, stopped its loop, picked its model and stopped distillation on the
test set. Here every prepared split carries its role, and scoring, stopping, choosing and
distilling call `refuse_test` on whatever they are given.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifap.arguments import shown
from ifap.errors import ConfigError, ScoreError, SplitError, TrainingError, first_line
from ifap.seeds import derive_seed

Role = Literal["train", "validation", "test"]
Inputs = Tensor | dict[str, Tensor]
"""Inputs of some samples: one tensor, or several by the names of the network's arguments."""


class Samples(Protocol):
    """Network inputs that are made when they are asked for, such as images that stay on disk."""

    @property
    def decodes(self) -> bool:
        """Whether reading is slow enough to be worth other processes."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, rows: Tensor) -> Inputs:
        """Return the inputs of some samples, always the same, shape (rows, ...)."""
        ...

    def augmented(self, rows: Tensor, seed: int) -> Inputs:
        """Return the inputs of some samples, changed at random by `seed` alone, shape (rows, ...)."""
        ...


class Targets(Protocol):
    """Targets that are made when they are asked for: masks of files, or a list of boxes of each image."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, rows: Tensor) -> Any:
        """Return the targets of some samples: a tensor, or a list with one item a sample."""
        ...


class Pairs(Samples, Protocol):
    """Samples whose targets change with them: where an image is mirrored, so are its boxes."""

    def pairs(self, rows: Tensor, seed: int | None) -> tuple[Any, Any]:
        """Return inputs and targets of some samples, both changed at random if there is a `seed`."""
        ...


class Unaugmented:
    """Samples that are never changed at random: texts, tables, and images of which a mirrored one would be another."""

    def augmented(self: Samples, rows: Tensor, seed: int) -> Any:
        """Return the samples as they are."""
        return self[rows]


class Named(Unaugmented):
    """Inputs of several named tensors, such as the tokens of texts and which of them count.

    `tensors` are by the names of the network's arguments, each of shape (samples, ...). Whole numbers may be kept in a
    small type: they are given out as int64. Raises a SplitError if there is no tensor, or they differ in length.
    """

    decodes = False

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise SplitError(f"named inputs must be of one length, at least one tensor: {lengths or 'none'}")
        self._tensors = dict(tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that they are given as."""
        return tuple(self._tensors)

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: _plain(tensor[rows]) for name, tensor in self._tensors.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()


@dataclass(frozen=True)
class Split:
    """Inputs and targets of one role.

    Parameters
    ----------
    role : {'train', 'validation', 'test'}
        What the samples may be used for.
    inputs : Tensor, shape (samples, ...), or Samples
        Network inputs, held in memory or made on demand. `Pairs` give their targets themselves.
    targets : Tensor, shape (samples, ...), or Targets
        What the task compares outputs with.
    texts : object, optional
        What a task needs beyond targets to measure a network, such as the texts that answers are
        compared in; see the task.
    """

    role: Role
    inputs: Tensor | Samples
    targets: Tensor | Targets
    texts: Any = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise SplitError(f"{self.role} split: {len(self.inputs)} inputs but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, rows: Tensor, seed: int | None = None) -> tuple[Any, Any]:
        """Return inputs and targets of some samples.

        Parameters
        ----------
        rows : Tensor, shape (batch,)
            Which samples.
        seed : int, optional
            Source of the split's own augmentation; a split held in memory has none.
        """
        pairs = getattr(self.inputs, "pairs", None)
        if pairs is not None:
            both: tuple[Any, Any] = pairs(rows, seed)
            return both
        augments = seed is not None and not isinstance(self.inputs, Tensor)
        inputs = self.inputs.augmented(rows, seed) if augments else self.inputs[rows]  # type: ignore[union-attr, arg-type]
        return inputs, self.targets[rows]

    def calibration(self, samples: int, batch_size: int, seed: int) -> CalibrationBatches:
        """Return batches of inputs for scoring, drawn without replacement by `seed`."""
        refuse_test(self, "scoring")
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:samples]
        return CalibrationBatches(self.inputs[rows], batch_size, self.role, self.targets[rows])


class CalibrationBatches:
    """Batches of network inputs, without targets, that remember the role of their split."""

    def __init__(self, inputs: Inputs, batch_size: int, role: Role, targets: Any = None) -> None:
        first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()), torch.empty(0))
        if len(first) == 0:
            raise ScoreError("calibration data are empty: give at least one sample")
        self._chunks = in_batches(inputs, batch_size)
        self._targets = None if targets is None else _cut(targets, batch_size)
        self.role = role

    @property
    def labelled(self) -> LabelledBatches:
        """The same batches, each with its targets."""
        if self._targets is None:
            raise ScoreError("these calibration batches were made without targets")
        return LabelledBatches(list(zip(self._chunks, self._targets, strict=True)), self.role)

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)


class LabelledBatches:
    """Batches of (inputs, targets) that remember the role of their split."""

    def __init__(self, pairs: list[tuple[Inputs, Any]], role: Role) -> None:
        self._pairs = pairs
        self.role = role

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def in_batches(inputs: Inputs, batch_size: int) -> list[Inputs]:
    """Divide inputs into batches."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(batch_size))
    parts = {name: tensor.split(batch_size) for name, tensor in inputs.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _cut(targets: Any, batch_size: int) -> Sequence[Any]:
    if isinstance(targets, Tensor):
        return targets.split(batch_size)
    return [targets[first : first + batch_size] for first in range(0, len(targets), batch_size)]


def refuse_test(data: object, purpose: str) -> None:
    """Raise if `data` is, or wraps, a test split.

    Looks at the ``role`` of the object and of the data set or loader inside it (``dataset``, ``loader``), so that a
    `torch.utils.data.DataLoader` over a split is recognised too. The SplitError names `purpose`.
    """
    seen: set[int] = set()
    stack = [data]
    while stack:
        item = stack.pop()
        if item is None or id(item) in seen or isinstance(item, Tensor):
            continue
        seen.add(id(item))
        if getattr(item, "role", None) == "test":
            raise SplitError(f"{purpose} must not see the test split: give the train or the validation split")
        stack.extend(getattr(item, name, None) for name in ("dataset", "loader"))


def loader_workers() -> int:
    """Return how many processes decode images: ``IFAP_LOADER_WORKERS``, else none beside this one."""
    value = os.environ.get("IFAP_LOADER_WORKERS", "")
    return int(value) if value.isdigit() else 0


Augment = Callable[[Any, torch.Generator], Any]
Batches = Iterable[tuple[Any, Any]]


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
    for inputs, targets in pairs(read, "training and validation data"):
        yield (inputs if change is None or generator is None else change(inputs, generator)), targets


def pairs(data: Iterable[Any], what: str) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of `data`, and raise a `SplitError` if one is no pair of inputs and targets."""
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise SplitError(f"{what} must give pairs of inputs and targets, not {shown(batch)}")
        yield batch[0], batch[1]


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
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    if not isinstance(outputs, (tuple, list)) or not outputs:
        raise TrainingError(f"outputs of type {type(outputs).__name__} hold no scores: give a loss that reads them")
    return logits(outputs[0])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name.

    Raises a ConfigError if it is missing, cannot be read or is damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: not a valid safetensors file ({first_line(error)}); safetensors.torch.save_file writes one"
        ) from None
