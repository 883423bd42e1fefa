"""Axes that play the same role in repeated blocks, such as the neurons of every block of a transformer."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from ifap.axes.slots import Group

Modules = dict[str, Any]
_DIGITS = re.compile(r"\d+")


def same_roles(groups: list[Group], sizes: list[int], modules: Modules) -> list[tuple[int, ...]]:
    """Return the groups that have the same size and cut the same layers of different blocks.

    `sizes` holds the number of units of each group. Each tuple holds the indices of at least two groups with one role.
    """
    roles = _roles(modules)
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for group, size in zip(groups, sizes, strict=True):
        cut = frozenset((_role(slot.name, roles), slot.side) for slot in group.slots)
        found[cut, size, group.width].append(group.index)
    return [tuple(members) for members in found.values() if len(members) > 1]


def _roles(modules: Modules) -> dict[str, str]:
    """Return for each module its name, in which the number of a block is that of the first of its kind.

    Blocks of one kind are children of one module, of one class, whose names differ in digits only.
    """
    roles = {"": ""}
    for name, module in modules.items():
        first: dict[tuple[str, type], str] = {}
        for key, child in module._modules.items():
            if child is not None:
                alike = first.setdefault((_DIGITS.sub("#", key), type(child)), key)
                roles[f"{name}.{key}" if name else key] = f"{roles[name]}.{alike}" if name else alike
    return roles


def _role(name: str, roles: dict[str, str]) -> str:
    """Return the role of a module, or of a tensor that a module holds."""
    owner, _, leaf = name.rpartition(".")
    return roles[name] if name in roles else f"{roles.get(owner, owner)}.{leaf}"
