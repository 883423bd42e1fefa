"""Sets of texts: raw samples with one file a split, prepared once as the tokens of every network that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ifap.data import Named, Role, Split
from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study.config.data import DatasetOptions, ModelOptions, TextOptions
from ifap.study.data.base import Dataset, Splits, by_role, check_shares, read_split, save_split, stratified_rows
from ifap.study.data.passages import Passages, Questions, from_lines, to_lines
from ifap.study.data.tokens import Words, open_words
from ifap.study.paths import Cell

TextTask = Literal["text_classification", "text_regression", "question_answering", "cloze"]


@dataclass(frozen=True)
class Texts:
    """Raw texts of one role, or pairs of texts.

    Parameters
    ----------
    first : tuple of str
        The texts.
    second : tuple of str or None
        What each is compared with, if these are pairs.
    targets : Tensor, shape (samples,)
        Classes as int64, or scores as float32.

    Raises
    ------
    ResultsError
        If they differ in length, or the targets are not of this type and shape.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    targets: Tensor

    def __post_init__(self) -> None:
        lengths = {len(self.first), len(self.targets), len(self.first if self.second is None else self.second)}
        if len(lengths) > 1 or self.targets.dtype not in (torch.int64, torch.float32) or self.targets.dim() != 1:
            kind = f"{str(self.targets.dtype).removeprefix('torch.')} {tuple(self.targets.shape)}"
            raise ResultsError(f"{len(self.first)} texts with targets {kind}: expected int64 or float32, one a text")

    def __len__(self) -> int:
        return len(self.first)

    @property
    def strata(self) -> Tensor:
        """What a split keeps in proportion: classes, or the lower and upper half of the range of scores."""
        if self.targets.dtype == torch.int64:
            return self.targets
        middle = (self.targets.min() + self.targets.max()) / 2
        return (self.targets > middle).long()

    def take(self, rows: Tensor) -> Texts:
        """Return some of the samples."""
        chosen = rows.tolist()
        first, second = (
            None if texts is None else tuple(texts[row] for row in chosen) for texts in (self.first, self.second)
        )
        return Texts(first or (), second, self.targets[rows])

    def texts(self) -> list[str]:
        """Return every text once, to make a vocabulary of."""
        return list(dict.fromkeys((*self.first, *(self.second or ()))))


RawText = Texts | Questions
ReadText = Callable[[Path], dict[Role, RawText]]


@dataclass(frozen=True)
class TextSpec(Dataset):
    """A set of texts.

    Parameters
    ----------
    name, classes, twin
        See `Dataset`; `classes` is 1 for scores, 2 (start and end) for parts of a passage.
    task : str
        The task that it is made for.
    metric : str
        What is watched and printed, such as the paper's Table V does.
    read : callable
        ``read(folder)`` returns the raw samples of the roles that the data set itself defines.
    """

    task: TextTask
    metric: str
    read: ReadText

    def is_made_for(self, task: str) -> bool:
        """Whether this is its task."""
        return task == self.task

    def watched(self, task: str) -> str | None:
        """Return the data set's metric."""
        return self.metric

    def labels(self, options: DatasetOptions) -> int:
        """Return how many classes the data have: a twin may have fewer than the real set."""
        fewer = options.synthetic is not None and self.task == "text_classification"
        return options.synthetic.classes if fewer and options.synthetic else self.classes

    def prepare(self, options: DatasetOptions, folder: Path) -> dict[Role, RawText]:
        """Return the raw samples of each role; validation data are split off the training samples.

        Raises
        ------
        ConfigError
            If the data do not have the classes that this data set claims, or the options ask for
            a split that the data set has.
        """
        found = self.read(folder)
        for role, raw in found.items():
            if isinstance(raw, Texts) and self.task == "text_classification":
                self._check_classes(role, raw.targets, self.labels(options))
        check_shares(self.name, found, options)
        return by_role(found, stratified_rows(found["train"].strata, options))

    def encode(
        self, options: DatasetOptions, raw: Path, folder: Path, readers: Mapping[str, TextOptions], tasks: Sequence[str]
    ) -> tuple[Splits, dict[str, Any]]:
        """Write the tokens of every network, and each network's tokenizer; see `Dataset.encode`."""
        samples = self.prepare(options, raw)
        learned = samples["train"].texts()
        words = {model: open_words(reader, model, learned) for model, reader in readers.items()}
        splits: Splits = {}
        for role, part in samples.items():
            cut, checksum = _write(folder / f"{role}.safetensors", self.name, role, part, words)
            splits[role] = {"samples": len(part), "cut": cut, "sha256": checksum}
            if isinstance(part, Texts) and part.targets.dtype == torch.int64:
                splits[role]["class_counts"] = torch.bincount(part.targets, minlength=self.labels(options)).tolist()
        for model, own in words.items():
            # The settings of the last batch say nothing about the tokenizer.
            own.tokenizer.no_truncation()
            own.tokenizer.no_padding()
            atomic_write_text(folder / f"tokenizer-{model}.json", own.tokenizer.to_str(pretty=True) + "\n")
        return splits, {
            "classes": self.labels(options),
            "readers": {
                model: {"vocab_size": own.size, "max_length": own.max_length, "inputs": list(own.family.inputs)}
                for model, own in words.items()
            },
        }

    def load_for(self, cell: Cell, options: ModelOptions | TextOptions, path: Path, role: Role) -> Split:
        """See `Dataset.load_for`."""
        return self.load(path, role, cell.model)

    def load(self, path: Path, role: Role, model: str) -> Split:
        """Return one prepared split as the inputs of a network; raises what `Dataset.load_for` does."""
        tensors, about = read_split(
            path, self.name, role, lambda names: any(name.endswith(".inputs.input_ids") for name in names)
        )
        start = f"{model}.inputs."
        inputs = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        if not inputs:
            raise ResultsError(f"{path} has no tokens of model '{model}': run the fetch stage again")
        texts = None
        if "questions" in tensors:
            questions = from_lines(bytes(tensors["questions"].numpy()))
            texts = Passages(questions, tensors[f"{model}.owner"], tensors[f"{model}.offsets"])
        return Split(role, Named({name: inputs[name] for name in about["inputs"][model]}), tensors[f"{model}.targets"],
                     texts)  # fmt: skip


def _write(path: Path, name: str, role: Role, part: RawText, words: Mapping[str, Words]) -> tuple[dict[str, int], str]:
    """Write one split; returns how many texts were cut, or read in several windows, for each network, and the hash."""
    tensors: dict[str, Tensor] = {}
    cut: dict[str, int] = {}
    if isinstance(part, Questions):
        tensors["questions"] = torch.frombuffer(bytearray(to_lines(part.items)), dtype=torch.uint8)
    for model, own in words.items():
        if isinstance(part, Questions):
            inputs, owner, offsets, targets = own.windows(part.items)
            tensors |= {f"{model}.owner": owner, f"{model}.offsets": offsets}
            cut[model] = len(owner) - len(part)
        else:
            inputs, cut[model] = own.encode(part.first, part.second)
            targets = part.targets
        tensors |= {f"{model}.inputs.{key}": tensor for key, tensor in inputs.items()}
        tensors[f"{model}.targets"] = targets.clone()
    about = {"name": name, "role": role, "inputs": {model: list(own.family.inputs) for model, own in words.items()}}
    return cut, save_split(path, tensors, about)
