"""Image files that cannot be decoded: found before training rather than in the middle of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifap.errors import ResultsError
from ifap.study.data.raw_images import Files

NAMED = 3  # files that an error names before it only counts


def undecodable(files: Files) -> tuple[str, ...]:
    """Return the names of the files that are missing or cannot be decoded, in their order.

    Every file is decoded in full, so that one that breaks off in the middle is found too.
    """
    looks = looks_of(files.root, files.names)
    return tuple(name for name, look in zip(files.names, looks, strict=True) if look is None)


def drop_undecodable(files: Files, allowed: float) -> tuple[Files, tuple[str, ...]]:
    """Leave out the files that cannot be decoded, if they are few.

    Parameters
    ----------
    files : Files
        The image files.
    allowed : float
        Largest share of them that may be left out, from 0 to below 1.

    Returns
    -------
    files : Files
        Those that can be decoded, in the same order.
    bad : tuple of str
        Names of the others.

    Raises
    ------
    ResultsError
        If the share is larger; the message has the count, both shares and the first names.
    """
    bad = undecodable(files)
    if not bad:
        return files, ()
    refuse_many(f"{files.root}: {{}} images cannot be decoded", bad, len(files.names), "max_undecodable", allowed)
    left_out = set(bad)
    rows = [row for row, name in enumerate(files.names) if name not in left_out]
    return files.take(torch.tensor(rows)), bad


def refuse_many(problem: str, bad: Sequence[str], total: int, option: str, allowed: float) -> None:
    """Raise if more samples are bad than an option allows.

    Parameters
    ----------
    problem : str
        What is wrong, with ``{}`` for how many of how many.
    bad : sequence of str
        The files of the bad samples; a file may recur.
    total : int
        Samples in all.
    option : str
        The option's name.
    allowed : float
        Its value, a share of `total`.

    Raises
    ------
    ResultsError
        The message has the count, both shares and the first files.
    """
    share = len(bad) / max(1, total)
    if share > allowed:
        files = list(dict.fromkeys(bad))
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        raise ResultsError(
            f"{problem.replace('{}', f'{len(bad)} of {total}')} ({share:.2%}, {option} allows {allowed:.2%}): "
            f"{', '.join(files[:NAMED])}{more}"
        )


@dataclass(frozen=True)
class Look:
    """What was seen of an image file."""

    mode: str  # Pillow's word for its channels, such as ``RGB``.
    shape: tuple[int, int]  # Width and height in pixels.


def look_at(path: Path) -> Look | None:
    """Decode an image file in full; None if that cannot be done."""
    from PIL import Image  # only data sets of files need it

    try:
        with Image.open(path) as image:
            image.load()
            return Look(image.mode, image.size)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return None  # what Pillow raises for damaged files depends on their format


def looks_of(root: Path, names: Iterable[str]) -> list[Look | None]:
    """Look at many images; see `look_at`."""
    return side_by_side(lambda name: look_at(root / name), names)


def side_by_side(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Apply a function to items in as many threads as there are cores: Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(function, items))
