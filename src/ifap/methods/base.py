"""What a scoring method is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from ifap.flow import Normalize, Site


class Method(Protocol):
    """Score the units of every layer of a network: low scores are removed first.

    Called once an iteration, on the network as it then is. The returned mapping has one entry a
    scored layer: its name and a tensor with one finite, non-negative value a unit.
    """

    def __call__(
        self, model: nn.Module, batches: Iterable[Any], *, normalize: Normalize, site: Site, seed: int
    ) -> dict[str, Tensor]:
        """Return the scores, shape (units,) each."""
        ...
