"""Find calls whose sizes differ between training and the traced evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ifap.axes.calls import as_written, call_key, listening
from ifap.axes.code import names_in
from ifap.axes.corrections import can_change
from ifap.axes.expressions import size_of
from ifap.axes.running import Running
from ifap.axes.sequences import Path, at
from ifap.axes.sizes import Key, Place, Recorder, value_of
from ifap.layers import modules_by_name

T = TypeVar("T")
_WRITING = ("parameters", "named_parameters", "data", "copy_", "lerp_", "mul_", "add_", "sub_")


def asks_for_mode(kind: Any) -> bool:
    """Whether a kind of module, or a function that it calls, reads whether it is in training."""
    return issubclass(kind, torch.jit.ScriptModule) or "training" in names_in(kind)


def differs_in_training(model: nn.Module) -> bool:
    """Whether a network may make other calls in training than in evaluation."""
    return any(map(asks_for_mode, _kinds(model)))


def may_write_weights(model: nn.Module) -> bool:
    """Whether a forward in training may write into weights, such as those of a teacher that follows the others."""
    return any(asks_for_mode(kind) and not names_in(kind).isdisjoint(_WRITING) for kind in _kinds(model))


def _kinds(model: nn.Module) -> set[type]:
    return set(map(type, modules_by_name(model).values()))


class Recall(TorchFunctionMode):
    """Check that calls take the same sizes as in the trace.

    `wanted` maps a call to the sizes among its arguments, each with its path.
    """

    def __init__(self, running: Running, wanted: dict[Place, list[tuple[Path, Any]]]) -> None:
        super().__init__()
        self._running, self._wanted = running, wanted
        self._functions = {function for _, function, _ in wanted}
        self._ran: set[str] = set()
        self._met: set[Place] = set()
        self._others: set[Place] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = call_key(func.__name__, args)
        module = self._running.module
        self._ran.add(module)
        if key in self._functions:
            place = (module, key, self._running.count(key))
            written = as_written(args, kwargs)
            for path, value in self._wanted.get(place, ()):
                (self._met if at(path, *written) == value else self._others).add(place)
        return func(*args, **kwargs)

    def missed(self) -> set[Place]:
        """Return the calls that took another size, or were not made by a module that ran."""
        return {place for place in self._wanted if place[0] in self._ran and place not in self._met - self._others}


def sizes_of_calls(recorder: Recorder, attributes: dict[Key, int]) -> dict[Place, list[tuple[Path, Any]]]:
    """Return the calls of one pass whose sizes may have to be corrected, with the sizes as they were traced."""
    found: dict[Place, list[tuple[Path, Any]]] = defaultdict(list)
    for use in recorder.uses:
        if can_change(use.origin, use.need):
            found[use.place].append((use.path, value_of(use.origin, size_of, attributes)))
    return dict(found)


def recalled(
    model: nn.Module, run: Callable[[], T], wanted: dict[Place, list[tuple[Path, Any]]]
) -> tuple[set[Place], T]:
    """Return the calls that differ from the trace in a run, and the result of the run."""
    with Running(modules_by_name(model)) as running, Recall(running, wanted) as recall, listening():
        found = run()
    return recall.missed(), found
