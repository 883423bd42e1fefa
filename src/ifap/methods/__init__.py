"""How units are scored: one file a method."""

from __future__ import annotations

from ifap.methods.base import AnyMethod, Method
from ifap.registry import Registry

__all__ = ["METHODS", "AnyMethod", "Method"]

METHODS: Registry[AnyMethod] = Registry("method", __name__)
