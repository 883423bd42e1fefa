"""A small dense network: the same MACs, every layer narrowed alike, trained from scratch (a control).

It answers whether pruning a trained network is worth more than training a small one for as long.
Nothing is scored, so that nothing is registered as a scoring method here; `ifap.study.rivals.small_dense`
trains what this file builds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ifap.forward import Inputs
from ifap.pruning import prune
from ifap.results import Pruned, Target
from ifap.seeds import derive_seed, seeded


def structure(
    network: nn.Module,
    example_inputs: Inputs,
    target: Target,
    *,
    seed: int = 0,
    min_units: int = 2,
    max_layer_ratio: float = 0.95,
    round_to: int | None = None,
    spatial_only: bool = False,
    ignore: Iterable[str | nn.Module] = (),
) -> Pruned:
    """Return an untrained network in which every width of `network` has lost the same share.

    The network with its plan; the weights are new.

    Parameters
    ----------
    network : nn.Module
        The unpruned network, trained or not: only its structure counts. It is not modified.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.
    target : Target
        The reduction of the pruned network to compare with.
    seed : int
        Source of the new weights; see `reinitialise`.
    min_units, max_layer_ratio, round_to, spatial_only, ignore
        See `ifap.prune`. A width whose limit is reached stops there, and the others lose more.
    """
    pruned = prune(
        network,
        example_inputs,
        (),
        target=target,
        steps=1,
        method="uniform",
        min_units=min_units,
        max_layer_ratio=max_layer_ratio,
        round_to=round_to,
        spatial_only=spatial_only,
        ignore=ignore,
    )
    reinitialise(pruned.model, seed)
    return pruned


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw every layer's parameters anew for the widths that it has, in place, and reset batch statistics.

    Weights cut out of a wide network have the scale that fits its widths, not these. So every
    module's own ``reset_parameters`` is called: torch's initialisation, which is not always the one
    that the network's author chose. Parameters outside such layers (position embeddings, class
    tokens, layer scales) keep their values; their scale does not depend on widths.

    Parameters
    ----------
    model : nn.Module
        The network.
    seed : int
        Source of the weights; torch's global generators are left alone.
    """
    where = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with seeded(derive_seed(seed, "small_dense"), where):
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
