"""Attention as plans of version 1 hold it: modules with a weight for each of queries, keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.axes.attention import merged_masks
from ifap.layers import sides

HEAD_TABLE = "relative_attention_bias"
"""Name of an embedding inside an attention module that has one column a head."""
_OWN_TABLE: dict[Any, Any] = {}  # class of attention to the one with tables of its own, itself included


class Heads(NamedTuple):
    """How version 1 knew an attention module: by the names of its layers and of what its forward reads.

    Parameters
    ----------
    layers : tuple of str
        Linear layers of queries, keys and values, below the module; or one that holds all three.
    head_dim : str
        Attribute with the width of a head.
    number : str
        Attribute with the number of heads; empty if the forward takes it from the tensors.
    widths : tuple of str
        Attributes with the width of all heads, each of which a module may lack.
    """

    layers: tuple[str, ...]
    head_dim: str
    number: str
    widths: tuple[str, ...] = ()


FUSED = Heads(("qkv",), "head_dim", "num_heads", ("attn_dim", "all_head_dim", "inner_dim"))


_HEADS = (
    Heads(("q", "k", "v"), "head_dim", "num_heads"),
    Heads(("q", "k", "v"), "key_value_proj_dim", "n_heads", ("inner_dim",)),
    Heads(("query", "key", "value"), "attention_head_size", "num_attention_heads", ("all_head_size",)),
    Heads(("c_attn.q", "c_attn.k", "c_attn.v"), "head_dim", "num_heads", ("split_size",)),
    Heads(("q_proj", "k_proj", "v_proj"), "head_dim", ""),
    FUSED,
)


class SplitAttention(nn.Module):
    """Attention with separate query, key, value and output projections and whole heads.

    Takes and returns what ``nn.MultiheadAttention`` does, and is built with the same arguments and `head_dim`, the
    width of one head. This width never changes, so that the softmax temperature stays.
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
        mask = merged_masks(attn_mask, key_padding_mask, q, k, is_causal and attn_mask is None)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = q @ k.transpose(2, 3) * self.head_dim**-0.5
            weights = (logits if mask is None else logits + mask).softmax(dim=-1)
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


class JoinedProjections(nn.Module):
    """Query, key and value layers that stand for one layer with all their outputs, in this order."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., q + k + v) outputs of (..., in) inputs."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


class SpatialAttention(nn.Module):
    """`SplitAttention` in place of attention of a diffusion network, within tokens, within a map or to other tokens.

    `old` is the attention that it replaces, with linear layers ``to_q``, ``to_k``, ``to_v`` and ``to_out.0``.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.group_norm = old.group_norm
        self.residual, self.rescale = bool(old.residual_connection), float(old.rescale_output_factor)
        with torch.device("meta"):  # its layers are those of the old module
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
    """A linear layer times the GELU of another, in place of one layer that computes values and gates.

    Both take their weights from `joined`, the layer that it replaces.
    """

    def __init__(self, joined: nn.Linear) -> None:
        super().__init__()
        weights = joined.weight.detach().chunk(2)
        biases = (None, None) if joined.bias is None else joined.bias.detach().chunk(2)
        self.value, self.gate = (linear(*pair, like=joined) for pair in zip(weights, biases, strict=True))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        gated: Tensor = self.value(hidden_states) * functional.gelu(self.gate(hidden_states))
        return gated


def linear(weight: Tensor, bias: Tensor | None, *, like: nn.Module) -> nn.Linear:
    """Return a linear layer with these weights, as frozen and in the same mode as the one that they come from."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(like.get_parameter(name).requires_grad)
    return layer.train(like.training)


def from_transposed(module: nn.Module) -> nn.Linear:
    """Return a linear layer that computes what one with a weight of (in, out) does."""
    return linear(module.get_parameter("weight").t(), module.get_parameter("bias"), like=module)


def joined_from_transposed(module: nn.Module) -> JoinedProjections:
    """Return three linear layers that compute what one with a weight of (in, 3 * width) does."""
    weights, biases = module.get_parameter("weight").t().chunk(3), module.get_parameter("bias").chunk(3)
    layers = [linear(*pair, like=module) for pair in zip(weights, biases, strict=True)]
    return JoinedProjections(*layers).train(module.training)


def can_split(module: nn.MultiheadAttention) -> bool:
    """Whether attention has neither an extra learned key nor an added zero token."""
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


def split(module: nn.MultiheadAttention) -> SplitAttention:
    """Return attention with the same weights and the same outputs whose heads can leave."""
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.detach().chunk(3))
    else:
        weights = [w.detach() for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    bias = module.in_proj_bias
    with torch.device("meta"):  # drawing weights that are overwritten would take most of the time
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
    new = new.to(weights[0].dtype).to_empty(device=weights[0].device)
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


def own_table(base: Any) -> Any:
    """Return a class of attention that takes no positions from the layer before."""
    if base in _OWN_TABLE:
        return _OWN_TABLE[base]

    class OwnTableAttention(base):  # type: ignore[misc]
        """Attention with relative positions of its own: other layers may have other heads."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "position_bias": None})

    _OWN_TABLE[base] = _OWN_TABLE[OwnTableAttention] = OwnTableAttention
    return OwnTableAttention


def give_table(module: Any, table: nn.Embedding | None) -> None:
    """Make attention with relative positions independent of the layer before it, in place.

    A module that needs a table and has none gets a copy of `table`, which is None for one that needs none.
    """
    module.__class__ = own_table(type(module))
    if table is None or module.has_relative_attention_bias:
        return
    rows, columns = table.weight.shape
    new = nn.Embedding(rows, columns, device=table.weight.device, dtype=table.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(table.weight)
    new.weight.requires_grad_(table.weight.requires_grad)
    module.add_module(HEAD_TABLE, new.train(module.training))
    module.has_relative_attention_bias = True


def is_fused(module: nn.Module) -> bool:
    """Whether a block has a linear ``qkv`` three times as wide as its linear ``proj`` reads, and whole heads."""
    if not {"qkv", "proj"} <= module._modules.keys():  # so for most modules, and asked often
        return False
    qkv, proj, width = (getattr(module, name, None) for name in ("qkv", "proj", "head_dim"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(width, int)):
        return False
    whole_heads = width > 0 and proj.in_features % width == 0
    return whole_heads and qkv.out_features == 3 * proj.in_features and hasattr(module, "num_heads")


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is none of torch's layers and has a weight of (in, out) and a bias of (out), and no more."""
    own = module._parameters
    if module._modules or sides(module) or own.keys() != {"weight", "bias"}:
        return False
    weight, bias = own["weight"], own["bias"]
    return weight is not None and bias is not None and weight.dim() == 2 and bias.shape == weight.shape[1:]


def has_positions(module: nn.Module) -> bool:
    """Whether a module is attention that reads, or may read, a table of relative positions."""
    return isinstance(vars(module).get(f"has_{HEAD_TABLE}"), bool)


def nearest_table(name: str, modules: Mapping[str, Any]) -> nn.Embedding | None:
    """Return the table of the attention module that shares most of its path with `name`: that of its stack."""
    holders = [key for key, module in modules.items() if has_positions(module) and HEAD_TABLE in module._modules]
    nearest_holder = max(holders, key=lambda key: _shared_steps(key, name), default=None)
    return None if nearest_holder is None else getattr(modules[nearest_holder], HEAD_TABLE)


def _shared_steps(one: str, other: str) -> int:
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def known_heads(module: nn.Module) -> Heads | None:
    """Return the names of the parts of a known kind of attention."""
    for known in _HEADS:
        width = getattr(module, known.head_dim, None)
        if isinstance(width, int) and width > 0 and all(_is_linear(module, part) for part in known.layers):
            return known if known is not FUSED or is_fused(module) else None
    return None


def _is_linear(module: nn.Module, path: str) -> bool:
    owner: Any = module
    for step in path.split("."):
        owner = owner._modules.get(step) if isinstance(owner, nn.Module) else None
    return isinstance(owner, nn.Linear)
