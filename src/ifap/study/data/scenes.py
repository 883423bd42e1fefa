"""Raw samples with boxes or masks: images that stay where they lie, and targets of as many parts as each has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifap.errors import ResultsError
from ifap.study.data.broken_images import refuse_many

DenseTask = str
"""What a set is read for: ``detection``, ``segmentation`` or ``generation``."""

IGNORED, UNDECLARED = 255, 254  # what a mask's table says of a value that is no class
ROUNDING = 1.0  # pixels that a box may reach over the edge: annotations are rounded
NAMED = 20  # files of a problem that a manifest names before it only counts

NO_AREA = "boxes without area"
OUTSIDE = "boxes outside their image"
UNKNOWN = "annotations of an unknown class or image"
NO_OUTLINE = "outlines without area"
OTHER_SIZE = "images of another size than annotated"
UNDECLARED_VALUE = "masks with undeclared classes"
MASK_CHANNELS = "masks with several channels"
BAD_MASK = "masks that cannot be decoded"
NO_MASK = "images without a mask"
ABSENT = "annotated images that are not there"
EMPTY = "images without annotations"
UNDECODABLE = "images that cannot be decoded"
UNUSUAL = "images with another number of channels"

DAMAGE = (NO_AREA, OUTSIDE, UNKNOWN, NO_OUTLINE, OTHER_SIZE, UNDECLARED_VALUE, MASK_CHANNELS, BAD_MASK, NO_MASK, ABSENT)
"""What an option has to allow; images that are empty or grey are only counted."""


class Findings:
    """What is wrong with annotations: counted by kind, with their files.

    Parameters
    ----------
    where : str
        What was read, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._files: dict[str, list[str]] = {}

    def note(self, kind: str, file: str) -> None:
        """Take note of one bad thing in a file."""
        self._files.setdefault(kind, []).append(file)

    def files(self, kind: str) -> tuple[str, ...]:
        """Return the files in which something of a kind was found."""
        return tuple(self._files.get(kind, ()))

    def report(self) -> dict[str, dict[str, Any]]:
        """Return what a manifest says: count and first files of each kind."""
        return {
            kind: {"count": len(files), "files": list(dict.fromkeys(files))[:NAMED]}
            for kind, files in sorted(self._files.items())
        }

    def refuse(self, allowed: float, good: int) -> None:
        """Raise if a larger share of annotations is damaged than is allowed.

        Parameters
        ----------
        allowed : float
            The option ``max_bad_annotations``.
        good : int
            Annotations that were not noted here.

        Raises
        ------
        ResultsError
            The message has the kind, the counts and the first files.
        """
        total = good + sum(len(self._files.get(kind, ())) for kind in DAMAGE)
        for kind in DAMAGE:
            if kind in self._files:
                refuse_many(f"{self.where}: {{}} {kind}", self._files[kind], total, "max_bad_annotations", allowed)


@dataclass(frozen=True)
class Boxes:
    """Boxes with classes, as many an image as it has.

    Raises
    ------
    ResultsError
        If these do not fit each other.
    """

    shapes: Tensor  # int64, shape (images, 2): width and height of each image in pixels.
    # float32, shape (boxes, 4): left, top, right and bottom edge in pixels, from the outer edge of the first pixel.
    boxes: Tensor
    labels: Tensor  # int64, shape (boxes,): their classes, from 0.
    # uint8, shape (boxes,): 1 for crowds and for what the makers call difficult: not trained on, and neither right nor
    # wrong where it is detected.
    ignored: Tensor
    # int64, shape (images + 1,): image n has the boxes from ``offsets[n]`` to before ``offsets[n + 1]``.
    offsets: Tensor

    def __post_init__(self) -> None:
        lengths = {len(self.boxes), len(self.labels), len(self.ignored), int(self.offsets[-1])}
        if len(lengths) > 1 or len(self.shapes) + 1 != len(self.offsets):
            raise ResultsError(f"{len(self.shapes)} images with boxes that do not fit each other: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.shapes)

    def take(self, rows: Tensor) -> Boxes:
        """Return the boxes of some images."""
        parts, offsets = ragged(self.offsets, rows)
        return Boxes(self.shapes[rows], self.boxes[parts], self.labels[parts], self.ignored[parts], offsets)

    def present(self) -> Tensor:
        """Return for each image whether it has anything to be trained on."""
        owner = torch.arange(len(self)).repeat_interleave(self.offsets.diff())
        return torch.zeros(len(self), dtype=torch.int64).index_add_(0, owner, 1 - self.ignored.long()) > 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to a file; the constructor's arguments by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class MaskFiles:
    """One mask file an image, whose pixels are numbers that a table maps to classes."""

    names: tuple[str, ...]  # Relative to the same folder as the images.
    # uint8, shape (256,): the class of each number; 255 for pixels that do not count, 254 for numbers that the data set
    # does not declare.
    table: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Tensor) -> MaskFiles:
        """Return the masks of some images."""
        return MaskFiles(tuple(self.names[int(row)] for row in rows), self.table)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to a file."""
        return {"masks": to_bytes("\n".join(self.names).encode()), "table": self.table}


@dataclass(frozen=True)
class Regions:
    """Objects of each image as run lengths, from which its mask is drawn: later ones cover earlier ones."""

    shapes: Tensor  # int64, shape (images, 2): width and height of each image in pixels.
    runs: tuple[bytes, ...]  # COCO's compressed run lengths of each object.
    labels: Tensor  # int64, shape (objects,): their classes; 0 is the background, which no object has.
    # int64, shape (images + 1,): image n has the objects from ``offsets[n]`` to before ``offsets[n + 1]``.
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.shapes)

    def take(self, rows: Tensor) -> Regions:
        """Return the objects of some images."""
        parts, offsets = ragged(self.offsets, rows)
        return Regions(self.shapes[rows], tuple(self.runs[int(part)] for part in parts), self.labels[parts], offsets)

    def present(self) -> Tensor:
        """Return for each image whether it has any object."""
        return self.offsets.diff() > 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to a file."""
        # No run length holds a line break: its signs are those from 48 on.
        return {
            "shapes": self.shapes,
            "runs": to_bytes(b"\n".join(self.runs)),
            "labels": self.labels,
            "offsets": self.offsets,
        }


SceneTargets = Boxes | MaskFiles | Regions


def targets_from(tensors: Mapping[str, Tensor]) -> SceneTargets | None:
    """Return the targets that a file holds; None for images alone."""
    if "boxes" in tensors:
        return Boxes(*(tensors[name] for name in ("shapes", "boxes", "labels", "ignored", "offsets")))
    if "masks" in tensors:
        return MaskFiles(tuple(bytes(tensors["masks"].numpy()).decode().split("\n")), tensors["table"])
    if "runs" in tensors:
        runs = bytes(tensors["runs"].numpy())
        return Regions(tensors["shapes"], tuple(runs.split(b"\n")) if len(tensors["labels"]) else (),
                       tensors["labels"], tensors["offsets"])  # fmt: skip
    return None


@dataclass(frozen=True)
class Scenes:
    """Image files of one role and what is known about each.

    Parameters
    ----------
    root : Path
        Folder that the names are relative to.
    names : tuple of str
        The images.
    targets : Boxes, MaskFiles, Regions or None
        None for images alone.
    findings : Findings
        What was wrong where they were read.
    declared : int or None
        Classes that the data's own list names, if they bring one.

    Raises
    ------
    ResultsError
        If they differ in length, or there is none.
    """

    root: Path
    names: tuple[str, ...]
    targets: SceneTargets | None
    findings: Findings = field(default_factory=lambda: Findings("annotations"))
    declared: int | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ResultsError(f"{self.findings.where}: no images")
        if self.targets is not None and len(self.targets) != len(self.names):
            raise ResultsError(f"{self.root}: {len(self.names)} images but targets of {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Tensor) -> Scenes:
        """Return some of the images; what was found is shared."""
        targets = None if self.targets is None else self.targets.take(rows)
        names = tuple(self.names[int(row)] for row in rows)
        return Scenes(self.root, names, targets, self.findings, self.declared)


class BoxList:
    """Collects the boxes of one image after the other, leaving out and noting the bad ones.

    Parameters
    ----------
    findings : Findings
        Where bad boxes are noted.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._names: list[str] = []
        self._shapes: list[tuple[int, int]] = []
        self._rows: list[tuple[Sequence[float], int, bool]] = []
        self._offsets = [0]

    def image(
        self, name: str, shape: tuple[int, int], boxes: Iterable[tuple[Sequence[float], int, bool]], file: str
    ) -> None:
        """Add an image.

        Parameters
        ----------
        name : str
            Its file.
        shape : tuple of int
            Width and height in pixels.
        boxes : iterable of (edges, label, ignored)
            Left, top, right and bottom edge in pixels.
        file : str
            The file of the annotation, to be named if something is wrong.
        """
        wide, high = shape
        for (left, top, right, bottom), label, ignored in boxes:
            if not (right > left and bottom > top):  # not a number: not larger either
                self._findings.note(NO_AREA, file)
            elif min(left, top) < -ROUNDING or right > wide + ROUNDING or bottom > high + ROUNDING:
                self._findings.note(OUTSIDE, file)
            else:
                edges = (max(left, 0.0), max(top, 0.0), min(right, float(wide)), min(bottom, float(high)))
                if edges[2] > edges[0] and edges[3] > edges[1]:
                    self._rows.append((edges, label, ignored))
                else:
                    self._findings.note(OUTSIDE, file)
        if len(self._rows) == self._offsets[-1]:
            self._findings.note(EMPTY, name)
        self._names.append(name)
        self._shapes.append(shape)
        self._offsets.append(len(self._rows))

    def scenes(self, root: Path, declared: int | None = None) -> Scenes:
        """Return all images that were added."""
        targets = Boxes(
            torch.tensor(self._shapes, dtype=torch.int64).view(-1, 2),
            torch.tensor([edges for edges, _, _ in self._rows], dtype=torch.float32).view(-1, 4),
            torch.tensor([label for _, label, _ in self._rows], dtype=torch.int64),
            torch.tensor([ignored for _, _, ignored in self._rows], dtype=torch.uint8),
            torch.tensor(self._offsets, dtype=torch.int64),
        )
        return Scenes(root, tuple(self._names), targets, self._findings, declared)


def table_of(classes: Mapping[int, int], ignored: Iterable[int] = ()) -> Tensor:
    """Return the table of a mask: uint8 of shape (256,), from the classes of the numbers that have one."""
    table = torch.full((256,), UNDECLARED, dtype=torch.uint8)
    for value, label in classes.items():
        table[value] = label
    for value in ignored:
        table[value] = IGNORED
    return table


def ragged(offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return which parts some samples have, one sample after the other, and the offsets of the new list."""
    spans = [torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in rows.tolist()]
    lengths = torch.tensor([0, *(len(span) for span in spans)], dtype=torch.int64)
    return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64), lengths.cumsum(0)


def to_bytes(content: bytes) -> Tensor:
    """Return bytes as a tensor, also if there are none."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
