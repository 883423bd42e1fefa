"""Multi-head attention that can lose whole heads.

``nn.MultiheadAttention`` keeps its three projections in one tensor and ties its width to that of
the network around it, so a head cannot leave it. `split_attention` replaces it by
`SplitAttention`, with the same weights and the same outputs. Blocks with one fused ``qkv`` layer
(as in timm) are recognised by `fused_attention` and stay as they are: whole heads can be cut out
of their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.layers import unit_weights


class SplitAttention(nn.Module):
    """Attention with separate query, key, value and output projections and whole heads.

    Takes and returns what ``nn.MultiheadAttention`` does.

    Parameters
    ----------
    embed_dim, num_heads : int
        Width of queries and outputs, and number of heads.
    head_dim : int
        Width of one head; never changes, so that the softmax temperature stays.
    kdim, vdim : int
        Width of keys and of values.
    bias : bool
        Whether the projections have biases.
    dropout : float
        Dropout of the attention probabilities while training.
    batch_first : bool
        Whether inputs are (batch, tokens, width) rather than (tokens, batch, width).
    """

    # Read by nn.TransformerEncoderLayer to choose its fused path, which needs the fused weights.
    _qkv_same_embed_dim = False
    in_proj_bias = None
    in_proj_weight = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int,
        kdim: int,
        vdim: int,
        bias: bool,
        dropout: float,
        batch_first: bool,
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.q = nn.Linear(embed_dim, width, bias=bias)
        self.k = nn.Linear(kdim, width, bias=bias)
        self.v = nn.Linear(vdim, width, bias=bias)
        self.out = nn.Linear(width, embed_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.batch_first = batch_first

    def sync(self) -> None:
        """Take the number of heads from the shape of the projections."""
        self.num_heads = self.q.out_features // self.head_dim

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see ``nn.MultiheadAttention.forward``."""
        batched = query.dim() == 3
        q, k, v = (self._heads(*pair, batched) for pair in ((self.q, query), (self.k, key), (self.v, value)))
        mask = _merge_masks(attn_mask, key_padding_mask, q, k, is_causal and attn_mask is None)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = _probabilities(q, k, mask)
            heads = functional.dropout(weights, dropout) @ v
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        # Projected before the layout of the input is restored: whoever scores `out` finds samples first.
        output = self._restore(self.out(heads.transpose(1, 2).flatten(2)), batched)
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return output, weights

    def _heads(self, projection: nn.Linear, x: Tensor, batched: bool) -> Tensor:
        """Project to (batch, heads, tokens, head width)."""
        x = x if batched else x.unsqueeze(0 if self.batch_first else 1)
        x = projection(x if self.batch_first else x.transpose(0, 1))
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _restore(self, x: Tensor, batched: bool) -> Tensor:
        """Bring (batch, tokens, width) back to the layout of the input."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x if batched else x.squeeze(0 if self.batch_first else 1)


def split_attention(model: nn.Module, names: list[str] | None = None) -> list[str]:
    """Replace ``nn.MultiheadAttention`` modules by `SplitAttention` in place.

    Parameters
    ----------
    model : nn.Module
        The network to change.
    names : list of str, optional
        Which modules; by default all that can be split (those with an extra learned key or an
        added zero token cannot).

    Returns
    -------
    list of str
        Names of the modules that were replaced.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and (names is None or name in names) and _can_split(module)
    }
    for name, module in found.items():
        model.set_submodule(name, _split(module))
    return list(found)


def fused_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention blocks with one fused ``qkv`` layer, by name.

    A block counts if it has a linear ``qkv`` three times as wide as the input of its linear
    ``proj``, and ``num_heads`` and ``head_dim`` attributes that its forward reads.
    """
    return {name: module for name, module in model.named_modules() if _is_fused(module)}


def sync_fused(module: Any) -> None:
    """Take the number of heads of a fused block from the shape of its projections, in place."""
    width = module.proj.in_features
    module.num_heads = width // module.head_dim
    for name in ("attn_dim", "all_head_dim", "inner_dim"):
        if hasattr(module, name):
            setattr(module, name, width)


def head_weight_norms(module: nn.Module) -> Tensor:
    """Return the summed Frobenius norms of the query, key and value weights of each head.

    Parameters
    ----------
    module : nn.Module
        `SplitAttention`, ``nn.MultiheadAttention`` or a fused block.

    Returns
    -------
    Tensor, shape (heads,)
        ||W_Q,h|| + ||W_K,h|| + ||W_V,h||.
    """
    norms = [
        torch.linalg.matrix_norm(weight.unflatten(0, (num_heads(module), -1)).float())
        for weight in projection_weights(module)
    ]
    return torch.stack(norms).sum(dim=0)


def projection_weights(module: nn.Module) -> list[Tensor]:
    """Return the query, key and value weights of an attention module, each (heads * head width, in)."""
    if isinstance(module, SplitAttention):
        return [unit_weights(layer) for layer in (module.q, module.k, module.v)]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return list(module.in_proj_weight.detach().chunk(3))
        return [w.detach() for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    return list(module.qkv.weight.detach().chunk(3))  # type: ignore[union-attr, operator]


def num_heads(module: nn.Module) -> int:
    """Return the number of heads of an attention module."""
    return int(module.num_heads)  # type: ignore[arg-type]


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)


def _merge_masks(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor, causal: bool) -> Tensor | None:
    """Combine the masks of ``nn.MultiheadAttention`` (true: left out) into one to add to the logits."""
    if attn_mask is None and padding is None and not causal:
        return None
    mask = torch.zeros(1, 1, q.shape[-2], k.shape[-2], dtype=q.dtype, device=q.device)
    if causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    if attn_mask is not None:
        additive = _additive(attn_mask, q)
        mask = mask + (additive.unflatten(0, (q.shape[0], -1)) if additive.dim() == 3 else additive)
    if padding is not None:
        mask = mask + _additive(padding, q).reshape(-1, 1, 1, k.shape[-2])
    return mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


def _can_split(module: nn.MultiheadAttention) -> bool:
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


def _split(module: nn.MultiheadAttention) -> SplitAttention:
    weights = projection_weights(module)
    bias = module.in_proj_bias
    new = SplitAttention(
        module.embed_dim,
        module.num_heads,
        head_dim=module.head_dim,
        kdim=weights[1].shape[1],
        vdim=weights[2].shape[1],
        bias=bias is not None,
        dropout=module.dropout,
        batch_first=module.batch_first,
    )
    new = new.to(weights[0])
    biases = bias.detach().chunk(3) if bias is not None else (None, None, None)
    with torch.no_grad():
        for layer, weight, layer_bias in zip((new.q, new.k, new.v), weights, biases, strict=True):
            layer.weight.copy_(weight)
            if layer_bias is not None:
                layer.bias.copy_(layer_bias)
        new.out.load_state_dict(module.out_proj.state_dict())
    fused = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
    for layer in (new.q, new.k, new.v):
        layer.requires_grad_(fused.requires_grad)
    new.out.requires_grad_(module.out_proj.weight.requires_grad)
    return new.train(module.training)


def _is_fused(module: nn.Module) -> bool:
    qkv, proj, head_dim = (getattr(module, name, None) for name in ("qkv", "proj", "head_dim"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(head_dim, int)):
        return False
    whole_heads = head_dim > 0 and proj.in_features % head_dim == 0
    return whole_heads and qkv.out_features == 3 * proj.in_features and hasattr(module, "num_heads")
