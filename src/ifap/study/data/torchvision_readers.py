"""What the readers share: torchvision's classes expect folders of certain names and say little when one is damaged."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ifap.errors import IfapError, ResultsError
from ifap.study.data.raw_images import Files


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises inside the block into one line that names the file.

    Raises
    ------
    ResultsError
        If anything else than an error of this package is raised.
    """
    try:
        yield
    except IfapError:
        raise
    # Parsers of damaged files raise nearly anything, from AssertionError to struct.error.
    except Exception as error:
        text = " ".join(str(error).split())
        raise ResultsError(f"{path} cannot be read ({type(error).__name__}: {text})") from error


@contextlib.contextmanager
def known_as(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder in which `folder` goes by `name`, the only one that torchvision looks for."""
    with tempfile.TemporaryDirectory() as parent:
        (Path(parent) / name).symlink_to(folder.resolve(), target_is_directory=True)
        yield Path(parent)


def listed(root: Path, below: Path, samples: Iterable[tuple[str | Path, int]], prefix: str = "") -> Files:
    """Return a list of image files and classes with names relative to their folder.

    Parameters
    ----------
    root : Path
        Folder that the names shall be relative to.
    below : Path
        What the paths in `samples` start with.
    samples : iterable of (path, class)
        As torchvision lists them.
    prefix : str, optional
        What the names shall start with, for a `below` that is not `root`.
    """
    start = f"{below}{os.sep}"
    pairs = [(prefix + str(path).removeprefix(start), int(label)) for path, label in samples]
    names = tuple(name for name, _ in pairs)
    return Files(root, names, torch.tensor([label for _, label in pairs], dtype=torch.int64))
