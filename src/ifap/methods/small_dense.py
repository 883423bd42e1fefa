"""A small dense network: the same MACs, every layer narrowed alike, trained from scratch (a control).

It answers whether pruning a trained network is worth more than training a small one for as long.
Nothing is scored, so that nothing is registered as a scoring method here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ifap.pruning import Pruned, Target, prune
from ifap.runtime import derive_seed, seeded
from ifap.tracing import Inputs

if TYPE_CHECKING:
    from ifap.config import PruneOptions, RecoveryOptions, TrainingOptions
    from ifap.splits import Split
    from ifap.tasks.base import Task
    from ifap.training import EpochRow


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

    Returns
    -------
    Pruned
        The network with its plan; the weights are new.
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


def total_epochs(
    baseline: TrainingOptions, pruning: PruneOptions, recovery: RecoveryOptions, finetune: TrainingOptions
) -> int:
    """Return the epochs that a pruned network has seen in all: baseline, recovery of every iteration, fine-tuning."""
    return baseline.epochs + pruning.steps * recovery.epochs + finetune.epochs


def train(
    model: nn.Module,
    train: Split,
    validation: Split,
    recipe: TrainingOptions,
    task: Task,
    *,
    epochs: int,
    seed: int,
    **options: Any,
) -> list[EpochRow]:
    """Train a network from `structure` in place, by the recipe of the unpruned one but for `epochs` epochs.

    Parameters
    ----------
    model : nn.Module
        The network, on its device.
    train, validation : Split
        What to learn from and what to watch.
    recipe : TrainingOptions
        Recipe of the baseline; its schedule is stretched over all epochs.
    task : Task
        Loss and metrics.
    epochs : int
        See `total_epochs`.
    seed : int
        Seed of the cell.
    **options
        See `ifap.training.fit`.

    Returns
    -------
    list of EpochRow
        The history.
    """
    from ifap.training import fit  # heavy, and only this control trains

    whole = recipe.model_copy(update={"epochs": epochs})
    return fit(model, train, validation, whole, task, seed=seed, **options)
