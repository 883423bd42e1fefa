"""Attributes that a forward reads and that must follow the weights: one `sync` per family of networks.

Register a function for a class of your own with `register_sync`; it is called with each module of
that class (or of a subclass) after every cut and after loading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ifap.attention import SplitAttention, class_names, fused_attention, projection_layers, sync_fused
from ifap.layers import modules_by_name

Sync = Callable[[Any], None]

# Keyed by qualified class name, so that no model library is imported to know its classes.
_SYNC: dict[str, Sync] = {}


def register_sync(class_name: str) -> Callable[[Sync], Sync]:
    """Return a decorator that registers how to refresh the modules of a class.

    Parameters
    ----------
    class_name : str
        Module and name of the class, for example ``"mypackage.nets.MyViT"``.
    """

    def add(function: Sync) -> Sync:
        _SYNC[class_name] = function
        return function

    return add


def sync(model: nn.Module) -> None:
    """Refresh every attribute of `model` that depends on widths or numbers of heads, in place."""
    for module in modules_by_name(model).values():
        if isinstance(module, SplitAttention):
            module.sync()
        for name in class_names(module):
            function = _SYNC.get(name)
            if function is not None:
                function(module)
    for module in fused_attention(model).values():
        sync_fused(module)


@register_sync("diffusers.models.downsampling.Downsample2D")
@register_sync("diffusers.models.upsampling.Upsample2D")
def _resampling(module: Any) -> None:
    """Tell a layer that refuses inputs of another width than it knows the width that it has."""
    if isinstance(module.conv, nn.Conv2d):
        module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels


@register_sync("torchvision.models.vision_transformer.VisionTransformer")
def _torchvision_vit(model: Any) -> None:
    model.hidden_dim = model.conv_proj.out_channels


@register_sync("transformers.models.bert.modeling_bert.BertSelfAttention")
@register_sync("transformers.models.bert.modeling_bert.BertCrossAttention")
def _bert(module: Any) -> None:
    module.all_head_size = module.query.out_features
    module.num_attention_heads = module.all_head_size // module.attention_head_size


@register_sync("transformers.models.gpt2.modeling_gpt2.GPT2Attention")
def _gpt2(module: Any) -> None:
    if projection_layers(module):
        module.split_size = module.c_attn.q.out_features
        module.num_heads = module.split_size // module.head_dim


@register_sync("transformers.models.t5.modeling_t5.T5Attention")
def _t5(module: Any) -> None:
    module.inner_dim = module.q.out_features
    module.n_heads = module.inner_dim // module.key_value_proj_dim
