"""The sizes that a network's own configuration can express.

Networks of some libraries are built from a *configuration*, a set of named numbers, which is saved beside the weights.
A pruned network can be built in the same way if other numbers lead to its sizes. These numbers are found by trying: the
network is built without memory for its weights, and the shapes of its tensors are compared with the wanted ones.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import nn

from ifap.layers import modules_by_name
from ifap.trouble import is_resource_error

Shapes = dict[str, tuple[int, ...]]
Values = dict[str, Any]
Key = tuple[str | int, ...]
_MOST_TRIALS = 300  # networks that are built to find one set of values


class Difference(NamedTuple):
    """One dimension of a tensor whose size a configuration does not give."""

    tensor: str
    made: int
    wanted: int


class Fit(NamedTuple):
    """The values of a configuration that come nearest to the wanted sizes, and what still differs."""

    values: Values
    left: list[Difference]


def is_configured(module: nn.Module) -> bool:
    """Whether a network holds the configuration that it was built from, and can save itself with it."""
    config = getattr(module, "config", None)
    return callable(getattr(config, "to_dict", None)) and callable(getattr(module, "save_pretrained", None))


def configured_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Return the network itself, or the outermost modules inside it, that were built from a configuration."""
    found: dict[str, nn.Module] = {}
    for name, module in modules_by_name(model).items():
        if is_configured(module) and not any(not outer or name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shape of each parameter and buffer of a network, by all its names."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


class Configuration:
    """A configuration, and the shapes of networks that are built from changed values of it.

    `is_configured` must hold for `model`, which is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._network, self._config = type(model), model.config
        self._known: dict[str, Shapes | None] = {}
        self._without_effect: set[Key] = set()
        self._most = 0
        self._stored: Values = self._config.to_dict()  # type: ignore[operator, union-attr]
        self.shapes: Shapes = self._shapes(self._stored) or {}
        """Shapes of the network that the present configuration makes; none where it makes none."""
        self._implied = self._implied_values(model)

    def build(self, values: Values) -> nn.Module:
        """Build the network of other values, on the device of the present context."""
        network: nn.Module = self._network(type(self._config).from_dict(dict(values)))  # type: ignore[union-attr]
        return network

    def fit(self, wanted: Mapping[str, tuple[int, ...]]) -> Fit:
        """Find the values with which tensors get the wanted shapes.

        Tensors that `wanted` does not name may have any shape. `Fit.left` is empty if the values give all wanted
        shapes.
        """
        values = {**self._stored, **self._implied}
        left = self._left(values, wanted)
        if left is None:
            return Fit(self._stored, [Difference(name, 0, shape[0]) for name, shape in wanted.items() if shape])
        self._most = len(self._known) + _MOST_TRIALS
        found = self._search(Fit(values, left), wanted, frozenset())
        if found.left:
            return found
        values = found.values
        for name in self._implied:  # what follows from other values need not be said
            fewer = {key: value for key, value in values.items() if key != name}
            fewer |= {name: None} if name in self._stored else {}
            if self._left(fewer, wanted) == []:
                values = fewer
        return Fit(values, [])

    def _search(self, fit: Fit, wanted: Mapping[str, tuple[int, ...]], done: frozenset[Key]) -> Fit:
        """Change one number at a time, at each step the one that leaves the fewest sizes different."""
        best = fit
        for numbers in (True, False):  # what the configuration leaves open comes last
            for key, better in self._moves(fit, wanted, done, numbers=numbers) if best.left else ():
                found = self._search(better, wanted, done | {key})
                if len(found.left) < len(best.left):
                    best = found
                if not best.left or len(self._known) > self._most:
                    return best
        return best

    def _moves(
        self, fit: Fit, wanted: Mapping[str, tuple[int, ...]], done: frozenset[Key], *, numbers: bool
    ) -> list[tuple[Key, Fit]]:
        """Return the changes of one number after which fewer sizes differ."""
        found: list[tuple[Key, Fit]] = []
        pairs = {(each.made, each.wanted) for each in fit.left}
        present = self._shapes(fit.values)
        for key, value in _leaves(fit.values):
            if key in done or key in self._without_effect or (type(value) is int) is not numbers:
                continue
            others = [_changed(fit.values, key, number) for number in _candidates(value, pairs)]
            for other in others:
                left = self._left(other, wanted)
                if left is not None and len(left) < len(fit.left):
                    found.append((key, Fit(other, left)))
            if others and all(self._shapes(other) == present for other in others):
                self._without_effect.add(key)
        return sorted(found, key=lambda move: len(move[1].left))

    def _left(self, values: Values, wanted: Mapping[str, tuple[int, ...]]) -> list[Difference] | None:
        """Return the sizes that differ under some values; None if no network can be built from these."""
        shapes = self._shapes(values)
        if shapes is None:
            return None
        left = []
        for name, shape in wanted.items():
            made = shapes.get(name, ())
            if len(made) != len(shape):
                left.append(Difference(name, 0, 0))
            left += [Difference(name, a, b) for a, b in zip(made, shape, strict=False) if a != b]
        return left

    def _shapes(self, values: Values) -> Shapes | None:
        key = json.dumps(values, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = self._try(values)
        return self._known[key]

    def _try(self, values: Values) -> Shapes | None:
        try:
            with torch.device("meta"), _without_log():
                return shapes_of(self.build(values))
        except Exception as error:  # whatever a constructor raises for values that do not go together
            if is_resource_error(error):
                raise
            return None

    def _implied_values(self, model: nn.Module) -> Values:
        """Return numbers that the configuration leaves open and that all modules agree on, such as a head's width."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for module in modules_by_name(model).values():
            for name, value in module.__dict__.items():
                if type(value) is int and value > 0 and not name.startswith("_"):
                    found[name].add(value)
        implied: Values = {}
        for name, values in sorted(found.items()):
            if len(values) == 1 and self._stored.get(name) is None:
                more = {**implied, name: next(iter(values))}
                if self._shapes({**self._stored, **more}) == self.shapes:
                    implied = more
        return implied


@contextmanager
def _without_log() -> Iterator[None]:
    """Silence the log of a library while values are tried."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _leaves(values: Any, key: Key = ()) -> Iterator[tuple[Key, int | None]]:
    """Yield the numbers and unset entries of a configuration, each with its path."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in inner:
        if value is None or type(value) is int:
            yield (*key, name), value
        else:
            yield from _leaves(value, (*key, name))


def _candidates(value: int | None, pairs: set[tuple[int, int]]) -> list[int]:
    """Return candidate values for a number, each in proportion to one of the differing sizes."""
    if value is None:
        return sorted({wanted for _, wanted in pairs if wanted})
    shares = {Fraction(wanted, made) for made, wanted in pairs if made and wanted}
    return sorted({int(value * share) for share in shares if (value * share).denominator == 1} - {0, value})


def _changed(values: Any, key: Key, number: int) -> Any:
    """Return a copy of the values with one number changed."""
    first, *rest = key
    inner = number if not rest else _changed(values[first], tuple(rest), number)
    if isinstance(values, list):
        return [*values[: int(first)], inner, *values[int(first) + 1 :]]
    return {**values, first: inner}
