"""The registry of rules, and helpers that read arguments and parts of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ifap.axes.expressions import CannotAgreeError, Expression, size_of, split
from ifap.axes.trace import Dims, Rule

if TYPE_CHECKING:
    from ifap.axes.trace import Tracer

RULES: dict[str, Rule] = {}
"""Operation, such as ``aten.view``, to its rule. The rule of ``add`` is that of ``add_`` too, which needs no entry."""
PRODUCTS: set[Rule] = set()
"""The rules of products."""


def rule(*names: str, is_product: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations of ``aten``, or of another library where the name has a dot."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name if "." in name else f"aten.{name}"] = function
        if is_product:
            PRODUCTS.add(function)
        return function

    return add


def argument(args: Sequence[Any], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    """Return an argument by its place or name."""
    return args[index] if index < len(args) else kwargs.get(name, default)


def broadcast(t: Tracer, func: Any, inputs: list[Dims], shape: tuple[int, ...]) -> Dims:
    """Return the dimensions of a result of this shape, to which the inputs are broadcast."""
    found: Dims = []
    rank = len(shape)
    for place, size in enumerate(shape):
        expression: Expression | None = None
        if size != 1:
            for dims in inputs:
                index = len(dims) - rank + place
                if index >= 0 and size_of(dims[index]) == size:
                    if expression is None:
                        expression = dims[index]
                    elif dims[index] is not expression:
                        t.unify(expression, dims[index], func)
        found.append(size if expression is None else expression)
    return found


def part_of(t: Tracer, dim: Expression, start: int, length: int) -> Expression:
    """Return `length` positions of an expression from `start` on; the expression is refined if necessary."""
    if length == size_of(dim):
        return dim
    try:
        _, rest = split(dim, start)
        part, _ = split(rest, length)
    except CannotAgreeError:
        t.pin(dim, "a slice cuts it in the middle")
        return length
    return part
