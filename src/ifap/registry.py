"""One registry per kind of thing (methods, models, data sets, tasks): a new entry is one file."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

from ifap.errors import ConfigError, nearest

Entry = TypeVar("Entry")

_REGISTRATION = re.compile(r"""^@?[A-Z_]+\.register\(\s*"([a-z0-9_]+)"\s*\)""", re.MULTILINE)


@cache
def entry_names(package: str) -> frozenset[str]:
    """Return the names registered in the files of a package, read from their text.

    A misspelt name in ``params.yaml`` is found this way without importing torch and every model
    library, which takes seconds.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    names: set[str] = set()
    for folder in spec.submodule_search_locations:
        for file in sorted(Path(folder).glob("*.py")):
            names.update(_REGISTRATION.findall(file.read_text("utf-8")))
    return frozenset(names)


class Registry(Generic[Entry]):
    """Named entries of one kind; the files of a package register themselves on first use.

    `kind` says in error messages what the entries are, for example ``"model"``. The modules of `package` hold the
    entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._packages = [package]
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that files its argument under `name`; a name is taken once."""

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ConfigError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def also(self, package: str) -> None:
        """Let the modules of another package hold entries as well."""
        if package not in self._packages:
            self._packages.append(package)
            self._loaded = False

    def names(self) -> list[str]:
        """Return the sorted names of all entries."""
        self._load()
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises a ConfigError if there is none; it gives the nearest valid name.
        """
        self._load()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}")
        return self._entries[name]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for name in self._packages:
            package = importlib.import_module(name)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
                importlib.import_module(f"{name}.{module.name}")
