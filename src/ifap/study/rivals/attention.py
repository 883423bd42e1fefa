"""Attention of the language models that the rivals prune, by class: where its layers are, how heads get loose.

The rivals mask and cut layers, not axes. So attention is given layers that hold whole heads before they
start: `split_attention` replaces what keeps heads from leaving, with the same outputs, by what
`ifap.saving.legacy` has for it. The library's own methods need none of this.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from ifap.layers import modules_by_name
from ifap.saving.legacy import refresh_heads
from ifap.saving.legacy_attention import (
    HEAD_TABLE,
    can_split,
    from_transposed,
    give_table,
    is_fused,
    joined_from_transposed,
    own_table,
    split,
)


class Projections(NamedTuple):
    """Where an attention module keeps its layers, by their names below it."""

    # Linear layers whose outputs are heads side by side. Keys and values may have fewer heads, each of which serves a
    # group of query heads and leaves with it.
    query: str
    key: str
    value: str
    out: str | None  # Linear layer that reads the heads, if the module holds it.
    head_dim: str  # Attribute with the width of a head.


_BERT = Projections("query", "key", "value", None, "attention_head_size")
# Keyed by qualified class name, so that no model library is imported to know its classes.
_PROJECTIONS = {
    "ifap.saving.legacy_attention.SplitAttention": Projections("q", "k", "v", "out", "head_dim"),
    "transformers.models.bert.modeling_bert.BertSelfAttention": _BERT,
    "transformers.models.bert.modeling_bert.BertCrossAttention": _BERT,
    "transformers.models.gpt2.modeling_gpt2.GPT2Attention": Projections(
        "c_attn.q", "c_attn.k", "c_attn.v", "c_proj", "head_dim"
    ),
    "transformers.models.llama.modeling_llama.LlamaAttention": Projections(
        "q_proj", "k_proj", "v_proj", "o_proj", "head_dim"
    ),
    "transformers.models.t5.modeling_t5.T5Attention": Projections("q", "k", "v", "o", "key_value_proj_dim"),
}
_T5 = "transformers.models.t5.modeling_t5.T5Attention"
_CONV1D = "transformers.pytorch_utils.Conv1D"


def split_attention(model: nn.Module) -> list[str]:
    """Replace what keeps heads from leaving, in place; returns the names of the modules that were replaced.

    The outputs stay what they were. ``nn.MultiheadAttention`` becomes `ifap.saving.legacy_attention.SplitAttention`,
    the ``Conv1D`` layers of GPT-2 become linear ones (three for queries, keys and values), and every attention module
    of T5 gets a table of relative positions of its own, a copy of the one that its stack shares. Attention with an
    extra learned key or an added zero token cannot be split and is left as it is.
    """
    tables = _stack_tables(model)
    replaced: list[str] = []
    for name, module in modules_by_name(model).items():
        if isinstance(module, nn.MultiheadAttention) and can_split(module):
            model.set_submodule(name, split(module))
        elif _is_a(module, _CONV1D):
            new = joined_from_transposed(module) if _is_fused_conv(name, module) else from_transposed(module)
            model.set_submodule(name, new)
        elif _is_a(module, _T5) and type(module) is not own_table(type(module)):
            give_table(module, tables.get(name))
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


def num_heads(module: nn.Module) -> int:
    """Return the number of heads of an attention module; grouped query heads count as one."""
    layers = projection_layers(module)
    if layers:
        return layers[1].out_features // head_dim(module)
    return int(module.num_heads)  # type: ignore[arg-type]


def fused_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention blocks with one fused ``qkv`` layer, by name.

    A block counts if it has a linear ``qkv`` three times as wide as the input of its linear
    ``proj``, and ``num_heads`` and ``head_dim`` attributes that its forward reads.
    """
    return {name: module for name, module in modules_by_name(model).items() if is_fused(module)}


def heads(model: nn.Module) -> dict[str, int]:
    """Return the number of heads of every attention module, as a plan of version 1 lists them."""
    fused = fused_attention(model)
    return {
        name: num_heads(module)
        for name, module in modules_by_name(model).items()
        if projection_layers(module) or name in fused
    }


def sync(model: nn.Module) -> None:
    """Let what forwards of attention read follow from the shapes of its layers, in place, after a cut."""
    refresh_heads(model, heads(model))


def class_names(module: Any) -> tuple[str, ...]:
    """Return the qualified names of the class of a module and of its bases, in the order of method look-up."""
    kind: Any = type(module)
    return _names_of_class(kind)


@cache
def _names_of_class(kind: Any) -> tuple[str, ...]:
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)


def _is_a(module: nn.Module, class_name: str) -> bool:
    return class_name in class_names(module)


def _layer(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _is_fused_conv(name: str, conv: Any) -> bool:
    return name.endswith(".c_attn") and conv.weight.shape[1] == 3 * conv.weight.shape[0]


def _stack_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """Return the table of relative positions that each self-attention module of T5 takes from its stack."""
    modules = {name: module for name, module in modules_by_name(model).items() if _is_a(module, _T5)}
    stacks = {name: re.sub(r"(^|\.)block\..*", "", name) for name in modules}
    owners = {stacks[name]: getattr(m, HEAD_TABLE) for name, m in modules.items() if hasattr(m, HEAD_TABLE)}
    found = {name: owners.get(stacks[name]) for name in modules if name.endswith(".SelfAttention")}
    return {name: table for name, table in found.items() if table is not None}
