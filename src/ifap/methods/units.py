"""Visit what has units: every layer with weights, and every attention module as a set of heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ifap.attention import SplitAttention, fused_attention
from ifap.layers import is_conv

Score = Callable[[str, nn.Module], Tensor]


def map_units(model: nn.Module, *, layer: Score, heads: Score) -> dict[str, Tensor]:
    """Score each layer and each attention module of a network that is being pruned.

    Parameters
    ----------
    model : nn.Module
        The network.
    layer : callable
        ``layer(name, module)`` returns one score an output unit of a convolution or linear layer.
    heads : callable
        ``heads(name, module)`` returns one score a head of an attention module.

    Returns
    -------
    dict of str to Tensor
        The keys of `ifap.flow_scores`.
    """
    fused = fused_attention(model)
    inside: set[nn.Module] = set()
    scores: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitAttention):
            inside |= {module.q, module.k, module.v}
            scores[name] = heads(name, module)
        elif name in fused:
            inside.add(module.qkv)
            scores[name] = heads(name, module)
        elif module not in inside and (is_conv(module) or isinstance(module, nn.Linear)):
            scores[name] = layer(name, module)
    return scores
