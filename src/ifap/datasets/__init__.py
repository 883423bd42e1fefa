"""Data sets: one file an entry."""

from __future__ import annotations

from ifap.datasets.base import DATASETS, DatasetSpec

__all__ = ["DATASETS", "DatasetSpec"]
