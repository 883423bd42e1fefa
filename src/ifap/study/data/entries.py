"""All data sets by name."""

from __future__ import annotations

from ifap.registry import Registry
from ifap.study.data.base import Dataset

DATASETS: Registry[Dataset] = Registry("data set", "ifap.study.data")
