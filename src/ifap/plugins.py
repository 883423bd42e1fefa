"""Find what other packages add to the library by entry points."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def plugins(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Return the entry points of a group by name; those whose package is not installed are left out.

    `group` is for example ``"ifap.builders"``.
    """
    return {point.name: point for point in importlib.metadata.entry_points(group=group) if _exists(point.module)}


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False
