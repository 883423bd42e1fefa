"""A small language model of x-transformers with each of its options, a vision transformer and a translator."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.registry import Network, image, made

TOKENS = 100
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "relative": {"rel_pos_bias": True},
    "gated": {"ff_glu": True, "ff_swish": True},
    "rms": {"use_rmsnorm": True},
    "groups": {"attn_kv_heads": 2},
    "one_key": {"attn_one_kv_head": True},
    "sandwich": {"sandwich_norm": True},
    "macaron": {"macaron": True},
    "post_norm": {"pre_norm": False},
    "qk_norm": {"attn_qk_norm": True},
    "gate_residual": {"gate_residual": True},
    "talking_heads": {"attn_pre_talking_heads": True},
    "memory": {"attn_num_mem_kv": 4},
    "fused": {"attn_flash": True},
    "shifted": {"shift_tokens": 1},
    "gate_values": {"attn_gate_values": True},
    "streams": {"num_residual_streams": 2},
    "residual_attention": {"residual_attn": True},
    "scaled_residual": {"scale_residual": True},
    "value_residual": {"add_value_residual": True},
}


def language_model(options: dict[str, Any]) -> nn.Module:
    """Return a decoder of two layers."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, **options)
    return TransformerWrapper(num_tokens=TOKENS, max_seq_len=64, attn_layers=layers)


def vision_transformer() -> nn.Module:
    """Return a vision transformer of two layers."""
    from x_transformers import Encoder, ViTransformerWrapper

    return ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=10, attn_layers=Encoder(dim=64, depth=2, heads=4)
    )


def translator() -> nn.Module:
    """Return an encoder and a decoder of one layer each."""
    from x_transformers import XTransformer

    sizes = {
        f"{side}_{name}": value
        for side in ("enc", "dec")
        for name, value in {"num_tokens": TOKENS, "depth": 1, "heads": 4, "max_seq_len": 32}.items()
    }
    return XTransformer(dim=64, **sizes)


NETWORKS = [
    *(
        Network(f"x_transformers:{name}", partial(language_model, options), partial(made, ("ids", TOKENS, 1, 32)), name)
        for name, options in OPTIONS.items()
    ),
    Network("x_transformers:vision", vision_transformer, image(32), "vision"),
    Network(
        "x_transformers:translator",
        translator,
        partial(made, (("ids", TOKENS, 1, 16), ("ids", TOKENS, 1, 16))),
        "translator",
    ),
]
