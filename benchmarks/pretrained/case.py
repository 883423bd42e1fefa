"""What a method is given of a network, and how the result is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from benchmarks.pretrained.splits import Split

Measures = dict[str, float]
Kind = Literal["convolutional", "transformer"]


class Pairs:
    """Batches with targets, each made when it is wanted.

    Parameters
    ----------
    batches : list
        Batches without labels.
    targets : callable
        See `Case`.
    """

    def __init__(self, batches: list[Any], targets: Callable[[Any], Tensor]) -> None:
        self._batches, self._targets = batches, targets

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((batch, self._targets(batch)) for batch in self._batches)


@dataclass
class Case:
    """One network with its data.

    Parameters
    ----------
    model : nn.Module
        The trained network, in evaluation mode; it is not changed.
    example : object
        Inputs of one forward of one sample.
    calibration : list
        Batches without labels.
    targets : callable
        ``targets(batch)`` returns what `loss` compares with: made from the network itself or from the inputs, never
        from labels.
    loss : callable
        ``loss(outputs, targets)`` returns a scalar, for methods that need gradients.
    measure : callable
        ``measure(model)`` returns columns of the table.
    options : dict
        Of `ifap.prune`, the same for all methods.
    blocks : str
        Name of the list of equal blocks, for rivals that remove whole ones; empty where there is none.
    """

    model: nn.Module
    example: Any
    calibration: list[Any]
    targets: Callable[[Any], Tensor]
    loss: Callable[[Any, Tensor], Tensor]
    measure: Callable[[nn.Module], Measures]
    options: dict[str, Any] = field(default_factory=dict)
    blocks: str = ""

    @property
    def labelled(self) -> Pairs:
        """Batches with targets, which are made only where a method looks at them."""
        return Pairs(self.calibration, self.targets)


@dataclass(frozen=True)
class Network:
    """One line of the list of networks.

    Parameters
    ----------
    title : str
        What it is, for the page.
    kind : {'convolutional', 'transformer'}
        Which rivals are made for it.
    cases : callable
        ``cases(folder, split)`` returns the cases; their measures are averaged.
    metric : str
        What column ``metric`` holds.
    targets : tuple of float
        Shares of the MACs to remove.
    higher_is_better : bool
        Of the metric.
    """

    title: str
    kind: Kind
    cases: Callable[[Path, Split], list[Case]]
    metric: str
    targets: tuple[float, ...]
    higher_is_better: bool = True


class Way(Protocol):
    """What takes a network to fewer MACs."""

    def __call__(self, case: Case, share: float, *, compensate: bool) -> nn.Module:
        """Return the network without a share of its MACs."""
