"""Folders of images beside folders of masks of the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ifap.errors import ResultsError
from ifap.study.data.scenes import NO_MASK, Findings, MaskFiles, Scenes


def masks_beside(place: Path, images: str, ending: str, mask_of: Callable[[str], str], table: Tensor) -> Scenes:
    """Return the images below a folder, each with its mask.

    Parameters
    ----------
    place : Path
        The data set's folder.
    images : str
        Where the images lie below it, also in folders of their own.
    ending : str
        How their names end.
    mask_of : callable
        The name of the mask of an image, both relative to `place`.
    table : Tensor
        See `ifap.study.data.scenes.MaskFiles`.

    Raises
    ------
    ResultsError
        If there are no images; one without a mask is noted.
    """
    findings = Findings(str(place / images))
    names = sorted(str(path.relative_to(place)) for path in (place / images).rglob(f"*{ending}"))
    if not names:
        raise ResultsError(f"{place / images} has no images (*{ending})")
    kept = [name for name in names if (place / mask_of(name)).exists()]
    for name in set(names) - set(kept):
        findings.note(NO_MASK, name)
    if not kept:
        raise ResultsError(f"{place}: no image of {images} has a mask, such as {mask_of(names[0])}")
    return Scenes(place, tuple(kept), MaskFiles(tuple(map(mask_of, kept)), table), findings)


def pictures_in(place: Path, images: str, ending: str) -> Scenes:
    """Return the images below a folder alone; see `masks_beside`."""
    names = sorted(str(path.relative_to(place)) for path in (place / images).rglob(f"*{ending}"))
    return Scenes(place, tuple(names), None, Findings(str(place / images)))
