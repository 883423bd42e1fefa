"""stub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ifap.config import DatasetOptions


@dataclass(frozen=True)
class Source:
    """stub."""


def why_absent(name: str, options: DatasetOptions, root: Path = Path()) -> str | None:
    """Stub."""
    return None


def obtain(name: str, options: DatasetOptions, root: Path = Path()) -> tuple[Path, str]:
    """Stub."""
    return Path(), "comes with scikit-learn: the test part of UCI's Optical Recognition of Handwritten Digits (1998)"
