"""All data sets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifap.registry import Registry
from ifap.study.data.base import DatasetSpec

if TYPE_CHECKING:
    from ifap.study.data.dense import DenseSpec
    from ifap.study.data.texts import TextSpec


DATASETS: Registry[DatasetSpec | TextSpec | DenseSpec] = Registry("data set", "ifap.study.data")
