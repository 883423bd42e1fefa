"""A small dense network: the same MACs, every layer narrowed alike, trained from scratch (a control).

It answers whether pruning a trained network is worth more than training a small one for as long.
Nothing is scored, so that nothing is registered as a scoring method here.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from ifap.forward import device_of, to_device
from ifap.pruning import prune
from ifap.seeds import derive_seed, seeded
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Outcome
from ifap.study.rivals.run import cut_outcome, train


@SPARSE.register("small_dense")
def small_dense(context: Context) -> Outcome:
    """A network of the target's MACs, every layer narrowed alike, trained from new weights.

    Every width loses the same share. One whose limit is reached stops there, and the others lose more. The network is
    trained once, for the whole budget; nothing is pruned on the way.
    """
    wide = context.build()
    inputs = to_device(context.example_inputs, device_of(wide))
    small = prune(wide, inputs, (), target=context.target, steps=1, method="uniform", **context.limits)
    reinitialise(small.model, context.seed)
    rows = train(context, small.model)
    return cut_outcome(context, dataclasses.replace(small, model=small.model.eval()), rows, small.after.macs)


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw every layer's parameters anew for the widths that it has, in place, and reset batch statistics.

    Weights cut out of a wide network have the scale that fits its widths, not these. So every module's own
    ``reset_parameters`` is called: torch's initialisation, which is not always the one that the network's author chose.
    Parameters outside such layers (position embeddings, class tokens, layer scales) keep their values; their scale does
    not depend on widths. Torch's global generators are left alone.
    """
    where = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with seeded(derive_seed(seed, "small_dense"), where):
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
