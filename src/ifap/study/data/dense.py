"""Sets of images with boxes or masks: one file a split, prepared once for all tasks that they are used for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifap.data import Role, Split
from ifap.errors import ConfigError, ResultsError, counted
from ifap.study.config.data import DatasetOptions, ModelOptions, TextOptions
from ifap.study.data.base import IMAGENET_MOMENTS, ROLES, Dataset, Splits, by_role, check_shares, read_split, save_split
from ifap.study.data.broken_images import Look, looks_of, refuse_many, side_by_side
from ifap.study.data.images import Scaling
from ifap.study.data.masks import ChannelError, mask_pixels
from ifap.study.data.scene_files import SceneFiles
from ifap.study.data.scenes import (
    BAD_MASK,
    EMPTY,
    IGNORED,
    MASK_CHANNELS,
    OTHER_SIZE,
    UNDECLARED_VALUE,
    UNDECODABLE,
    UNUSUAL,
    Boxes,
    DenseTask,
    MaskFiles,
    Regions,
    Scenes,
    targets_from,
    to_bytes,
)
from ifap.study.paths import Cell

log = logging.getLogger(__name__)

TILES = "tiles"  # folder of the tiles of a prepared set, where raw images are cut
ReadScenes = Callable[[Path, DenseTask], dict[Role, Scenes]]
Cut = Callable[[Path, Path], None]


@dataclass(frozen=True)
class DenseSpec(Dataset):
    """A set of images with boxes, masks or both; `ifap.study.data.origins` knows for which tasks it is made.

    Parameters
    ----------
    name, classes, twin
        See `Dataset`; the classes are those of objects.
    read : callable
        ``read(folder, task)`` returns the raw samples of the roles that the data set itself defines.
    background : bool
        Whether the pixels without an object are one more class, number 0.
    boxes : str
        The metric that detectors are compared by on this data set: ``map``, the mean over overlaps from
        0.5 to 0.95, or ``map50``.
    cut : callable, optional
        ``cut(folder, tiles)`` writes tiles of the raw images into a new folder, which `read` is given in place of the
        raw folder; for images that are too large, or too few, to be samples themselves.
    """

    read: ReadScenes
    background: bool = False
    boxes: str = "map"
    cut: Cut | None = None

    def is_made_for(self, task: str) -> bool:
        """Whether the data set has what this task learns from."""
        return task in self.place.tasks

    def watched(self, task: str) -> str | None:
        """Return the metric that detectors are compared by; None for other tasks."""
        return self.boxes if task == "detection" else None

    def labels(self, task: str, options: DatasetOptions) -> int:
        """Return how many classes the data have for a task: a twin may have fewer than the real set."""
        objects = options.synthetic.classes if options.synthetic else self.classes
        return objects + (self.background and task == "segmentation")

    def prepare(self, options: DatasetOptions, task: DenseTask, folder: Path) -> dict[Role, Scenes]:
        """Return the samples of each role that can be used; validation data are split off the training samples.

        What is wrong with the others is in the findings of the parts, which the manifest repeats.

        Raises
        ------
        ConfigError
            If the data do not have the classes that this data set claims, or the options ask for
            a split that the data set has.
        ResultsError
            If more images or annotations are bad than the options allow.
        """
        found = self.read(folder, task)
        check_shares(self.name, found, options)
        for role, scenes in found.items():
            classes = self.labels(task, options)
            _check_declared(f"data set '{self.name}', {role} split", scenes, self.labels("detection", options))
            found[role] = usable(scenes, classes, options)
        # Only now: an image without anything to learn is still one to be wrong about where it is tested on.
        rows = shuffled_rows(len(found["train"]), options)
        parts = by_role(found, rows)
        return {**parts, "train": with_content(parts["train"])}

    def encode(
        self, options: DatasetOptions, raw: Path, folder: Path, readers: Mapping[str, TextOptions], tasks: Sequence[str]
    ) -> tuple[Splits, dict[str, Any]]:
        """See `Dataset.encode`."""
        if self.cut is not None:
            # Beside the splits, not in the raw folder: another scale may cut other tiles.
            shutil.rmtree(folder / TILES, ignore_errors=True)
            self.cut(raw, folder / TILES)
            raw = folder / TILES
        parts = {task: self.prepare(options, task, raw) for task in tasks}
        splits: Splits = {}
        for role in ROLES:
            own = {task: found[role] for task, found in parts.items()}
            checksum = _write(folder / f"{role}.safetensors", self.name, role, own)
            samples = {task: len(scenes) for task, scenes in own.items()}
            splits[role] = {"samples": sum(samples.values()), "of_tasks": samples, "sha256": checksum}
        return splits, {
            "classes": {task: self.labels(task, options) for task in tasks},
            "channels": 3,
            "root": str(raw),
            "problems": {task: _problems(self.name, found) for task, found in parts.items()},
        }

    def load_for(self, cell: Cell, options: ModelOptions | TextOptions, path: Path, role: Role) -> Split:
        """See `Dataset.load_for`."""
        assert isinstance(options, ModelOptions)
        return self.load(path, role, cell.task, options.image_size)

    def load(self, path: Path, role: Role, task: str, size: int) -> Split:
        """Return one prepared split as network inputs and targets of a task; raises what `Dataset.load_for` does."""
        tensors, about = read_split(path, self.name, role, lambda names: any(name.endswith(".names") for name in names))
        own = {name.removeprefix(f"{task}."): value for name, value in tensors.items() if name.startswith(f"{task}.")}
        if not own:
            raise ResultsError(f"{path} was not prepared for task '{task}': run the fetch stage again")
        names = tuple(bytes(own["names"].numpy()).decode().split("\n"))
        mean, std = (tuple(IMAGENET_MOMENTS[name]) for name in ("mean", "std"))
        scaling = Scaling(size, 3, 255.0, mean, std)
        samples = SceneFiles(Path(about["roots"][task]), names, targets_from(own), scaling)
        return Split(role, samples, samples.targets)


def usable(scenes: Scenes, classes: int, options: DatasetOptions) -> Scenes:
    """Return the images that can be decoded and fit their annotations; what is wrong is noted.

    Parameters
    ----------
    scenes : Scenes
        As they were read.
    classes : int
        Number of classes of the task.
    options : DatasetOptions
        How many may be bad.

    Raises
    ------
    ConfigError
        If a label has a number that the data set does not claim.
    ResultsError
        If more are bad than allowed.
    """
    targets, findings = scenes.targets, scenes.findings
    looks = looks_of(scenes.root, scenes.names)
    bad = [name for name, look in zip(scenes.names, looks, strict=True) if look is None]
    refuse_many(
        f"{scenes.root}: {{}} images cannot be decoded", bad, len(scenes), "max_undecodable", options.max_undecodable
    )
    for name in bad:
        findings.note(UNDECODABLE, name)
    for name, look in zip(scenes.names, looks, strict=True):
        if look is not None and look.mode != "RGB":
            findings.note(UNUSUAL, name)
    if isinstance(targets, MaskFiles):
        good = _check_masks(scenes, targets, looks, classes)
        parts = sum(good)
    else:
        good = [look is not None and _has_shape(scenes, row, look.shape) for row, look in enumerate(looks)]
        parts = len(scenes) if targets is None else len(targets.labels)
        if targets is not None and parts and int(targets.labels.max()) >= classes:
            raise ConfigError(
                f"{findings.where} has {counted(classes, 'class', 'classes')}, a label is {int(targets.labels.max())}"
            )
    findings.refuse(options.max_bad_annotations, parts)
    return scenes.take(torch.tensor([row for row, fits in enumerate(good) if fits], dtype=torch.int64))


def with_content(scenes: Scenes) -> Scenes:
    """Return the images that have anything to be trained on."""
    if scenes.targets is None:
        return scenes
    if isinstance(scenes.targets, MaskFiles):
        empty = set(scenes.findings.files(EMPTY))
        kept = torch.tensor([name not in empty for name in scenes.names])
    else:
        kept = scenes.targets.present()
    if not kept.any():
        raise ResultsError(f"{scenes.findings.where}: no image has anything to be trained on")
    return scenes.take(kept.nonzero()[:, 0])


def shuffled_rows(samples: int, options: DatasetOptions) -> dict[Role, Tensor]:
    """Return which training samples belong to which role, drawn by the options' seed.

    Raises
    ------
    ConfigError
        If more training samples are wanted than there are.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(options.split_seed))
    rows: dict[Role, Tensor] = {}
    shares: tuple[tuple[Role, float | None], ...] = ("test", options.test), ("validation", options.validation)
    for role, share in shares:
        if share is not None:
            count = round(samples * share)
            rows[role], order = order[:count], order[count:]
    if options.train_samples is not None and options.train_samples > len(order):
        raise ConfigError(f"train_samples: {options.train_samples} asked for, {len(order)} there")
    return {**rows, "train": order[: options.train_samples]}


def shapes_of(root: Path, names: Iterable[str]) -> list[tuple[int, int] | None]:
    """Return width and height of many images from the heads of their files; None where there is none."""
    from PIL import Image

    def shape(name: str) -> tuple[int, int] | None:
        try:
            with Image.open(root / name) as image:
                return image.size
        except (OSError, ValueError, SyntaxError):
            return None

    return side_by_side(shape, names)


def _write(path: Path, name: str, role: Role, parts: Mapping[str, Scenes]) -> str:
    tensors: dict[str, Tensor] = {}
    for task, scenes in parts.items():
        own = {} if scenes.targets is None else scenes.targets.tensors()
        # Names as one tensor: the header of the file is limited, and millions of names are not.
        own["names"] = to_bytes("\n".join(scenes.names).encode())
        own["sizes"] = torch.tensor([(scenes.root / file).stat().st_size for file in scenes.names])
        tensors |= {f"{task}.{key}": value.contiguous() for key, value in own.items()}
    roots = {task: str(scenes.root) for task, scenes in parts.items()}
    return save_split(path, tensors, {"name": name, "role": role, "roots": roots})


def _problems(name: str, parts: Mapping[Role, Scenes]) -> dict[str, Any]:
    """Return what was wrong with the raw samples of each role that the data set defines, and say so."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for role, scenes in parts.items():
        findings = scenes.findings
        if id(findings) in seen:
            continue  # validation data that were split off: their findings are those of the training samples
        seen.add(id(findings))
        found[role] = findings.report()
        for kind, entry in found[role].items():
            log.warning("%s, %s: %d %s, such as %s", name, role, entry["count"], kind, entry["files"][0])
    return found


def _check_declared(where: str, scenes: Scenes, classes: int) -> None:
    if scenes.declared is not None and scenes.declared != classes:
        raise ConfigError(f"{where} claims {counted(classes, 'class', 'classes')}, its own list has {scenes.declared}")


def _has_shape(scenes: Scenes, row: int, shape: tuple[int, int]) -> bool:
    if not isinstance(scenes.targets, (Boxes, Regions)) or tuple(scenes.targets.shapes[row].tolist()) == shape:
        return True
    scenes.findings.note(OTHER_SIZE, scenes.names[row])
    return False


def _check_masks(scenes: Scenes, masks: MaskFiles, looks: Sequence[Look | None], classes: int) -> list[bool]:
    """Return which images have a mask that fits; notes why the others have not."""

    def problem(row: int) -> str | None:
        look = looks[row]
        if look is None:
            return UNDECODABLE
        try:
            mask = masks.table[torch.from_numpy(mask_pixels(scenes.root / masks.names[row])).long()]
        except ChannelError:
            return MASK_CHANNELS
        except ResultsError:
            return BAD_MASK
        counted = mask[mask != IGNORED]
        if (mask.shape[1], mask.shape[0]) != look.shape:
            return OTHER_SIZE
        if len(counted) and int(counted.max()) >= classes:
            return UNDECLARED_VALUE
        return None if len(counted) else EMPTY

    problems = side_by_side(problem, range(len(scenes)))
    for row, kind in enumerate(problems):
        if kind == EMPTY:
            scenes.findings.note(EMPTY, scenes.names[row])
        elif kind not in (None, UNDECODABLE):
            scenes.findings.note(str(kind), masks.names[row])
    return [kind in (None, EMPTY) for kind in problems]
