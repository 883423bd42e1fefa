"""Networks: one file an entry."""

from __future__ import annotations

from ifap.study.models.base import (
    MODELS,
    Build,
    Head,
    TextBuild,
    arguments,
    builder_from_id,
    builder_id,
    load_pretrained,
)

__all__ = ["MODELS", "Build", "Head", "TextBuild", "arguments", "builder_from_id", "builder_id", "load_pretrained"]
