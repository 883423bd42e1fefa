"""Data splits as types: a step that must not see the test split cannot be handed it by mistake.

The public code scored units, stopped its loop, picked its model and stopped distillation on the
test set. Here every prepared split carries its role, and scoring, stopping, choosing and
distilling call `refuse_test` on whatever they are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ifap.errors import ScoreError, SplitError

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


class Named:
    """Inputs of several named tensors, such as the tokens of texts and which of them count.

    Parameters
    ----------
    tensors : mapping of str to Tensor, each of shape (samples, ...)
        By the names of the network's arguments. Whole numbers may be kept in a small type: they are
        given out as int64.

    Raises
    ------
    SplitError
        If there is none, or they differ in length.
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

    def augmented(self, rows: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the same as without augmentation: there is none for texts."""
        return self[rows]


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
        self._chunks = _chunks(inputs, batch_size)
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


def _chunks(inputs: Inputs, batch_size: int) -> Sequence[Inputs]:
    if isinstance(inputs, Tensor):
        return inputs.split(batch_size)
    parts = {name: tensor.split(batch_size) for name, tensor in inputs.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _cut(targets: Any, batch_size: int) -> Sequence[Any]:
    if isinstance(targets, Tensor):
        return targets.split(batch_size)
    return [targets[first : first + batch_size] for first in range(0, len(targets), batch_size)]


def refuse_test(data: object, purpose: str) -> None:
    """Raise if `data` is, or wraps, a test split.

    Looks at the ``role`` of the object and of the data set or loader inside it (``dataset``,
    ``loader``), so that a `torch.utils.data.DataLoader` over a split is recognised too.

    Raises
    ------
    SplitError
        If a test split is found; the message names the purpose.
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
