"""What a data set is: raw samples with one file a split, prepared once and loaded by role."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ifap.data import Role, Samples, Split
from ifap.errors import ConfigError, ResultsError, SplitError
from ifap.files import atomic_write_bytes, atomic_write_text, sha256_file
from ifap.study.config.data import DatasetOptions
from ifap.study.data.broken_images import drop_undecodable
from ifap.study.data.images import ImageArrays, ImageFiles, Scaling, View
from ifap.study.data.origins import PLACES, Place
from ifap.study.data.raw_images import Arrays, Files
from ifap.study.paths import SPLITS

if TYPE_CHECKING:
    pass

Raw = Arrays | Files
Read = Callable[[Path], dict[Role, Raw]]
Twin = Callable[[Path, int, int, int], None]

ROLES: tuple[Role, ...] = ("train", "validation", "test")
MANIFEST_VERSION = 2
# Image files are not all read to take their moments: these are ImageNet's, which pretrained networks expect.
IMAGENET_MOMENTS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NAMED = 20  # damaged files that a manifest names before it only counts


@dataclass(frozen=True)
class DatasetSpec:
    """A set of images with one class each.

    Parameters
    ----------
    name : str
        Its name in ``params.yaml``, under which `ifap.study.data.origins` knows where it comes from.
    classes : int
        Number of classes; the data are checked against it.
    channels : int
        Channels of a raw image, 1 or 3.
    read : callable
        ``read(folder)`` returns the raw samples of the roles that the data set itself defines.
    twin : callable or None
        ``twin(folder, classes, per_class, seed)`` writes a synthetic set in the same format.
    view : str
        How raw images become network inputs; see `ifap.study.data.images.View`.
    maximum : float
        Largest raw value; raw values are divided by it.
    """

    name: str
    classes: int
    channels: int
    read: Read
    twin: Twin | None
    view: View
    maximum: float = 255.0

    @property
    def place(self) -> Place:
        """What is known about it without reading it: title, licence and sources."""
        return PLACES[self.name]

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
            _check_classes(f"data set '{self.name}', {role} split", raw.targets, classes, complete=role == "train")
        check_shares(self.name, found, options)
        rows = stratified_rows(found["train"].targets, options)
        return {role: found[role] if role in found and role != "train" else found["train"].take(rows[role])
                for role in ROLES}  # fmt: skip

    def load(self, path: Path, role: Role, size: int) -> Split:
        """Return one prepared split as network inputs: resized and normalised.

        Parameters
        ----------
        path : Path
            The split's file.
        role : {'train', 'validation', 'test'}
            What the file must hold.
        size : int
            Side of the square network input, in pixels.

        Raises
        ------
        ResultsError
            If the file is missing or damaged.
        SplitError
            If the file holds another role or another data set.
        """
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
            left,
            test_size=round(len(targets) * share),
            random_state=options.split_seed,
            stratify=targets.numpy()[left],
        )
        rows[role] = torch.from_numpy(taken)
    if options.train_samples is not None:
        if options.train_samples > len(left):
            raise ConfigError(f"train_samples: {options.train_samples} asked for, {len(left)} there")
        if options.train_samples < len(left):
            left, _ = train_test_split(
                left,
                train_size=options.train_samples,
                random_state=options.split_seed,
                stratify=targets.numpy()[left],
            )
    return {**rows, "train": torch.from_numpy(left)}


def write_dataset(
    spec: DatasetSpec, options: DatasetOptions, config: Mapping[str, Any], source: str, raw: Path, folder: Path
) -> dict[str, Any]:
    """Prepare a data set and write one file a split and, last, ``manifest.json``.

    Parameters
    ----------
    spec : DatasetSpec
        What to prepare.
    options : DatasetOptions
        How to split.
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
    damaged: list[str] = []
    for role, part in samples.items():
        if isinstance(part, Files):
            samples[role], bad = drop_undecodable(part, options.max_undecodable)
            damaged.extend(bad)
    moments = _moments(samples["train"], spec)
    splits: dict[str, dict[str, Any]] = {}
    for role, part in samples.items():
        about = {"name": spec.name, "role": role, "channels": options.channels or spec.channels, **moments}
        path = folder / f"{role}.safetensors"
        _write_split(path, part, about)
        splits[role] = {
            "samples": len(part.targets),
            "class_counts": torch.bincount(part.targets).tolist(),
            "sha256": sha256_file(path),
        }
    manifest = {
        "schema_version": MANIFEST_VERSION,
        "config": dict(config),
        "classes": options.synthetic.classes if options.synthetic else spec.classes,
        "channels": options.channels or spec.channels,
        "synthetic": options.synthetic is not None,
        "root": str(raw) if any(isinstance(part, Files) for part in samples.values()) else None,
        "source": source,
        "licence": "none: generated" if options.synthetic else spec.place.licence,
        "undecodable": {"count": len(damaged), "files": damaged[:NAMED]},
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
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _shares(options: DatasetOptions) -> tuple[tuple[Role, float | None], ...]:
    return ("test", options.test), ("validation", options.validation)


def _check_classes(where: str, targets: Tensor, classes: int, *, complete: bool) -> None:
    found = sorted(set(targets.tolist()))
    wanted = range(classes)
    if (found != list(wanted)) if complete else not set(found) <= set(wanted):
        shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        raise ConfigError(f"{where} claims {classes} classes, its data have {len(found)}: {shown}")


def _write_split(path: Path, part: Raw, about: dict[str, Any]) -> None:
    tensors = {"targets": part.targets.contiguous()}
    if isinstance(part, Arrays):
        tensors["inputs"] = part.images.contiguous()
    else:
        # Names as one tensor: the header of the file is limited, and millions of names are not.
        tensors["names"] = torch.frombuffer(bytearray("\n".join(part.names).encode()), dtype=torch.uint8)
        tensors["sizes"] = torch.tensor([(part.root / name).stat().st_size for name in part.names])
        about = {**about, "root": str(part.root)}
    about = {**about, "sha256": content_hash(tensors)}
    # One metadata entry: the library writes several in no fixed order, and bytes must repeat.
    atomic_write_bytes(path, save(tensors, {"split": json.dumps(about, sort_keys=True)}))


def _moments(part: Raw, spec: DatasetSpec) -> dict[str, list[float]]:
    if isinstance(part, Files):
        return {name: values[: spec.channels] for name, values in IMAGENET_MOMENTS.items()}
    means, deviations = [], []
    for channel in range(part.images.shape[1]):
        values = part.images[:, channel].double() / spec.maximum
        means.append(float(values.mean()))
        deviations.append(max(float(values.std()), 1e-6))
    return {"mean": means, "std": deviations}


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
