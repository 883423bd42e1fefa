"""Networks: one file an entry."""

from __future__ import annotations

from ifap.study.models.base import MODELS, Head, builder_from_id, builder_id, load_pretrained

__all__ = ["MODELS", "Head", "builder_from_id", "builder_id", "load_pretrained"]
