"""Data sets: a file registers one or several.

Names are loaded on first use: Snakemake asks `ifap.study.data.origins` what is there, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifap.study.data.base import Dataset
    from ifap.study.data.entries import DATASETS

__all__ = ["DATASETS", "Dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ifap.study.data' has no attribute '{name}'")
    from ifap.study.data import base, entries

    return getattr(entries if name == "DATASETS" else base, name)
