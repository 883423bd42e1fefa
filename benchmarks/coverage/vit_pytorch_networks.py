"""Vision transformers of vit-pytorch, which reshape by einops, with small widths."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.registry import Network, image

SIDE = 64
_PLAIN = {"image_size": SIDE, "patch_size": 16, "num_classes": 10, "dim": 128, "depth": 2, "heads": 4, "mlp_dim": 256}
_SMALL = {**_PLAIN, "dim": 64, "mlp_dim": 128}
# Modules whose network takes the plain arguments: its class, and further arguments.
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(
        (
            *("simple_vit", "simple_vit_with_qk_norm", "simple_vit_with_register_tokens", "simple_flash_attn_vit"),
            *("simple_vit_with_value_residual", "simple_vit_with_patch_dropout", "simple_vit_with_specialized_cls"),
            *("simple_vit_orthog_residual_update", "simple_vit_with_relative_proj_pos_bias"),
        ),
        ("SimpleViT", {}),
    ),
    **dict.fromkeys(
        (
            *("vit", "parallel_vit", "vit_with_patch_dropout", "vit_for_small_dataset", "learnable_memory_vit"),
            *("vit_with_decorr", "vit_with_keel_post_ln"),
        ),
        ("ViT", {}),
    ),
    "simple_vit_with_fft": ("SimpleViT", {"freq_patch_size": 8}),
    "simple_vit_with_hyper_connections": ("SimpleViT", {"num_residual_streams": 2}),
    "simple_uvit": ("SimpleUViT", {}),
    "deepvit": ("DeepViT", {}),
    "rvt": ("RvT", {}),
    "normalized_vit": ("nViT", {}),
    "cait": ("CaiT", {"cls_depth": 1}),
    "xcit": ("XCiT", {"cls_depth": 1}),
}
# Others: class, arguments, and the shape of one input where it is not a picture of the usual size.
OTHERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "cct": (
        "CCT",
        {"img_size": SIDE, "embedding_dim": 128, "n_conv_layers": 2, "num_layers": 2, "num_heads": 4, "mlp_ratio": 2.0},
        (SIDE, SIDE),
    ),
    "cross_vit": (
        "CrossViT",
        {
            "image_size": SIDE,
            "num_classes": 10,
            "depth": 2,
            "sm_dim": 64,
            "sm_patch_size": 8,
            "sm_enc_depth": 1,
            "sm_enc_heads": 4,
            "sm_enc_mlp_dim": 128,
            "lg_dim": 128,
            "lg_patch_size": 16,
            "lg_enc_depth": 1,
            "lg_enc_heads": 4,
            "lg_enc_mlp_dim": 128,
            "cross_attn_depth": 1,
            "cross_attn_heads": 4,
        },
        (SIDE, SIDE),
    ),
    "cvt": (
        "CvT",
        {
            "num_classes": 10,
            "s1_emb_dim": 32,
            "s2_emb_dim": 64,
            "s2_heads": 2,
            "s2_depth": 1,
            "s3_emb_dim": 96,
            "s3_heads": 3,
            "s3_depth": 1,
        },
        (SIDE, SIDE),
    ),
    "levit": (
        "LeViT",
        {
            "image_size": SIDE,
            "num_classes": 10,
            "stages": 2,
            "dim": (64, 96),
            "depth": 1,
            "heads": (2, 3),
            "mlp_mult": 2,
            "dropout": 0.0,
        },
        (SIDE, SIDE),
    ),
    "max_vit": (
        "MaxViT",
        {"num_classes": 10, "dim_conv_stem": 16, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4},
        (SIDE, SIDE),
    ),
    "mobile_vit": (
        "MobileViT",
        {
            "image_size": (SIDE, SIDE),
            "dims": [32, 48, 64],
            "num_classes": 10,
            "channels": [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96],
        },
        (SIDE, SIDE),
    ),
    "nest": (
        "NesT",
        {
            "image_size": SIDE,
            "patch_size": 4,
            "dim": 32,
            "heads": 2,
            "num_hierarchies": 3,
            "num_classes": 10,
            "block_repeats": (1, 1, 1),
        },
        (SIDE, SIDE),
    ),
    "pit": (
        "PiT",
        {
            "image_size": SIDE,
            "patch_size": 8,
            "dim": 64,
            "num_classes": 10,
            "depth": (1, 1),
            "heads": 4,
            "mlp_dim": 128,
        },
        (SIDE, SIDE),
    ),
    "regionvit": (
        "RegionViT",
        {"dim": (32, 64, 64, 64), "depth": (1, 1, 1, 1), "window_size": 4, "num_classes": 10},
        (2 * SIDE, 2 * SIDE),
    ),
    "scalable_vit": (
        "ScalableViT",
        {
            "num_classes": 10,
            "dim": 32,
            "heads": (1, 2, 2, 2),
            "depth": (1, 1, 1, 1),
            "ssa_dim_key": (8, 8, 8, 8),
            "reduction_factor": (4, 2, 1, 1),
            "window_size": (8, 4, None, None),
            "dropout": 0.0,
        },
        (SIDE, SIDE),
    ),
    "t2t": ("T2TViT", {**_SMALL, "t2t_layers": ((7, 4), (3, 2), (3, 2))}, (SIDE, SIDE)),
    "twins_svt": (
        "TwinsSVT",
        {
            "num_classes": 10,
            **{f"s{stage}_emb_dim": width for stage, width in enumerate((32, 32, 64, 64), start=1)},
            **{f"s{stage}_patch_size": size for stage, size in enumerate((4, 2, 2, 2), start=1)},
            **{f"s{stage}_local_patch_size": size for stage, size in enumerate((4, 4, 2, 1), start=1)},
            **{f"s{stage}_global_k": size for stage, size in enumerate((4, 4, 2, 1), start=1)},
            **{f"s{stage}_depth": 1 for stage in range(1, 5)},
        },
        (SIDE, SIDE),
    ),
    "ats_vit": ("ViT", {**_SMALL, "max_tokens_per_depth": (16, 8)}, (SIDE, SIDE)),
    "vit_with_patch_merger": (
        "ViT",
        {**_SMALL, "depth": 4, "patch_merge_layer": 2, "patch_merge_num_tokens": 4},
        (SIDE, SIDE),
    ),
    "look_vit": (
        "LookViT",
        {
            "dim": 64,
            "image_size": SIDE,
            "num_classes": 10,
            "depth": 2,
            "patch_size": 16,
            "heads": 4,
            "mlp_factor": 2,
            "dim_head": 16,
            "highres_patch_size": 8,
            "highres_mlp_factor": 2,
            "cross_attn_heads": 4,
            "cross_attn_dim_head": 16,
        },
        (SIDE, SIDE),
    ),
    "vit_nd_rotary": ("ViTND", {**_PLAIN, "ndim": 2, "input_shape": SIDE}, (SIDE, SIDE)),
    "vit_3d": (
        "ViT",
        {**_SMALL, "image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2},
        (4, 32, 32),
    ),
    "vit_1d": ("ViT", {**_SMALL, "seq_len": SIDE, "patch_size": 8}, (SIDE,)),
}
_NOT_TAKEN = {
    "vit_nd_rotary": ("image_size",), "vit_3d": ("patch_size",), "vit_1d": ("image_size",), "t2t": ("patch_size",),
}  # fmt: skip


def make(module: str, kind: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a network of a module of the package."""
    given = {name: value for name, value in arguments.items() if name not in _NOT_TAKEN.get(module, ())}
    network: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{module}"), kind)(**given)
    return network


NETWORKS = [
    *(
        Network(f"vit_pytorch:{name}", partial(make, name, kind, {**_PLAIN, **more}), image(SIDE), name)
        for name, (kind, more) in ALIKE.items()
    ),
    *(
        Network(f"vit_pytorch:{name}", partial(make, name, kind, given), image(shape), name)
        for name, (kind, given, shape) in OTHERS.items()
    ),
]
