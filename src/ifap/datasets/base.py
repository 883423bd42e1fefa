"""What a data set is: raw samples with one file a split, prepared once and loaded by role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ifap.config import DatasetOptions
from ifap.errors import ConfigError, ResultsError, SplitError
from ifap.files import atomic_write_bytes, atomic_write_text
from ifap.paths import SPLITS
from ifap.registry import Registry
from ifap.runtime import sha256_file
from ifap.splits import Role, Split

Augment = Callable[[Tensor, torch.Generator], Tensor]
Samples = tuple[Tensor, Tensor]

ROLES: tuple[Role, ...] = ("train", "validation", "test")
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class DatasetSpec:
    """A set of images with one class each, small enough to stay in memory.

    Parameters
    ----------
    name : str
        Its name in ``params.yaml``.
    classes : int
        Number of classes; the data are checked against it.
    channels : int
        Channels of an image.
    maximum : float
        Largest raw value; raw values are divided by it.
    source : str
        Where the samples come from.
    licence : str
        Under which terms.
    read : callable
        Returns all raw images, uint8 of shape (samples, channels, height, width), and their
        classes, int64 of shape (samples,).
    augment : callable
        Changes a batch of network inputs at random, drawing from the given generator only.
    """

    name: str
    classes: int
    channels: int
    maximum: float
    source: str
    licence: str
    read: Callable[[], Samples]
    augment: Augment

    def prepare(self, options: DatasetOptions) -> dict[Role, Samples]:
        """Return the raw samples of each role, split with every class in proportion.

        Raises
        ------
        ConfigError
            If the data do not have the classes that this data set claims.
        """
        images, targets = self.read()
        found = sorted(set(targets.tolist()))
        if found != list(range(self.classes)):
            raise ConfigError(
                f"data set '{self.name}' claims {self.classes} classes, its data have {len(found)}: {found}"
            )
        return {role: (images[rows], targets[rows]) for role, rows in stratified_rows(targets, options).items()}

    def load(self, path: Path, role: Role) -> Split:
        """Return one prepared split as network inputs: resized and normalised.

        Parameters
        ----------
        path : Path
            The split's file.
        role : {'train', 'validation', 'test'}
            What the file must hold.

        Raises
        ------
        ResultsError
            If the file is missing or damaged.
        SplitError
            If the file holds another role or another data set.
        """
        tensors, about = _read_split(path)
        if (about.get("name"), about.get("role")) != (self.name, role):
            raise SplitError(
                f"{path} holds the {about.get('role')} split of {about.get('name')}, wanted {role} of {self.name}"
            )
        if about.get("sha256") != content_hash(tensors):
            raise ResultsError(f"{path} is damaged (checksum differs): run the fetch stage again")
        return Split(role, self.network_inputs(tensors["inputs"], about), tensors["targets"])

    def network_inputs(self, images: Tensor, about: Mapping[str, Any]) -> Tensor:
        """Resize raw images bilinearly and normalise them with the training split's mean and deviation."""
        side = int(about["image_size"])
        values = F.interpolate(images.float() / self.maximum, (side, side), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(about[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        return (values - mean) / std


DATASETS: Registry[DatasetSpec] = Registry("data set", "ifap.datasets")


def stratified_rows(targets: Tensor, options: DatasetOptions) -> dict[Role, Tensor]:
    """Return which samples belong to which role; the same for the same seed."""
    from sklearn.model_selection import train_test_split  # slow to import, and only fetching needs it

    total = len(targets)
    rest, test = train_test_split(
        torch.arange(total).numpy(),
        test_size=round(total * options.test),
        random_state=options.split_seed,
        stratify=targets.numpy(),
    )
    train, validation = train_test_split(
        rest,
        test_size=round(total * options.validation),
        random_state=options.split_seed,
        stratify=targets.numpy()[rest],
    )
    rows = {"train": train, "validation": validation, "test": test}
    return {role: torch.from_numpy(rows[role]) for role in ROLES}


def write_dataset(
    spec: DatasetSpec, options: DatasetOptions, config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Prepare a data set and write one file a split and, last, ``manifest.json``.

    Parameters
    ----------
    spec : DatasetSpec
        What to prepare.
    options : DatasetOptions
        How to split and resize.
    config : mapping
        What the prepared data depend on; kept in the manifest.
    folder : Path
        Where the files go.

    Returns
    -------
    dict
        The manifest.
    """
    samples = spec.prepare(options)
    moments = _moments(samples["train"][0].float() / spec.maximum)
    splits: dict[str, dict[str, Any]] = {}
    for role, (images, targets) in samples.items():
        tensors = {"inputs": images.contiguous(), "targets": targets.contiguous()}
        about = {
            "name": spec.name,
            "role": role,
            "classes": spec.classes,
            "image_size": options.image_size,
            **moments,
            "sha256": content_hash(tensors),
        }
        path = folder / f"{role}.safetensors"
        # One metadata entry: the library writes several in no fixed order, and bytes must repeat.
        atomic_write_bytes(path, save(tensors, {"split": json.dumps(about, sort_keys=True)}))
        counts = torch.bincount(targets, minlength=spec.classes).tolist()
        splits[role] = {"samples": len(targets), "class_counts": counts, "sha256": sha256_file(path)}
    manifest = {
        "schema_version": MANIFEST_VERSION,
        "config": dict(config),
        "classes": spec.classes,
        "channels": spec.channels,
        "source": spec.source,
        "licence": spec.licence,
        "splits": splits,
        "checksum": data_checksum({role: entry["sha256"] for role, entry in splits.items()}),
    }
    atomic_write_text(folder / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


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
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def random_shift(inputs: Tensor, generator: torch.Generator, share: float = 1 / 8) -> Tensor:
    """Shift each image by a random whole number of pixels, repeating its edge pixels.

    Parameters
    ----------
    inputs : Tensor, shape (batch, channels, height, width)
        Network inputs.
    generator : torch.Generator
        Source of the shifts, on the CPU.
    share : float, optional
        Largest shift as a share of each side.

    Returns
    -------
    Tensor, same shape
        A new tensor.
    """
    batch, _, height, width = inputs.shape
    rows = _shifted(height, share, batch, generator).to(inputs.device)
    columns = _shifted(width, share, batch, generator).to(inputs.device)
    samples = torch.arange(batch, device=inputs.device)
    picked = inputs[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def _shifted(side: int, share: float, batch: int, generator: torch.Generator) -> Tensor:
    reach = int(side * share)
    shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
    return (torch.arange(side)[None] + shift).clamp(0, side - 1)


def _moments(values: Tensor) -> dict[str, list[float]]:
    by_channel = values.double().transpose(0, 1).flatten(1)
    return {"mean": by_channel.mean(1).tolist(), "std": by_channel.std(1).clamp_min(1e-6).tolist()}


def _read_split(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in ("inputs", "targets")}
            about = json.loads((stream.metadata() or {})["split"])
    except FileNotFoundError:
        raise ResultsError(f"{path} not found: run the fetch stage first") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error}): run the fetch stage again") from None
    return tensors, about
