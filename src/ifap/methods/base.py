"""What a scoring method is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from ifap.flow import Normalize, Site

Loss = Callable[[Any, Any], Tensor]

EXTRAS = ("labelled", "loss", "graph", "macs")
"""What a method is given only if its signature names it."""


class Method(Protocol):
    """Score the units of every layer of a network: low scores are removed first.

    Called once an iteration, on the network as it then is. The returned mapping has one entry a
    scored layer: its name and a tensor with one finite, non-negative value a unit.

    A method that needs more names it as a further keyword argument:

    labelled : iterable of (inputs, targets), or None
        What the caller of `ifap.prune` gave as ``labelled``.
    loss : callable, or None
        ``loss(outputs, targets)`` returns a scalar; what the caller gave as ``loss``.
    graph : Graph
        The units of the network as it is; see `ifap.axes.units.Graph`.
    macs : dict of str to int
        Multiply-accumulates of each module; see `ifap.costs.macs_by_module`.
    """

    def __call__(
        self, model: nn.Module, batches: Iterable[Any], *, normalize: Normalize, site: Site, seed: int
    ) -> dict[str, Tensor]:
        """Return the scores, shape (units,) each."""
        ...


AnyMethod = Callable[..., dict[str, Tensor]]
"""A `Method`, with or without some of `EXTRAS`."""


def score(method: AnyMethod, model: nn.Module, batches: Iterable[Any], **given: Any) -> dict[str, Tensor]:
    """Call a method with those of `EXTRAS` that its signature names, and with everything else in `given`."""
    named = inspect.signature(method).parameters
    unwanted = {name for name in EXTRAS if name not in named}
    return method(model, batches, **{name: value for name, value in given.items() if name not in unwanted})
