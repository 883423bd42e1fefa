"""What a data set is: raw samples with one file a split, prepared once and loaded by role."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ifap.data import Role, Samples, Split
from ifap.errors import ConfigError, ResultsError, SplitError, counted
from ifap.files import atomic_write_bytes, atomic_write_text, sha256_file
from ifap.study.config.data import DatasetOptions, ModelOptions, TextOptions
from ifap.study.config.values import TEXT_TASKS
from ifap.study.data.broken_images import drop_undecodable
from ifap.study.data.images import ImageArrays, ImageFiles, Scaling, View
from ifap.study.data.origins import PLACES, Place
from ifap.study.data.raw_images import Arrays, Files
from ifap.study.paths import SPLITS, Cell

Raw = Arrays | Files
Read = Callable[[Path], dict[Role, Raw]]
Twin = Callable[[Path, int, int, int], None]
Splits = dict[str, dict[str, Any]]
"""What a manifest says of each split."""


class Takes(Protocol):
    """Samples of which some can be taken."""

    def take(self, rows: Tensor) -> Self:
        """Return some of the samples."""


Part = TypeVar("Part", bound=Takes)

ROLES: tuple[Role, ...] = ("train", "validation", "test")
MANIFEST_VERSION = 2
# Image files are not all read to take their moments: these are ImageNet's, which pretrained networks expect.
IMAGENET_MOMENTS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NAMED = 20  # damaged files that a manifest names before it only counts


@dataclass(frozen=True)
class Dataset(ABC):
    """A set of samples that is prepared once, one file a split, and loaded by role."""

    name: str  # In ``params.yaml``; `ifap.study.data.origins` knows under it where the set comes from.
    classes: int
    twin: Twin | None  # ``twin(folder, classes, per_class, seed)`` writes a synthetic set in the same format.

    @property
    def place(self) -> Place:
        """What is known about it without reading it: title, licence, sources and tasks."""
        return PLACES[self.name]

    @abstractmethod
    def is_made_for(self, task: str) -> bool:
        """Whether a task can be learnt from it."""

    def watched(self, task: str) -> str | None:
        """Return the metric that is watched and printed; None for the task's own."""
        return None

    @abstractmethod
    def encode(
        self, options: DatasetOptions, raw: Path, folder: Path, readers: Mapping[str, TextOptions], tasks: Sequence[str]
    ) -> tuple[Splits, dict[str, Any]]:
        """Write one file a split, see `write`; return what the manifest says of each, and of the whole."""

    @abstractmethod
    def load_for(self, cell: Cell, options: ModelOptions | TextOptions, path: Path, role: Role) -> Split:
        """Return one prepared split as the inputs of a cell's network.

        Raises
        ------
        ResultsError
            If the file is missing or damaged, or was not prepared for this network or task.
        SplitError
            If the file holds another role or another data set.
        """

    def write(
        self,
        options: DatasetOptions,
        config: Mapping[str, Any],
        source: str,
        raw: Path,
        folder: Path,
        *,
        readers: Mapping[str, TextOptions] | None = None,
        tasks: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Prepare the data set and write one file a split and, last, ``manifest.json``.

        Parameters
        ----------
        options : DatasetOptions
            How to split.
        config : mapping
            What the prepared data depend on; kept in the manifest.
        source : str
            Where the raw data come from, in words.
        raw : Path
            Their folder, where image files stay.
        folder : Path
            Where the files go.
        readers : mapping of str to TextOptions, optional
            The networks that will read texts, and how each is given them.
        tasks : sequence of str, optional
            What images with boxes or masks will be read for; each has samples of its own.
        """
        splits, about = self.encode(options, raw, folder, readers or {}, tasks)
        manifest = {
            "schema_version": MANIFEST_VERSION,
            "config": dict(config),
            "synthetic": options.synthetic is not None,
            "root": None,
            "source": source,
            "licence": "none: generated" if options.synthetic else self.place.licence,
            "splits": splits,
            "checksum": data_checksum({role: entry["sha256"] for role, entry in splits.items()}),
            **about,
        }
        atomic_write_text(folder / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        return manifest

    def _check_classes(self, role: Role, targets: Tensor, classes: int) -> None:
        """Refuse classes that the data set does not claim, or training samples that lack some."""
        found, wanted = sorted(set(targets.tolist())), range(classes)
        if (found != list(wanted)) if role == "train" else not set(found) <= set(wanted):
            shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
            where = f"data set '{self.name}', {role} split"
            raise ConfigError(
                f"{where} claims {counted(classes, 'class', 'classes')}, its data have {len(found)}: {shown}"
            )


@dataclass(frozen=True)
class DatasetSpec(Dataset):
    """A set of images with one class each.

    Parameters
    ----------
    name, classes, twin
        See `Dataset`; the data are checked against `classes`.
    channels : int
        Channels of a raw image, 1 or 3.
    read : callable
        ``read(folder)`` returns the raw samples of the roles that the data set itself defines.
    view : str
        How raw images become network inputs; see `ifap.study.data.images.View`.
    maximum : float
        Largest raw value; raw values are divided by it.
    """

    channels: int
    read: Read
    view: View
    maximum: float = 255.0

    def is_made_for(self, task: str) -> bool:
        """Whether a task learns from images with one class each, or from the images alone."""
        return task not in TEXT_TASKS | {"detection", "segmentation"}

    def prepare(self, options: DatasetOptions, folder: Path) -> dict[Role, Raw]:
        """Return the raw samples of each role; what the data set does not define is split off its training samples.

        Raises
        ------
        ConfigError
            If the data do not have the classes that this data set claims, or the options ask for
            a split that the data set has.
        """
        found = self.read(folder)
        classes = options.synthetic.classes if options.synthetic else self.classes
        for role, raw in found.items():
            self._check_classes(role, raw.targets, classes)
        check_shares(self.name, found, options)
        return by_role(found, stratified_rows(found["train"].targets, options))

    def encode(
        self, options: DatasetOptions, raw: Path, folder: Path, readers: Mapping[str, TextOptions], tasks: Sequence[str]
    ) -> tuple[Splits, dict[str, Any]]:
        """See `Dataset.encode`."""
        samples = self.prepare(options, raw)
        damaged: list[str] = []
        for role, part in samples.items():
            if isinstance(part, Files):
                samples[role], bad = drop_undecodable(part, options.max_undecodable)
                damaged.extend(bad)
        moments, channels = _moments(samples["train"], self), options.channels or self.channels
        splits: Splits = {}
        for role, part in samples.items():
            about = {"name": self.name, "role": role, "channels": channels, **moments}
            checksum = _write_split(folder / f"{role}.safetensors", part, about)
            counts = torch.bincount(part.targets).tolist()
            splits[role] = {"samples": len(part.targets), "class_counts": counts, "sha256": checksum}
        return splits, {
            "classes": options.synthetic.classes if options.synthetic else self.classes,
            "channels": channels,
            "root": str(raw) if any(isinstance(part, Files) for part in samples.values()) else None,
            "undecodable": {"count": len(damaged), "files": damaged[:NAMED]},
        }

    def load_for(self, cell: Cell, options: ModelOptions | TextOptions, path: Path, role: Role) -> Split:
        """See `Dataset.load_for`."""
        assert isinstance(options, ModelOptions)
        return self.load(path, role, options.image_size)

    def load(self, path: Path, role: Role, size: int) -> Split:
        """Return one prepared split as network inputs: resized and normalised; raises what `Dataset.load_for` does."""
        tensors, about = read_split(
            path, self.name, role, lambda names: bool({"inputs", "names"} & names) and "targets" in names
        )
        scaling = Scaling(size, about["channels"], self.maximum, tuple(about["mean"]), tuple(about["std"]))
        return Split(role, self._samples(tensors, about, scaling), tensors["targets"])

    def _samples(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], scaling: Scaling) -> Samples:
        if "inputs" in tensors:
            return ImageArrays(tensors["inputs"], self.view, scaling)
        names = bytes(tensors["names"].numpy()).decode().split("\n")
        return ImageFiles(Path(about["root"]), tuple(names), self.view, scaling)


def by_role(found: Mapping[Role, Part], rows: Mapping[Role, Tensor]) -> dict[Role, Part]:
    """Return the samples of each role: those that the data set defines, and `rows` of its training samples."""
    return {
        role: found[role] if role in found and role != "train" else found["train"].take(rows[role]) for role in ROLES
    }


def check_shares(name: str, found: Mapping[Role, Any], options: DatasetOptions) -> None:
    """Refuse options that ask for a split which the data set has, or for none where it has none.

    Raises
    ------
    ConfigError
        The message names the key.
    """
    for role, share in _shares(options):
        if (share is None) != (role in found):
            has = "has its own" if role in found else "has no"
            wanted = "leave out" if role in found else "set"
            raise ConfigError(f"data set '{name}' {has} {role} split: {wanted} datasets.{name}.{role}")


def stratified_rows(targets: Tensor, options: DatasetOptions) -> dict[Role, Tensor]:
    """Return which training samples belong to which role, every class in proportion; the same for the same seed."""
    from sklearn.model_selection import train_test_split  # slow to import, and only fetching needs it

    left = torch.arange(len(targets)).numpy()
    rows: dict[Role, Tensor] = {}
    for role, share in _shares(options):
        if share is None:
            continue
        left, taken = train_test_split(
            left, test_size=round(len(targets) * share), random_state=options.split_seed, stratify=targets.numpy()[left]
        )
        rows[role] = torch.from_numpy(taken)
    if options.train_samples is not None:
        if options.train_samples > len(left):
            raise ConfigError(f"train_samples: {options.train_samples} asked for, {len(left)} there")
        if options.train_samples < len(left):
            left, _ = train_test_split(
                left, train_size=options.train_samples, random_state=options.split_seed, stratify=targets.numpy()[left]
            )
    return {**rows, "train": torch.from_numpy(left)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a prepared data set's ``manifest.json``.

    Raises
    ------
    ResultsError
        If it is missing or not a manifest.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(f"{path} not found: run the fetch stage first") from None
    except ValueError:
        raise ResultsError(f"{path} is not valid JSON: run the fetch stage again") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != MANIFEST_VERSION:
        raise ResultsError(f"{path} is not a manifest of version {MANIFEST_VERSION}: run the fetch stage again")
    return manifest


def data_checksum(hashes: Mapping[str, str]) -> str:
    """Return one checksum for a whole data set from its splits' file hashes."""
    text = "".join(f"{role} {hashes[role]}\n" for role in SPLITS)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _shares(options: DatasetOptions) -> tuple[tuple[Role, float | None], ...]:
    return ("test", options.test), ("validation", options.validation)


def _write_split(path: Path, part: Raw, about: dict[str, Any]) -> str:
    tensors = {"targets": part.targets.contiguous()}
    if isinstance(part, Arrays):
        tensors["inputs"] = part.images.contiguous()
    else:
        # Names as one tensor: the header of the file is limited, and millions of names are not.
        tensors["names"] = torch.frombuffer(bytearray("\n".join(part.names).encode()), dtype=torch.uint8)
        tensors["sizes"] = torch.tensor([(part.root / name).stat().st_size for name in part.names])
        about = {**about, "root": str(part.root)}
    return save_split(path, tensors, about)


def _moments(part: Raw, spec: DatasetSpec) -> dict[str, list[float]]:
    if isinstance(part, Files):
        return {name: values[: spec.channels] for name, values in IMAGENET_MOMENTS.items()}
    means, deviations = [], []
    for channel in range(part.images.shape[1]):
        values = part.images[:, channel].double() / spec.maximum
        means.append(float(values.mean()))
        deviations.append(max(float(values.std()), 1e-6))
    return {"mean": means, "std": deviations}


def save_split(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write one prepared split with what it says of itself and a checksum; returns the file's SHA-256."""
    text = json.dumps({**about, "sha256": content_hash(tensors)}, sort_keys=True)
    # One metadata entry: the library writes several in no fixed order, and bytes must repeat.
    atomic_write_bytes(path, save(dict(tensors), {"split": text}))
    return sha256_file(path)


def read_split(
    path: Path, name: str, role: Role, complete: Callable[[set[str]], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one prepared split and check that it is the wanted one: its tensors, and what it says of itself.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        The data set that it must be of.
    role : {'train', 'validation', 'test'}
        What it must hold.
    complete : callable
        Says from the names of the tensors whether all are there.

    Raises
    ------
    ResultsError
        If the file is missing or damaged.
    SplitError
        If the file holds another role or another data set.
    """
    try:
        with safe_open(path, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
            about = json.loads((stream.metadata() or {})["split"])
            if not complete(set(tensors)):
                raise KeyError("inputs")
    except FileNotFoundError:
        raise ResultsError(f"{path} not found: run the fetch stage first") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error}): run the fetch stage again") from None
    if (about.get("name"), about.get("role")) != (name, role):
        raise SplitError(f"{path} holds the {about.get('role')} split of {about.get('name')}, wanted {role} of {name}")
    if about.get("sha256") != content_hash(tensors):
        raise ResultsError(f"{path} is damaged (checksum differs): run the fetch stage again")
    return tensors, about
