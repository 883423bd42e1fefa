"""What the networks of diffusers are given here so that they can be pruned: attention and gates.

Their attention becomes `SplitAttention`, which loses whole heads, and a gated linear layer, which computes
values and gates in one product, becomes two layers: a value and its gate then leave together. The
outputs stay what they were, names of tensors do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.legacy import SplitAttention


class SpatialAttention(nn.Module):
    """An attention module of diffusers over `SplitAttention`.

    Parameters
    ----------
    old : diffusers.models.attention_processor.Attention
        The module that it stands for, whose weights it takes.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.group_norm = old.group_norm
        self.residual, self.rescale = bool(old.residual_connection), float(old.rescale_output_factor)
        self.attend = SplitAttention(
            old.query_dim,
            old.heads,
            head_dim=old.inner_dim // old.heads,
            kdim=old.cross_attention_dim,
            vdim=old.cross_attention_dim,
            bias=old.use_bias,
            dropout=0.0,
            batch_first=True,
        )
        self.attend.q, self.attend.k, self.attend.v, self.attend.out = old.to_q, old.to_k, old.to_v, old.to_out[0]

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_ignored: Any,
    ) -> Tensor:
        """Attend within tokens (batch, tokens, width) or a map (batch, width, height, width), or to other tokens."""
        x = hidden_states if self.group_norm is None else self.group_norm(hidden_states)
        is_map = x.dim() == 4
        tokens = x.flatten(2).transpose(1, 2) if is_map else x
        source = tokens if encoder_hidden_states is None else encoder_hidden_states
        found: Tensor = self.attend(tokens, source, source, need_weights=False, attn_mask=attention_mask)[0]
        if is_map:
            found = found.transpose(1, 2).unflatten(2, x.shape[2:])
        return (found + hidden_states if self.residual else found) / self.rescale


class Gated(nn.Module):
    """A linear layer times the GELU of another: ``GEGLU`` of diffusers as two layers.

    Parameters
    ----------
    old : diffusers.models.activations.GEGLU
        The module that it stands for, whose weights it takes.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        joined: nn.Linear = old.proj
        has_bias = joined.bias is not None
        self.value, self.gate = (
            nn.Linear(joined.in_features, joined.out_features // 2, bias=has_bias) for _ in range(2)
        )
        with torch.no_grad():
            for layer, part in zip((self.value, self.gate), range(2), strict=True):
                layer.weight.copy_(joined.weight.chunk(2)[part])
                if has_bias:
                    layer.bias.copy_(joined.bias.chunk(2)[part])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        gated: Tensor = self.value(hidden_states) * functional.gelu(self.gate(hidden_states))
        return gated


def make_prunable(network: nn.Module) -> nn.Module:
    """Replace the attention and the gated layers of a network of diffusers, in place; returns it."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention

    for name, module in list(network.named_modules()):
        if isinstance(module, Attention):
            network.set_submodule(name, SpatialAttention(module))
        elif isinstance(module, GEGLU):
            network.set_submodule(name, Gated(module))
    return network
