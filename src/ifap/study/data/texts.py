"""Sets of texts: raw samples with one file a split, prepared once as the tokens of every network that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ifap.data import Named, Role, Split
from ifap.errors import ConfigError, ResultsError
from ifap.files import atomic_write_bytes, atomic_write_text, sha256_file
from ifap.study.config.data import DatasetOptions, TextOptions
from ifap.study.data.base import (
    MANIFEST_VERSION,
    ROLES,
    Twin,
    check_shares,
    content_hash,
    data_checksum,
    read_split,
    stratified_rows,
)
from ifap.study.data.origins import PLACES, Place
from ifap.study.data.passages import Passages, Questions, from_lines, to_lines
from ifap.study.data.tokens import Words, open_words

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
class TextSpec:
    """A set of texts.

    Parameters
    ----------
    name : str
        Its name in ``params.yaml``, under which `ifap.study.data.origins` knows where it comes from.
    task : str
        The task that it is made for.
    classes : int
        Number of classes; 1 for scores, 2 (start and end) for parts of a passage.
    metric : str
        What is watched and printed, such as the paper's Table V does.
    read : callable
        ``read(folder)`` returns the raw samples of the roles that the data set itself defines.
    twin : callable
        ``twin(folder, classes, per_class, seed)`` writes a synthetic set in the same format.
    """

    name: str
    task: TextTask
    classes: int
    metric: str
    read: ReadText
    twin: Twin

    @property
    def place(self) -> Place:
        """What is known about it without reading it: title, licence and sources."""
        return PLACES[self.name]

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
        rows = stratified_rows(found["train"].strata, options)
        return {role: found[role] if role in found and role != "train" else found["train"].take(rows[role])
                for role in ROLES}  # fmt: skip

    def load(self, path: Path, role: Role, model: str) -> Split:
        """Return one prepared split as the inputs of a network.

        Parameters
        ----------
        path : Path
            The split's file.
        role : {'train', 'validation', 'test'}
            What the file must hold.
        model : str
            The network that reads it.

        Raises
        ------
        ResultsError
            If the file is missing or damaged, or holds no tokens of this network.
        SplitError
            If the file holds another role or another data set.
        """
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

    def _check_classes(self, role: Role, targets: Tensor, classes: int) -> None:
        found = sorted(set(targets.tolist()))
        wanted = range(classes)
        if (found != list(wanted)) if role == "train" else not set(found) <= set(wanted):
            raise ConfigError(
                f"data set '{self.name}', {role} split claims {classes} classes, its data have {len(found)}: "
                f"{', '.join(map(str, found[:10]))}"
            )


def write_texts(
    spec: TextSpec,
    options: DatasetOptions,
    readers: Mapping[str, TextOptions],
    config: Mapping[str, Any],
    source: str,
    raw: Path,
    folder: Path,
) -> dict[str, Any]:
    """Prepare a set of texts and write one file a split, each network's tokenizer and, last, ``manifest.json``.

    Parameters
    ----------
    spec : TextSpec
        What to prepare.
    options : DatasetOptions
        How to split.
    readers : mapping of str to TextOptions
        The networks that will read it, and how each is given texts.
    config : mapping
        What the prepared data depend on; kept in the manifest.
    source : str
        Where the raw data come from, in words.
    raw : Path
        Their folder.
    folder : Path
        Where the files go.

    Returns
    -------
    dict
        The manifest.
    """
    samples = spec.prepare(options, raw)
    learned = samples["train"].texts()
    words = {model: open_words(reader, model, learned) for model, reader in readers.items()}
    splits: dict[str, dict[str, Any]] = {}
    for role, part in samples.items():
        path = folder / f"{role}.safetensors"
        cut = _write(path, spec.name, role, part, words)
        splits[role] = {"samples": len(part), "cut": cut, "sha256": sha256_file(path)}
        if isinstance(part, Texts) and part.targets.dtype == torch.int64:
            splits[role]["class_counts"] = torch.bincount(part.targets, minlength=spec.labels(options)).tolist()
    for model, own in words.items():
        # The settings of the last batch say nothing about the tokenizer.
        own.tokenizer.no_truncation()
        own.tokenizer.no_padding()
        atomic_write_text(folder / f"tokenizer-{model}.json", own.tokenizer.to_str(pretty=True) + "\n")
    manifest = {
        "schema_version": MANIFEST_VERSION,
        "config": dict(config),
        "classes": spec.labels(options),
        "readers": {
            model: {"vocab_size": own.size, "max_length": own.max_length, "inputs": list(own.family.inputs)}
            for model, own in words.items()
        },
        "synthetic": options.synthetic is not None,
        "root": None,
        "source": source,
        "licence": "none: generated" if options.synthetic else spec.place.licence,
        "splits": splits,
        "checksum": data_checksum({role: entry["sha256"] for role, entry in splits.items()}),
    }
    atomic_write_text(folder / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def _write(path: Path, name: str, role: Role, part: RawText, words: Mapping[str, Words]) -> dict[str, int]:
    """Write one split; returns how many texts were cut, or read in several windows, for each network."""
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
    # One metadata entry: the library writes several in no fixed order, and bytes must repeat.
    text = json.dumps({**about, "sha256": content_hash(tensors)}, sort_keys=True)
    atomic_write_bytes(path, save(tensors, {"split": text}))
    return cut
