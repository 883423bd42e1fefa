"""Flow to the output: the signal of each unit to its readers, times the gradient of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ifap.axes.units import Floats, Graph
from ifap.methods import METHODS
from ifap.methods.base import defaults
from ifap.scores.energies import energy_shares
from ifap.scores.fisher import NoGradientError, unit_fisher
from ifap.scores.moments import Halves


@METHODS.register("flow")
@defaults(steps=1, compensate=True, per_cost=True)
def flow_to_output(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    normalize: str,
    site: str,
    seed: int,
    graph: Graph,
    compensate: bool = True,
    outputs: tuple[str, ...] | None = None,
    labelled: Iterable[tuple[Any, Any]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    moments: dict[str, Halves] | None = None,
    said: list[str] | None = None,
) -> Floats:
    """Score units by the KL divergence to the whole network that removing each is expected to cost, in nats a sample.

    `normalize` and `site` are not used, and no labels are: a `loss` that is given without labels takes the outputs and
    the inputs of a batch, and its gradient stands for the directions of `ifap.scores.directions`. The ranking divides
    the scores by what each unit saves; see `ifap.methods.base.Defaults`.

    Where no gradient arrives at any unit, as in a quantised network, the score is what share of the energy that layers
    read comes from the unit (`ifap.scores.energies`); `said` tells.
    """
    own = loss if labelled is None else None
    try:
        return unit_fisher(
            model, graph, batches, seed=seed, centred=compensate, outputs=outputs, loss=own, moments=moments
        )
    except NoGradientError as error:
        if said is not None:
            said.append(f"by the energy that units bring to their readers: {error}")
        return energy_shares(model, graph, batches, centred=compensate)
