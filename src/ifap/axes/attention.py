"""Variant of torch's attention module that reads its widths from its weights.

``nn.MultiheadAttention`` hands its weights and numbers to one function that checks them against each other, so that a
head cannot be removed. `ShapedAttention` computes the same from the same parameters, one operation after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.layers import modules_by_name


class ShapedAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads can be removed; made from one by `adopt`, never constructed.

    The width of a head never changes. Weights, their names and the outputs are those of the original module.
    """

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
        if query.is_nested:
            return self._nested(query, key, value, need_weights, attn_mask, average_attn_weights, is_causal)
        batched = query.dim() == 3
        samples = 0 if self.batch_first else 1
        if not batched:
            query, key, value = (x.unsqueeze(samples) for x in (query, key, value))
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = merged_masks(attn_mask, key_padding_mask, q, k, is_causal and attn_mask is None)
        tokens = k.shape[1]
        k, v = self._with_own_keys(k, self.bias_k), self._with_own_keys(v, self.bias_v)
        mask = mask if mask is None else functional.pad(mask, (0, k.shape[1] - tokens))
        q, k, v = (x.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = q * self.head_dim**-0.5 @ k.transpose(2, 3)
            weights = (logits if mask is None else logits + mask).softmax(dim=-1)
            heads = functional.dropout(weights, dropout) @ v
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = functional.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        output = output if self.batch_first else output.transpose(0, 1)
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return output if batched else output.squeeze(samples), weights

    def _nested(self, query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor | None]:
        """Attend where samples have lengths of their own, as ``nn.TransformerEncoder`` makes them from a mask."""
        lengths = [len(sample) for sample in query.unbind()]
        keys = torch.tensor([len(sample) for sample in key.unbind()], device=key.device)
        query, key, value = (torch.nested.to_padded_tensor(x, 0.0) for x in (query, key, value))
        is_padding = torch.arange(key.shape[1], device=key.device) >= keys[:, None]
        output, weights = self(query, key, value, is_padding, *options)
        samples = [sample[:length] for sample, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(samples), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Project queries, keys and values to (samples, tokens, heads x width)."""
        if self.in_proj_weight is not None:
            weights: tuple[Tensor, ...] = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return [functional.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _with_own_keys(self, projected: Tensor, bias: Tensor | None) -> Tensor:
        """Append the keys or values that belong to the module itself: a learned one, and zeros."""
        if bias is not None:
            projected = torch.cat([projected, bias.expand(len(projected), -1, -1)], dim=1)
        if self.add_zero_attn:
            projected = torch.cat([projected, torch.zeros_like(projected[:, :1])], dim=1)
        return projected


def merged_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor, is_causal: bool
) -> Tensor | None:
    """Return both masks as one that is added to the logits; tokens are the last but one dimension of `q` and `k`."""
    masks: list[Tensor] = []
    if is_causal:
        ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
        masks.append(_added(ones.triu(diagonal=1), q))
    if attn_mask is not None:
        mask = _added(attn_mask, q)
        masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (q.shape[0], -1)))
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q)
        masks.append(padding.view(-1, 1, 1, padding.shape[-1]))
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else sum(masks[1:], masks[0])


def _added(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
    return mask.to(q.dtype)


def can_adopt(module: nn.Module) -> bool:
    """Whether a module is torch's attention with an unchanged forward."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


@functools.cache
def _shaped(kind: type[nn.MultiheadAttention]) -> type[ShapedAttention]:
    """Return a subclass of the module's class with the forward of `ShapedAttention`."""
    if kind is nn.MultiheadAttention:
        return ShapedAttention
    return type(kind.__name__, (ShapedAttention, kind), {"__module__": kind.__module__})


def adopt(model: nn.Module, names: list[str] | None = None) -> list[str]:
    """Let torch's attention modules read their widths from their weights, in place; returns their names."""
    found = []
    for name, module in modules_by_name(model).items():
        if (names is None or name in names) and can_adopt(module):
            module.__class__ = _shaped(type(module))  # type: ignore[arg-type]
            # Keeps ``nn.TransformerEncoderLayer`` from its fused path, which needs whole weights.
            module._qkv_same_embed_dim = False
            found.append(name)
    return found


def release(model: nn.Module, names: list[str]) -> None:
    """Undo `adopt` for the named modules, in place."""
    for name in names:
        module: Any = model.get_submodule(name)
        module.__class__ = type(module).__bases__[-1]
        module._qkv_same_embed_dim = module.in_proj_weight is not None


@contextmanager
def adopted(model: nn.Module) -> Iterator[list[str]]:
    """Adopt torch's attention inside the block."""
    names = adopt(model)
    try:
        yield names
    finally:
        release(model, names)


def is_whole(module: nn.Module) -> bool:
    """Whether an attention module has its original width, so that torch's own forward works."""
    if not isinstance(module, ShapedAttention):
        return False
    widths = {module.out_proj.weight.shape[0], module.out_proj.weight.shape[1]}
    if module.in_proj_weight is not None:
        return widths == {module.embed_dim} and module.in_proj_weight.shape == (3 * module.embed_dim, module.embed_dim)
    shapes = [weight.shape for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    wanted = [(module.embed_dim, width) for width in (module.embed_dim, module.kdim, module.vdim)]
    return widths == {module.embed_dim} and shapes == wanted
