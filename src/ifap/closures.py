"""Let the functions that a copied network holds refer to the copy: Python copies objects, but not functions.

A hook that writes into a dict of the network, or a lambda that calls one of its layers, would go on with the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CellType, FunctionType
from typing import Any

from torch import nn

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def rebind(model: nn.Module, memo: Mapping[int, Any]) -> None:
    """Rebind functions in attributes and hooks of a copied network to the copied objects.

    `model` is the copy and is changed in place. `memo` is the dict that `copy.deepcopy` filled: the identity of each
    original object, and its copy.
    """
    done: dict[int, Callable[..., Any]] = {}
    for module in model.modules():
        for key, value in module.__dict__.items():
            if key in _REGISTRIES:
                continue
            if isinstance(value, FunctionType):
                module.__dict__[key] = _rebound(value, memo, done)
            elif isinstance(value, (dict, list)):
                _rebind_items(value, memo, done)


def _rebind_items(
    held: dict[Any, Any] | list[Any], memo: Mapping[int, Any], done: dict[int, Callable[..., Any]]
) -> None:
    for key, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
        if isinstance(value, FunctionType):
            held[key] = _rebound(value, memo, done)


def _rebound(function: Any, memo: Mapping[int, Any], done: dict[int, Callable[..., Any]]) -> Any:
    """Return a function whose closure and defaults hold the copies, or the function itself if it holds no original."""
    if id(function) in done:
        return done[id(function)]
    done[id(function)] = function  # one that refers to itself
    cells = function.__closure__ or ()
    held = [cell.cell_contents if _is_filled(cell) else None for cell in cells]
    defaults = function.__defaults__ or ()
    copies = [_copied(value, memo, done) for value in held]
    given = tuple(_copied(value, memo, done) for value in defaults)
    if all(a is b for a, b in zip((*held, *defaults), (*copies, *given), strict=True)):
        return function
    closure = tuple(
        CellType(new) if new is not old else cell for cell, old, new in zip(cells, held, copies, strict=True)
    )
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, given or None, closure or None)
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    twin.__qualname__, twin.__doc__, twin.__module__ = function.__qualname__, function.__doc__, function.__module__
    done[id(function)] = twin
    return twin


def _copied(value: Any, memo: Mapping[int, Any], done: dict[int, Callable[..., Any]]) -> Any:
    return _rebound(value, memo, done) if isinstance(value, FunctionType) else memo.get(id(value), value)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not bound yet
        return False
    return True
