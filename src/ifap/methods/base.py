"""The interface of scoring methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from ifap.arguments import shown
from ifap.errors import ScoreError
from ifap.forward import refuse_empty

if TYPE_CHECKING:
    from ifap.scores.flow import Normalize, Site
    from ifap.scores.moments import Halves

Loss = Callable[[Any, Any], Tensor]

EXTRAS = ("labelled", "loss", "graph", "macs", "compensate", "outputs", "moments", "said")
"""Arguments that a method gets only if its signature names them."""


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
    compensate : bool
        Whether the layers that read removed units are compensated.
    outputs : tuple of str, or None
        Which of the named outputs of the network count.
    moments : dict
        Empty. Second moments of what layers read that the method puts here need not be measured again for compensation;
        see `ifap.scores.moments.halves`.
    said : list of str
        Empty. A method that falls back adds the fallback score and its reason; the receipt lists them.
    """

    def __call__(
        self, model: nn.Module, batches: Iterable[Any], *, normalize: Normalize, site: Site, seed: int
    ) -> dict[str, Tensor]:
        """Return the scores, shape (units,) each."""
        ...


class Learnt(NamedTuple):
    """Further results of a method; see `Method`."""

    moments: dict[str, Halves]
    said: list[str]


AnyMethod = Callable[..., Any]
"""A `Method`, with or without some of `EXTRAS`; it may also return an array with one score a unit."""


@dataclass(frozen=True)
class Defaults:
    """Default options of a method.

    Parameters
    ----------
    steps : int
        Iterations.
    compensate : bool
        Whether the layers that read removed units are compensated.
    per_cost : bool
        Whether scores are amounts of damage, to be divided by the multiply-accumulates that each unit saves at the
        present widths; else their order is taken as it is.
    """

    steps: int = 30
    compensate: bool = False
    per_cost: bool = False


def defaults(**values: Any) -> Callable[[AnyMethod], AnyMethod]:
    """Return a decorator that sets the default options of a method; see `Defaults`."""

    def add(method: AnyMethod) -> AnyMethod:
        method.defaults = Defaults(**values)  # type: ignore[attr-defined]
        return method

    return add


def defaults_of(method: AnyMethod) -> Defaults:
    """Return the default options of a method."""
    found = getattr(method, "defaults", None)
    return found if isinstance(found, Defaults) else Defaults()


def score(method: AnyMethod, model: nn.Module, batches: Iterable[Any], **given: Any) -> Any:
    """Call a method with those of `EXTRAS` that its signature names, and with everything else in `given`.

    Raises a ScoreError that names the method if it returns no scores.
    """
    named = inspect.signature(method).parameters
    unwanted = {name for name in EXTRAS if name not in named}
    found = method(model, batches, **{name: value for name, value in given.items() if name not in unwanted})
    if isinstance(found, dict):
        wrong = next((layer for layer, value in found.items() if not isinstance(value, Tensor)), None)
        if wrong is None:
            if any(value.is_meta for value in found.values()):
                refuse_empty(model)
            return found
        raise ScoreError(f"{_title(method)} must give layer '{wrong}' a tensor of scores, not {shown(found[wrong])}")
    number = given["graph"].num_units
    if not isinstance(found, np.ndarray) or found.shape != (number,) or found.dtype.kind not in "fiu":
        wanted = f"a dict of layer to a tensor of scores, or an array of {number} numbers, one for each unit"
        raise ScoreError(f"{_title(method)} must return {wanted}, not {shown(found)}")
    return found


def _title(method: AnyMethod) -> str:
    return f"method '{getattr(method, '__name__', type(method).__name__)}'"
