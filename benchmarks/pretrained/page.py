"""The page, written from the table."""
from __future__ import annotations
from typing import Any


def write(rows: list[dict[str, Any]]) -> None:
    """Write the page."""
    raise NotImplementedError
