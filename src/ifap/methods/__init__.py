"""How units are scored: one file a method."""

from __future__ import annotations

from ifap.methods.base import Method
from ifap.registry import Registry

__all__ = ["METHODS", "Method"]

METHODS: Registry[Method] = Registry("method", __name__)
