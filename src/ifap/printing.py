"""Tables as text, no wider than the terminal that shows them."""

from __future__ import annotations

import io
import shutil

from rich.console import Console
from rich.table import Table

WIDEST, NARROWEST = 120, 60


def as_text(*parts: str | Table) -> str:
    """Return lines and tables as text.

    The text is as wide as the terminal or ``COLUMNS``, between 60 and 120 columns; 120 where there is neither.
    """
    width = min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)
    console = Console(width=width, record=True, markup=False, emoji=False, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text().rstrip()
