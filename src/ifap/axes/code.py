"""Find the names that the code of a network uses: a module whose name no code uses is not run."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

from torch import nn

_TORCHS = ("torch.nn.", "ifap.axes.")  # homes of modules whose code is known
_ANY_CHILD = frozenset({"_modules", "children", "get_submodule", "getattr", "named_children"})
"""Attributes and functions that reach a child of a module without its name."""


@functools.cache
def names_in(kind: Any) -> frozenset[str]:
    """Return the names that the functions of a kind of module use, and those of functions that they call."""
    own = [base for base in kind.__mro__ if issubclass(base, nn.Module) and not is_torchs(base)]
    functions = [_unwrapped(each) for base in own for each in vars(base).values() if inspect.isfunction(each)]
    called = [
        each
        for function in functions
        for name in _names(function.__code__)
        if inspect.isfunction(each := function.__globals__.get(name))
    ]
    return frozenset(name for each in (*functions, *called) for name in _names(each.__code__))


def is_torchs(kind: type) -> bool:
    """Whether a kind of module is torch's own, or replaces one of torch's."""
    return kind.__module__.startswith(_TORCHS)


def names_used(modules: Iterable[nn.Module]) -> set[str] | None:
    """Return the names that the code of a network uses outside of constructors; None if it may reach any module.

    The code is that of the files in which the modules, and the functions that they hold, are defined.
    """
    files: set[str] = set()
    found: set[str] = set()
    for module in modules:
        if is_torchs(type(module)):
            continue
        files.add(type(module).__module__)
        for value in vars(module).values():
            if inspect.isfunction(value) or inspect.ismethod(value):
                files.add(value.__module__)
                found.update(_names(_unwrapped(getattr(value, "__func__", value)).__code__))
            elif callable(value) and not isinstance(value, (nn.Module, type)):
                return None
    found.update(*map(_names_in_file, files))
    return found if found.isdisjoint(_ANY_CHILD) else None


@functools.cache
def _names_in_file(home: str) -> frozenset[str]:
    """Return the names that functions and methods in the file of a module use, constructors left out."""
    found: set[str] = set()
    for value in list(vars(sys.modules[home]).values()) if home in sys.modules else ():
        if not inspect.isfunction(value) and not inspect.isclass(value):  # attributes of others may run code
            continue
        members = vars(value).items() if inspect.isclass(value) and not is_torchs(value) else [("", value)]
        for name, each in members:
            function = _unwrapped(getattr(each, "__func__", getattr(each, "fget", each)))
            if inspect.isfunction(function) and name != "__init__":
                found.update(_names(function.__code__))
    return frozenset(found)


def _unwrapped(function: Any) -> Any:
    """Return the function that decorators wrap, as far as it is a Python function."""
    return inspect.unwrap(function, stop=lambda each: not inspect.isfunction(getattr(each, "__wrapped__", None)))


def makes_own_copies(module: nn.Module) -> bool:
    """Whether a module defines how it is copied or pickled, so that attributes set on it may be lost."""
    kind = type(module)
    pickles = (kind.__reduce__, kind.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__)
    return pickles or hasattr(kind, "__deepcopy__")


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in a function and in the functions that are defined inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def calls_a_cache(frame: FrameType) -> bool:
    """Whether a frame makes a call, and its code mentions a function whose results `functools` caches.

    The function is a global, an attribute of a global such as a module, or a method of the first argument.
    """
    code = frame.f_code
    if not dis.opname[code.co_code[frame.f_lasti]].startswith("CALL"):
        return False
    homes = [frame.f_globals.get(name) for name in code.co_names]
    if code.co_varnames:
        homes.append(type(frame.f_locals.get(code.co_varnames[0])))
    found = [*homes, *(vars(home).get(name) for home in homes if hasattr(home, "__dict__") for name in code.co_names)]
    return any(isinstance(each, functools._lru_cache_wrapper) for each in found)
