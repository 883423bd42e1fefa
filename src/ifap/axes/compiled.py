"""Run the compiled parts of a forward uncompiled, so that every operation is seen."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_map


@contextmanager
def without_compiler(*, both: bool = False) -> Iterator[None]:
    """Run compiled functions, branches, loops and flexible attention operation by operation inside the block.

    Does nothing if the compiler is not loaded: loading it takes seconds, and most networks do without it. With `both`,
    both branches of ``torch.cond`` run, so that the layers of either are seen; else only the chosen one.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    before = getattr(_THREAD, "branches", None)
    _THREAD.branches = _both if both else _one
    try:
        with _taken_apart(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _THREAD.branches = before


_THREAD = threading.local()
_LOCK, _OPEN = threading.Lock(), [0]
_WHOLE = HigherOrderOperator.__call__


@contextmanager
def _taken_apart() -> Iterator[None]:
    """Replace how torch calls operations such as ``torch.cond``; a mode would slow every operation down."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    with _LOCK:
        _OPEN[0] += change
        HigherOrderOperator.__call__ = _in_parts if _OPEN[0] else _WHOLE  # type: ignore[method-assign]


def _in_parts(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run an operation that calls functions, such as ``torch.cond``, as the operations of these functions.

    This happens above autograd, so that gradients reach the layers inside of the functions. It happens below all modes:
    sizes inside such a function are not corrected, because the cut network runs the operation as a whole.
    """
    branches = getattr(_THREAD, "branches", None)
    if branches is None:  # another thread
        return _WHOLE(func, *args, **kwargs)  # type: ignore[no-untyped-call]
    parts = branches if func.name() == "cond" else func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    if parts is None:
        return _WHOLE(func, *args, **kwargs)  # type: ignore[no-untyped-call]
    with torch._C.DisableTorchFunction():
        return parts(*args, **kwargs)


def _one(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    """Run the branch of ``torch.cond`` that is chosen."""
    return (true_fn if pred else false_fn)(*operands)


def _both(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    """Run both branches of ``torch.cond``, and choose between their results."""
    found, other = true_fn(*operands), false_fn(*operands)

    def chosen(a: Any, b: Any) -> Any:
        return torch.where(pred, a, b) if isinstance(pred, Tensor) and isinstance(a, Tensor) else a if pred else b

    return tree_map(chosen, found, other)
