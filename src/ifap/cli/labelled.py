"""Read labelled samples to recover on: photos in class folders, texts with labels, tensors; and measure accuracy."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifap.cli.samples import image_files, named_inputs, open_image, preparation, read_text, tokens
from ifap.data import Named, Role, Samples, Split, Unaugmented, batches, logits, read_tensors
from ifap.errors import ConfigError, TrainingError, counted
from ifap.forward import call, device_of, evaluation_mode, to_device
from ifap.seeds import derive_seed

VALIDATION = 5
"""One in so many samples of each class is kept apart to validate on."""
_COLUMNS = ["text", "label"]

OnRead = Callable[[int], None]
"""Called with the number of samples that were read."""


@dataclass(frozen=True)
class Labelled:
    """Samples with the numbers of their classes.

    Parameters
    ----------
    inputs : Tensor, shape (samples, ...), or Samples
        Inputs of the network.
    targets : Tensor, shape (samples,)
        The number of the class of each sample.
    """

    inputs: Tensor | Samples
    targets: Tensor

    def whole(self) -> Split:
        """Return all samples as one validation split."""
        return Split("validation", self.inputs, self.targets)

    def parts(self) -> tuple[Split, Split]:
        """Return a training and a validation split, always the same: of every class one in five is kept apart.

        Raises a ConfigError if there is a single sample.
        """
        if len(self.targets) < 2:
            raise ConfigError("--recover: give at least 2 samples, one to train on and one to validate on")
        order = torch.randperm(len(self.targets), generator=torch.Generator().manual_seed(derive_seed(0, "parts")))
        order = order[torch.argsort(self.targets[order], stable=True)]
        apart = torch.arange(len(order)) % VALIDATION == VALIDATION - 1
        if not apart.any():
            apart[-1] = True
        rows = order[~apart], order[apart]
        train, validation = (
            Split(role, _Part(self.inputs, part), self.targets[part]) for role, part in zip(_ROLES, rows, strict=True)
        )
        return train, validation


_ROLES: tuple[Role, Role] = ("train", "validation")


class _Part(Unaugmented):
    """Some rows of samples."""

    def __init__(self, inputs: Tensor | Samples, rows: Tensor) -> None:
        self._inputs, self._rows = inputs, rows
        self.decodes = getattr(inputs, "decodes", False)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> Any:
        return self._inputs[self._rows[rows]]


class Photos(Unaugmented):
    """Photos that are decoded when they are read.

    Each is also decoded once at the start, so that a broken one is found then: it raises a ConfigError. `prepare` makes
    a tensor of an image. `on_read` is told of each photo that is decoded at the start.
    """

    decodes = True

    def __init__(self, files: Sequence[Path], prepare: Callable[[Any], Tensor], on_read: OnRead | None = None) -> None:
        self._files, self._prepare = files, prepare
        for file in files:
            open_image(file, lambda image: None)
            if on_read is not None:
                on_read(1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([open_image(self._files[row], self._prepare) for row in rows.tolist()])


class Watched(Unaugmented):
    """Samples that tell `on_read` how many of them are read."""

    def __init__(self, inputs: Tensor | Samples, on_read: OnRead) -> None:
        self._inputs, self._on_read = inputs, on_read
        self.decodes = getattr(inputs, "decodes", False)

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, rows: Tensor) -> Any:
        self._on_read(len(rows))
        return self._inputs[rows]


class Accuracy:
    """Measure the accuracy of a classifier on a split, in percent; a ``validate`` of `ifap.prune`."""

    def __init__(self, split: Split, batch_size: int = 64) -> None:
        self.dataset, self._batch_size = split, batch_size
        self.metric = f"accuracy on {counted(len(split), 'sample')} (%)"

    def __call__(self, model: nn.Module) -> float:
        """Return the share of samples whose class has the highest score, times 100."""
        right, where = 0, device_of(model)
        with torch.no_grad(), evaluation_mode(model):
            for inputs, targets in batches(self.dataset, self._batch_size):
                found = logits(call(model, to_device(inputs, where))).argmax(dim=-1)
                right += int((found == targets.to(where)).sum())
        return 100.0 * right / len(self.dataset)


def read_labelled(
    path: Path,
    network: nn.Module,
    builder: str = "",
    tokenizer: Path | None = None,
    processor: Path | None = None,
    length: int | None = None,
    on_read: OnRead | None = None,
) -> Labelled:
    """Read labelled samples for a classifier.

    `path` is a folder with one folder of images for each class, a ``.csv`` file with the columns ``text`` and
    ``label``, or a ``.safetensors`` file with a tensor ``labels`` beside the inputs. `on_read` is told how many samples
    were checked or read. See `ifap.cli.samples.read_samples` for the other arguments.

    If the network's configuration lists the names of all classes, they have the numbers that it gives them. Else names
    that are whole numbers are the numbers of their classes; other names are numbered in their order, one for each
    output. Raises a ConfigError if samples or labels do not fit the network.
    """
    if not path.exists():
        raise ConfigError(f"{path}: file not found")
    if path.is_dir():
        files = {folder.name: image_files(folder) for folder in _class_folders(path)}
        every = [file for some in files.values() for file in some]
        inputs: Tensor | Samples = Photos(every, preparation(network, builder, processor), on_read)
        labels = [name for name, some in files.items() for _ in some]
    elif path.suffix == ".csv":
        texts, labels = _table(path)
        inputs = Named(tokens(path, texts, network, tokenizer, length))
    elif path.suffix == ".safetensors":
        inputs, labels = _stored(path, network)
    else:
        raise ConfigError(
            f"{path}: give a folder of class folders, a .csv file of texts and labels or a .safetensors file"
        )
    numbers = _numbers(sorted(set(labels)), _class_count(network, inputs, path), network, path)
    if on_read is not None:
        inputs = Watched(inputs, on_read)
    return Labelled(inputs, torch.tensor([numbers[label] for label in labels]))


# --- files ----------------------------------------------------------------------------------------


def _class_folders(path: Path) -> list[Path]:
    found = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not found:
        raise ConfigError(f"{path}: holds no folder: give one folder of images for each class, such as {path / 'cat'}")
    return found


def _table(path: Path) -> tuple[list[str], list[str]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    texts, labels = [], []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if sorted(header) != sorted(_COLUMNS):
            raise ConfigError(f"{path}: line 1 must name the columns: text,label")
        for row in reader:
            if not row:
                continue
            if len(row) != len(_COLUMNS) or not all(value.strip() for value in row):
                raise ConfigError(f"{path}: line {reader.line_num} must hold a text and a label, and nothing else")
            texts.append(row[header.index("text")])
            labels.append(row[header.index("label")].strip())
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: {error}") from None
    if not texts:
        raise ConfigError(f"{path}: holds no text")
    return texts, labels


def _stored(path: Path, network: nn.Module) -> tuple[Tensor | Samples, list[str]]:
    tensors = read_tensors(path)
    labels = tensors.pop("labels", None)
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        raise ConfigError(f"{path}: no tensor 'labels' with one whole number for each sample")
    found = named_inputs(path, tensors, network)
    inputs = found if isinstance(found, Tensor) else Named(found)
    if len(inputs) != len(labels):
        raise ConfigError(f"{path}: {counted(len(inputs), 'sample')}, but {counted(len(labels), 'label')}")
    return inputs, [str(number) for number in labels.tolist()]


# --- classes --------------------------------------------------------------------------------------


def _class_count(network: nn.Module, inputs: Tensor | Samples, path: Path) -> int:
    """Return how many classes a network tells apart."""
    try:
        with torch.no_grad(), evaluation_mode(network):
            found = call(network, to_device(inputs[torch.tensor([0])], device_of(network)))
    except Exception as error:  # any error of the user's code
        raise ConfigError(f"{path}: the network does not run on its samples: {error}") from error
    try:
        scores = logits(found)
    except (TrainingError, StopIteration):
        raise ConfigError(f"{path}: labels need a classifier: the network returns no scores of classes") from None
    if scores.dim() != 2:
        shape = tuple(scores.shape)
        raise ConfigError(f"{path}: labels need a classifier: the network's output has the shape {shape}")
    return int(scores.shape[1])


def _numbers(names: list[str], classes: int, network: nn.Module, path: Path) -> dict[str, int]:
    """Return the number of each class by its name."""
    listed = getattr(getattr(network, "config", None), "label2id", None)
    if isinstance(listed, Mapping) and all(name in listed for name in names):
        return {name: int(listed[name]) for name in names}
    if all(name.lstrip("-").isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
        wrong = [name for name, number in numbers.items() if not 0 <= number < classes]
        if wrong:
            known = f"the classes 0 to {classes - 1}" if classes > 1 else "the class 0 only"
            raise ConfigError(f"{path}: class {wrong[0]} does not exist: the network has {known}")
        return numbers
    if len(names) != classes:
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise ConfigError(
            f"{path}: {counted(len(names), 'class', 'classes')} ({some}), but the network has {classes}: "
            f"name each class by its number (0 to {classes - 1}), or give samples of every class"
        )
    return {name: number for number, name in enumerate(names)}
