"""Raw samples: arrays of small images, or names of image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    """

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
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
    """

    root: Path
    names: tuple[str, ...]
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.names) != len(self.targets):
            raise ResultsError(f"{self.root}: {len(self.names)} files but {len(self.targets)} classes")

    def take(self, rows: Tensor) -> Files:
        """Return some of the samples."""
        return Files(self.root, tuple(self.names[int(row)] for row in rows), self.targets[rows])
