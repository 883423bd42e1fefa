"""Networks: one file an entry."""

from __future__ import annotations

from ifap.models.base import MODELS, Build, build, builder_args, builder_from_id, builder_id

__all__ = ["MODELS", "Build", "build", "builder_args", "builder_from_id", "builder_id"]
