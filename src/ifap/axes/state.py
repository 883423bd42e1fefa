"""Put a network back to the state that it had: forwards keep caches, and write into buffers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.tensors import named_tensors
from ifap.layers import modules_by_name

_CONTAINERS = {dict, list, set, OrderedDict}
_HOOKS = {name for name in vars(nn.Module()) if "hook" in name}
_REGISTERED = ("_parameters", "_buffers", "_modules")
_Attributes = tuple[dict[str, Any], list[Any], list[tuple[Any, Any]]]
"""Attributes of a module, its empty containers, and its other containers with what they hold."""


class State:
    """What a network keeps between two forwards: attributes of its modules, and values of tensors that do not learn.

    Hooks are none of it, so that they can be registered and removed between `__init__` and `restore`.

    Parameters
    ----------
    model : nn.Module
        Any network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(home, _snapshot(home, _HOOKS)) for home in _notes(model)]
        self._values = [
            (tensor, tensor._version, tensor.detach().clone()) for tensor in _written(model, parameters=False)
        ]

    def restore(self) -> None:
        """Put everything back to what it was."""
        for home, before in self._attributes:
            _put_back(home, before, _HOOKS)
        for place, (tensor, version, values) in enumerate(self._values):
            if tensor._version != version:
                tensor.detach().copy_(values)
                self._values[place] = (tensor, tensor._version, values)


@contextmanager
def kept_state(model: nn.Module) -> Iterator[State]:
    """Put the state of a network back after the block, and within it where `State.restore` is called."""
    state = State(model)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def kept_notes(model: nn.Module) -> Iterator[None]:
    """Put plain attributes back after a block in which a network learns; parameters and buffers stay as they are."""
    left = _HOOKS.union(_REGISTERED, ("training",))
    before = [(home, _snapshot(home, left)) for home in _notes(model)]
    try:
        yield
    finally:
        for home, attributes in before:
            _put_back(home, attributes, left)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put every attribute of every module back to what it was, hooks too; values of tensors are not looked at."""
    before = [(module.__dict__, _snapshot(module.__dict__)) for module in modules_by_name(model).values()]
    try:
        yield
    finally:
        for home, attributes in before:
            _put_back(home, attributes)


@contextmanager
def same_values(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Put the values of all tensors, or all but parameters, back after the block: a forward may write into them."""
    before = [(tensor, tensor.detach().clone()) for tensor in _written(model, parameters=parameters)]
    try:
        yield
    finally:
        for tensor, values in before:
            if not torch.equal(tensor.detach(), values):
                tensor.detach().copy_(values)


def _notes(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the attributes of modules that may keep something.

    Layers of torch keep nothing: what is set on them, such as a weight that a hook makes, is for one forward.
    """
    for module in modules_by_name(model).values():
        if not type(module).__module__.startswith(("torch.nn.", "torch.ao.")):
            yield module.__dict__


def _written(model: nn.Module, *, parameters: bool) -> list[Tensor]:
    """Return the tensors that a forward can write into."""
    return [
        tensor
        for tensor in named_tensors(model).values()
        if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_inference()
        if parameters or not isinstance(tensor, nn.Parameter)
    ]


def _snapshot(attributes: dict[str, Any], but: Collection[str] = ()) -> _Attributes:
    containers = [value for key, value in attributes.items() if type(value) in _CONTAINERS and key not in but]
    empty = [value for value in containers if not value]  # of a hundred containers of torch's modules, nearly all
    return dict(attributes), empty, [(value, value.copy()) for value in containers if value]


def _put_back(home: dict[str, Any], before: _Attributes, but: Collection[str] = ()) -> None:
    attributes, empty, filled = before
    left = {key: home[key] for key in but if key in home}
    home.clear()
    home.update(attributes)
    home.update(left)  # in their places: a walk over attributes relies on their order
    for container in empty:
        if container:
            container.clear()
    for container, content in filled:
        _refill(container, content)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
