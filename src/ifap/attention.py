"""Multi-head attention that can lose whole heads.

``nn.MultiheadAttention`` keeps its three projections in one tensor and ties its width to that of
the network around it, so a head cannot leave it. `split_attention` replaces it by
`SplitAttention`, with the same weights and the same outputs. Blocks with one fused ``qkv`` layer
(as in timm) are recognised by `fused_attention` and stay as they are: whole heads can be cut out
of their weights. So do the attention modules of language models, whose projections `projections`
knows by class; `split_attention` only gives GPT-2 linear layers, and each layer of T5 a table of
relative positions of its own, which loses the columns of that layer's heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.errors import GraphError
from ifap.layers import modules_by_name, unit_weights


class Projections(NamedTuple):
    """Where an attention module keeps its layers, by their names below it.

    Parameters
    ----------
    query, key, value : str
        Linear layers whose outputs are heads side by side. Keys and values may have fewer heads, each
        of which serves a group of query heads and leaves with it.
    out : str or None
        Linear layer that reads the heads, if the module holds it.
    head_dim : str
        Attribute with the width of a head.
    outputs : int
        How many things the forward returns; the last are the attention probabilities, if there are any.
    """

    query: str
    key: str
    value: str
    out: str | None
    head_dim: str
    outputs: int = 2


_BERT = Projections("query", "key", "value", None, "attention_head_size")
# Keyed by qualified class name, so that no model library is imported to know its classes.
_PROJECTIONS = {
    "ifap.attention.SplitAttention": Projections("q", "k", "v", "out", "head_dim"),
    "transformers.models.bert.modeling_bert.BertSelfAttention": _BERT,
    "transformers.models.bert.modeling_bert.BertCrossAttention": _BERT,
    "transformers.models.gpt2.modeling_gpt2.GPT2Attention": Projections(
        "c_attn.q", "c_attn.k", "c_attn.v", "c_proj", "head_dim"
    ),
    "transformers.models.llama.modeling_llama.LlamaAttention": Projections(
        "q_proj", "k_proj", "v_proj", "o_proj", "head_dim"
    ),
    "transformers.models.t5.modeling_t5.T5Attention": Projections("q", "k", "v", "o", "key_value_proj_dim", 3),
}
_T5 = "transformers.models.t5.modeling_t5.T5Attention"
_CONV1D = "transformers.pytorch_utils.Conv1D"
HEAD_TABLE = "relative_attention_bias"
"""Name of an embedding inside an attention module that has one column a head."""


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


class JoinedProjections(nn.Module):
    """Query, key and value layers that stand for one layer with all their outputs, in this order."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., q + k + v) outputs of (..., in) inputs."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def split_attention(model: nn.Module, names: list[str] | None = None) -> list[str]:
    """Replace what keeps heads from leaving, in place; the outputs stay what they were.

    ``nn.MultiheadAttention`` becomes `SplitAttention`, the ``Conv1D`` layers of GPT-2 become linear
    ones (three for queries, keys and values), and every attention module of T5 gets a table of
    relative positions of its own, a copy of the one that its stack shares.

    Parameters
    ----------
    model : nn.Module
        The network to change.
    names : list of str, optional
        Which modules; by default all that can be split (attention with an extra learned key or an
        added zero token cannot).

    Returns
    -------
    list of str
        Names of the modules that were replaced.
    """
    tables = _stack_tables(model)
    replaced: list[str] = []
    for name, module in modules_by_name(model).items():
        if names is not None and name not in names:
            continue
        if isinstance(module, nn.MultiheadAttention) and _can_split(module):
            model.set_submodule(name, _split(module))
        elif _is_a(module, _CONV1D):
            model.set_submodule(name, _joined(module) if _is_fused_conv(name, module) else _as_linear(module))
        elif _is_a(module, _T5) and type(module) is not _own_table(type(module)):
            _give_table(module, tables.get(name))
        else:
            continue
        replaced.append(name)
    return replaced


def projections(module: nn.Module) -> Projections | None:
    """Return where an attention module keeps its layers, or None for any other module."""
    found = next((_PROJECTIONS[name] for name in class_names(module) if name in _PROJECTIONS), None)
    if found is None or not all(isinstance(_layer(module, part), nn.Linear) for part in found[:3]):
        return None
    return found


def projection_layers(module: nn.Module) -> list[nn.Linear]:
    """Return the query, key and value layers of a module that has `projections`; empty for any other."""
    found = projections(module)
    return [] if found is None else [module.get_submodule(part) for part in found[:3]]  # type: ignore[misc]


def head_dim(module: nn.Module) -> int:
    """Return the width of a head of an attention module that has `projections` or a fused ``qkv``."""
    found = projections(module)
    return int(getattr(module, found.head_dim if found is not None else "head_dim"))


def check_heads(model: nn.Module) -> None:
    """Refuse attention whose query heads cannot be shared evenly among its key and value heads.

    Raises
    ------
    GraphError
        If they cannot; names the module and both numbers.
    """
    for name, module in modules_by_name(model).items():
        layers = projection_layers(module)
        if not layers:
            continue
        width = head_dim(module)
        query, key, value = (layer.out_features for layer in layers)
        if query % width or key != value or key % width:
            raise GraphError(f"'{name}': {query}, {key} and {value} outputs are not whole heads of width {width}")
        if query // width % (key // width):
            raise GraphError(
                f"'{name}': {query // width} query heads cannot be shared evenly among {key // width} heads of keys "
                f"and values: their number must be a multiple of {key // width}"
            )


def embeddings(model: nn.Module) -> list[str]:
    """Return the names of the embeddings that feed the network; tables inside an attention module do not."""
    modules = modules_by_name(model)
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Embedding) and projections(modules[name.rpartition(".")[0]]) is None
    ]


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Let language models compute attention by plain products inside the block: their forward then returns it."""
    before = [(config, config._attn_implementation) for config in attention_configs(model)]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, kind in before:
            config._attn_implementation = kind


def attention_configs(model: nn.Module) -> list[Any]:
    """Return the configurations that choose a kernel of attention, for networks whose attention is known."""
    modules = list(modules_by_name(model).values())
    if not any(projections(module) and not isinstance(module, SplitAttention) for module in modules):
        return []
    found = {id(config): config for config in (getattr(module, "config", None) for module in modules)}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def fused_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention blocks with one fused ``qkv`` layer, by name.

    A block counts if it has a linear ``qkv`` three times as wide as the input of its linear
    ``proj``, and ``num_heads`` and ``head_dim`` attributes that its forward reads.
    """
    return {name: module for name, module in modules_by_name(model).items() if _is_fused(module)}


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
        Attention with `projections`, ``nn.MultiheadAttention`` or a fused block.

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
    layers = projection_layers(module)
    if layers:
        return [unit_weights(layer) for layer in layers]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return list(module.in_proj_weight.detach().chunk(3))
        return [w.detach() for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    return list(module.qkv.weight.detach().chunk(3))  # type: ignore[union-attr, operator]


def num_heads(module: nn.Module) -> int:
    """Return the number of heads of an attention module; grouped query heads count as one."""
    layers = projection_layers(module)
    if layers:
        return layers[1].out_features // head_dim(module)
    return int(module.num_heads)  # type: ignore[arg-type]


def _layer(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _is_a(module: nn.Module, class_name: str) -> bool:
    return class_name in class_names(module)


def class_names(module: Any) -> tuple[str, ...]:
    """Return the qualified names of the class of a module and of its bases, in the order of method look-up."""
    kind: Any = type(module)
    return _names_of_class(kind)


@cache
def _names_of_class(kind: Any) -> tuple[str, ...]:
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)


def _as_linear(conv: Any, start: int = 0, stop: int | None = None) -> nn.Linear:
    """Return outputs `start` to `stop` of a ``Conv1D``, whose weight is (in, out), as a linear layer."""
    weight, bias = conv.weight[:, start:stop], conv.bias[start:stop]
    inputs, outputs = weight.shape
    layer = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.t())
        layer.bias.copy_(bias)
    layer.weight.requires_grad_(conv.weight.requires_grad)
    layer.bias.requires_grad_(conv.bias.requires_grad)
    return layer.train(conv.training)


def _is_fused_conv(name: str, conv: Any) -> bool:
    return name.endswith(".c_attn") and conv.weight.shape[1] == 3 * conv.weight.shape[0]


def _joined(conv: Any) -> JoinedProjections:
    width = conv.weight.shape[1] // 3
    layers = [_as_linear(conv, part * width, (part + 1) * width) for part in range(3)]
    return JoinedProjections(*layers).train(conv.training)


def _stack_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """Return the table of relative positions that each self-attention module of T5 takes from its stack."""
    modules = {name: module for name, module in modules_by_name(model).items() if _is_a(module, _T5)}
    stacks = {name: re.sub(r"(^|\.)block\..*", "", name) for name in modules}
    owners = {stacks[name]: getattr(m, HEAD_TABLE) for name, m in modules.items() if hasattr(m, HEAD_TABLE)}
    found = {name: owners.get(stacks[name]) for name in modules if name.endswith(".SelfAttention")}
    return {name: table for name, table in found.items() if table is not None}


_OWN_TABLE: dict[Any, Any] = {}  # T5 attention class to the one with tables of its own, itself included


def _own_table(base: Any) -> Any:
    """Return a T5 attention class that takes no positions from the layer before."""
    if base in _OWN_TABLE:
        return _OWN_TABLE[base]

    class OwnTableAttention(base):  # type: ignore[misc]
        """Attention with relative positions of its own: other layers may have other heads."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "position_bias": None})

    _OWN_TABLE[base] = _OWN_TABLE[OwnTableAttention] = OwnTableAttention
    return OwnTableAttention


def _give_table(module: Any, table: nn.Embedding | None) -> None:
    """Make a T5 attention module independent of the layer before it, in place."""
    module.__class__ = _own_table(type(module))
    if table is None or module.has_relative_attention_bias:
        return
    rows, columns = table.weight.shape
    new = nn.Embedding(rows, columns, device=table.weight.device, dtype=table.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(table.weight)
    new.weight.requires_grad_(table.weight.requires_grad)
    module.add_module(HEAD_TABLE, new.train(module.training))
    module.has_relative_attention_bias = True


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


def _is_fused(module: nn.Module) -> bool:
    if not {"qkv", "proj"} <= module._modules.keys():  # so for most modules, and asked often
        return False
    qkv, proj, head_dim = (getattr(module, name, None) for name in ("qkv", "proj", "head_dim"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(head_dim, int)):
        return False
    whole_heads = head_dim > 0 and proj.in_features % head_dim == 0
    return whole_heads and qkv.out_features == 3 * proj.in_features and hasattr(module, "num_heads")
