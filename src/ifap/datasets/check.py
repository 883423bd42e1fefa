"""stub."""

from __future__ import annotations

from ifap.datasets.raw import Files


def drop_undecodable(files: Files, allowed: float) -> tuple[Files, tuple[str, ...]]:
    """Stub."""
    return files, ()
