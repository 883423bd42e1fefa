"""Random numbers of a forward, made the same for a network and for a cut copy of it, which draws fewer of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifap.axes.dispatch import DispatchMode

_SEED = 20_011  # one that networks are unlikely to set themselves
_VALUE = 0.5
_FREE = frozenset({
    "rand", "rand_like", "randn", "randn_like", "uniform", "uniform_", "normal_", "bernoulli_", "exponential",
    "exponential_", "log_normal", "log_normal_", "cauchy", "cauchy_", "geometric", "geometric_",
})  # fmt: skip
"""Operations that draw without regard to the values of a tensor."""


@contextmanager
def same_draws() -> Iterator[None]:
    """Seed every generator that a forward may use inside the block, and put the generators back after it."""
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002 (networks draw from it)
    with torch.random.fork_rng():
        random.seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(state)  # noqa: NPY002


class SteadyDraws(DispatchMode):
    """Give all floating-point numbers that a forward draws the same value, inside `same_draws`.

    Numbers that a network draws with a seed or a generator of its own are kept: they are the same in each forward.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None or torch.initial_seed() != _SEED:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "bernoulli" and isinstance(args[0], Tensor) and len(args) == 1:
            return args[0].clone()
        before = torch.get_rng_state()
        out = func(*args, **kwargs)
        torch.set_rng_state(before)  # so that whole numbers, which are kept as drawn, do not depend on widths
        if name == "normal" and any(isinstance(each, Tensor) for each in args[:2]):
            return args[0] + _VALUE * args[1]
        if name in _FREE and isinstance(out, Tensor) and out.is_floating_point():
            out.fill_(_VALUE)
        return out
