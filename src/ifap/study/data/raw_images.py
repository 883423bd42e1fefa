"""Raw samples: arrays of small images, or names of image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ifap.errors import ResultsError


@dataclass(frozen=True)
class Arrays:
    """Images of one size, in memory.

    Parameters
    ----------
    images : Tensor, uint8, shape (samples, channels, height, width)
        Pixel values.
    targets : Tensor, int64, shape (samples,)
        Their classes.

    Raises
    ------
    ResultsError
        If they differ in length, or are not of these types and shapes.
    """

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ResultsError(f"images are {_kind(self.images)}, expected uint8 (samples, channels, height, width)")
        _check_targets(self.targets)
        if len(self.images) != len(self.targets):
            raise ResultsError(f"{len(self.images)} images but {len(self.targets)} classes")

    def take(self, rows: Tensor) -> Arrays:
        """Return some of the samples."""
        return Arrays(self.images[rows], self.targets[rows])


@dataclass(frozen=True)
class Files:
    """Image files, decoded when they are read.

    Parameters
    ----------
    root : Path
        Folder that the names are relative to.
    names : tuple of str
        The files.
    targets : Tensor, int64, shape (samples,)
        Their classes.

    Raises
    ------
    ResultsError
        If they differ in length, or the classes are not of this type and shape.
    """

    root: Path
    names: tuple[str, ...]
    targets: Tensor

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        if len(self.names) != len(self.targets):
            raise ResultsError(f"{self.root}: {len(self.names)} files but {len(self.targets)} classes")

    def take(self, rows: Tensor) -> Files:
        """Return some of the samples."""
        return Files(self.root, tuple(self.names[int(row)] for row in rows), self.targets[rows])


def _check_targets(targets: Tensor) -> None:
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise ResultsError(f"classes are {_kind(targets)}, expected int64 (samples,)")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
