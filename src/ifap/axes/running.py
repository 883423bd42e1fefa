"""Follow which modules run, and count how often each calls a function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Running:
    """Follow the forwards of modules while it is open.

    Modules that are not in `modules` count as part of the module that calls them. `stack` holds the names of the
    running modules, the innermost last; the first, empty name stands for their caller. `counters` says how often each
    of these has called each function, see `count`. `last` is the innermost module, or after an error the module that
    failed.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._names = {module: name for name, module in modules.items()}
        self.stack: list[str] = [""]
        self.counters: list[dict[str, int]] = [{}]
        self.last = ""

    def __enter__(self) -> Running:
        self._hooks = (
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        )
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def module(self) -> str:
        """Name of the innermost module that runs."""
        return self.stack[-1]

    def count(self, function: str) -> int:
        """Count a call in every running module; returns how many calls of it the innermost module had made before."""
        ordinal = self.counters[-1].get(function, 0)
        for counter in self.counters:
            counter[function] = counter.get(function, 0) + 1
        return ordinal

    def _begin(self, module: nn.Module, _args: Any) -> None:
        if module in self._names:
            self.stack.append(self._names[module])
            self.counters.append({})
            self.last = self.module

    def _end(self, module: nn.Module, _args: Any, output: Any) -> None:
        if module in self._names:
            self.stack.pop()
            self.counters.pop()
            if output is not None:
                self.last = self.module
