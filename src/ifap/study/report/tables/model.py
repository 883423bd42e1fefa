"""The model of a table: plain text and links, which every format renders in its own way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

Align = Literal["left", "right"]


@dataclass(frozen=True)
class Item:
    """One printed value."""

    text: str  # What is printed, without any markup.
    href: str | None = None  # Where the value comes from, relative to the report's folder.
    bold: bool = False  # Whether it is the best of its group.
    rows: int = 1  # How many rows it spans; an item with ``rows=0`` is covered by the one above.
    columns: int = 1  # How many columns it spans.
    mark: str = ""  # Mark of its footnote.
    measured: str = ""  # What was measured for a published value, printed beside it.
    origin: str | None = None  # Where that comes from.
    why: str = ""  # Mark of the footnote that says why nothing was measured, or how.


@dataclass(frozen=True)
class Column:
    """One column: its heading, the heading above it, and the mark of its footnote."""

    label: str
    group: str = ""
    mark: str = ""
    align: Align = "right"

    @property
    def full_label(self) -> str:
        """Both headings in one, for formats that have a single row of them."""
        return f"{self.group}: {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Note:
    """A footnote; `mark` is empty where it belongs to the whole table."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One row; `starts_group` asks for a line above it."""

    items: tuple[Item, ...]
    starts_group: bool = False


@dataclass(frozen=True)
class Table:
    """A table, ready to be rendered in any format."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    published: Table | None = None
    """The same table of the paper, shown below what was measured."""
    detail: Table | None = None
    """Further columns of the same rows, too many for one table."""

    @property
    def parts(self) -> tuple[Table, ...]:
        """The table itself, its further columns and the published one below it."""
        return tuple(part for part in (self, self.detail, self.published) if part is not None)

    @property
    def number_and_heading(self) -> tuple[str, str]:
        """The title in two parts, such as ``("II", "Pruning results")``; the number may be empty."""
        match = re.fullmatch(r"Table ([IVX]+)\. (.+)", self.title)
        return (match[1], match[2]) if match else ("", self.title)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper headings and how many columns each spans; empty headings stay single."""
        groups: list[tuple[str, int]] = []
        for column in self.columns:
            if groups and column.group and groups[-1][0] == column.group:
                groups[-1] = (column.group, groups[-1][1] + 1)
            else:
                groups.append((column.group, 1))
        return groups

    @property
    def links(self) -> list[str]:
        """Every target of a link, once, in reading order."""
        items = [item for part in self.parts for row in part.rows for item in row.items]
        return list(dict.fromkeys(href for item in items for href in (item.href, item.origin) if href))

    @property
    def group_rules(self) -> list[tuple[int, int]]:
        """First and last column, counted from 1, under each upper heading."""
        rules, first = [], 1
        for text, span in self.groups:
            if text:
                rules.append((first, first + span - 1))
            first += span
        return rules

    @property
    def header_columns(self) -> int:
        """How many columns at the left name the row."""
        return sum(1 for _ in takewhile(lambda column: column.align == "left", self.columns))
