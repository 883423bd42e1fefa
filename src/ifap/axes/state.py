"""Put a network back to the state that it had: forwards keep caches, and write into buffers."""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ifap.axes.tensors import named_tensors, own_modules
from ifap.layers import modules_by_name

_CONTAINERS = {dict, OrderedDict, defaultdict, list, set, deque}
_REGISTERED = {"_parameters", "_buffers", "_modules"}
_SIMPLE = {bool, int, float, str, type(None), torch.device, torch.dtype, torch.Size}
_NO_STATE = (nn.Module, Tensor, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)
_LIBRARIES = {"torch", "builtins", "numpy", "functools", "enum", "logging", "threading"}
_DEEPEST, _MOST_ITEMS = 5, 1000  # levels of nested containers, and items of one, that are kept


class State:
    """A copy of the state that a forward may change: attributes of modules, and values of tensors that do not learn.

    Hooks belong to it: a forward may register some and note that it did. Register others before it is made. With
    `parameters`, the values of tensors that learn belong to it as well.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = False) -> None:
        self._attributes = _Contents(_notes(model))
        self._values = [(tensor, tensor.detach().clone()) for tensor in _written(model, parameters=parameters)]

    def restore(self) -> None:
        """Put the state back."""
        self._attributes.put_back()
        for tensor, values in self._values:
            if not torch.equal(tensor.detach(), values):  # a write through `tensor.data` raises no version
                tensor.detach().copy_(values)


@contextmanager
def kept_state(model: nn.Module, *, parameters: bool = False) -> Iterator[State]:
    """Put the state of a network back after the block, and within it where `State.restore` is called."""
    state = State(model, parameters=parameters)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def kept_notes(model: nn.Module) -> Iterator[None]:
    """Put plain attributes back after a block in which a network learns; parameters and buffers stay as they are."""
    before = _Contents(_notes(model), but=_REGISTERED | {"training"})
    try:
        yield
    finally:
        before.put_back()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put every attribute of every module back to what it was, hooks too; values of tensors are not put back."""
    before = _Contents(module.__dict__ for module in modules_by_name(model).values())
    try:
        yield
    finally:
        before.put_back()


def _notes(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the attributes of modules that may keep state between forwards.

    Layers of torch keep none: an attribute that is set on them, such as a weight that a hook makes, is for one forward.
    """
    for _, module in own_modules(model):
        yield module.__dict__


def _written(model: nn.Module, *, parameters: bool) -> list[Tensor]:
    """Return the tensors that a forward can write into."""
    return [
        tensor
        for tensor in named_tensors(model).values()
        if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_inference()
        if parameters or not isinstance(tensor, nn.Parameter)
    ]


class _Contents:
    """The contents of attributes, and of the containers and plain objects in them, at one time.

    `homes` are the attributes of each module; those that `but` names are not put back.
    """

    def __init__(self, homes: Iterable[dict[str, Any]], but: Collection[str] = ()) -> None:
        self._but = but
        self._homes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._empty: list[Any] = []  # nearly all containers of torch's modules
        self._filled: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Any, dict[str, Any]]] = []
        self._seen: set[int] = set()
        for home in homes:
            self._homes.append((home, dict(home)))
            for key, value in home.items():
                if type(value) in _SIMPLE or key in but:
                    continue
                if type(value) is OrderedDict and not value:
                    self._empty.append(value)
                else:
                    self._keep(value, 0 if key not in _REGISTERED else _DEEPEST)

    def put_back(self) -> None:
        """Put the contents back into the same containers and objects."""
        for home, attributes in self._homes:
            left = {key: home[key] for key in self._but if key in home}
            home.clear()
            home.update(attributes)
            home.update(left)  # at their old positions: a loop over attributes relies on their order
        for container in self._empty:
            if container:
                container.clear()
        for container, content in self._filled:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)
        for each, values in self._slots:
            for name, value in values.items():
                object.__setattr__(each, name, value)

    def _keep(self, value: Any, depth: int) -> None:
        """Keep the contents of a container or an object, and the contents of these."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if type(value) in _CONTAINERS:
            if not value:
                self._empty.append(value)
                return
            self._filled.append((value, value.copy()))
            inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
        else:
            inner = value if isinstance(value, tuple) else self._keep_object(value)
        if depth >= _DEEPEST:
            return
        for each in itertools.islice(inner, _MOST_ITEMS):
            if type(each) not in _SIMPLE:
                self._keep(each, depth + 1)

    def _keep_object(self, value: Any) -> list[Any]:
        """Keep the attributes of an object that is no module, tensor or function, and return their values."""
        kind = type(value)
        if isinstance(value, _NO_STATE) or kind.__module__.partition(".")[0] in _LIBRARIES:
            return []
        home = getattr(value, "__dict__", None)
        if isinstance(home, dict):
            self._filled.append((home, dict(home)))
        names = [name for base in kind.__mro__ for name in _as_tuple(vars(base).get("__slots__", ()))]
        slots = {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}
        if slots:
            self._slots.append((value, slots))
        return [*(home or {}).values(), *slots.values()]


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
