"""Mean activation norm, without weights (a control): the first factor of flow.

Torch-Pruning's ``ActivationImportance`` takes the mean absolute value of the *inputs* of the layers
that read a unit, over the last batch alone. Here it is the unit's own output, an L2 norm over the
positions of a sample and a mean over all samples, so that it differs from flow in the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.methods import METHODS
from ifap.scores.flow import Normalize, Site, activation_norms


@METHODS.register("activation")
def activation(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: Normalize,
    site: Site,
    seed: int,
    graph: Graph | None = None,
) -> dict[str, Tensor]:
    """Score units by the mean norm of their activations; `seed` is not used."""
    return activation_norms(model, batches, site=site, normalize=normalize, graph=graph)
