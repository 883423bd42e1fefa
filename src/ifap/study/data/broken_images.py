"""Image files that cannot be decoded: found before training rather than in the middle of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ifap.errors import ResultsError
from ifap.study.data.raw_images import Files

NAMED = 3  # files that an error names before it only counts


def undecodable(files: Files, workers: int | None = None) -> tuple[str, ...]:
    """Return the names of the files that are missing or cannot be decoded.

    Every file is decoded in full, so that one that breaks off in the middle is found too.

    In the order of `files`.

    Parameters
    ----------
    files : Files
        The image files.
    workers : int, optional
        Threads that decode (Pillow decodes side by side); as many as this process may use cores.
    """
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        good = pool.map(lambda name: _decodes(files.root / name), files.names)
        return tuple(name for name, decodes in zip(files.names, good, strict=True) if not decodes)


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


def _decodes(path: Path) -> bool:
    from PIL import Image  # only data sets of files need it

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return False  # what Pillow raises for damaged files depends on their format
    return True
