"""Networks of MONAI for medical pictures and volumes, with small widths."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.registry import Network, image, made

FLAT, WHOLE = (64, 64), (32, 32, 32)
_PICTURE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_SMALL_PICTURE = {**_PICTURE, "channels": (8, 16, 32), "strides": (2, 2)}
_TOKENS = {"in_channels": 1, "hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 4, "spatial_dims": 2}
_MOVED = {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8}
# Network: arguments, and the shape of one input; one channel if nothing else is said.
ARCHITECTURES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({**_SMALL_PICTURE, "num_res_units": 2}, FLAT),
    "AttentionUnet": (_SMALL_PICTURE, FLAT),
    "AutoEncoder": ({**_PICTURE, "out_channels": 1, "channels": (8, 16), "strides": (2, 2)}, FLAT),
    "VarAutoEncoder": (
        {
            "spatial_dims": 2,
            "in_shape": (1, 32, 32),
            "out_channels": 1,
            "latent_size": 8,
            "channels": (8, 16),
            "strides": (2, 2),
        },
        (32, 32),
    ),
    "BasicUNet": ({"spatial_dims": 2, "in_channels": 1, "features": (8, 8, 16, 16, 32, 8)}, FLAT),
    "BasicUNetPlusPlus": ({"spatial_dims": 2, "in_channels": 1, "features": (8, 8, 16, 16, 32, 8)}, FLAT),
    "DenseNet": (
        {**_PICTURE, "spatial_dims": 3, "init_features": 16, "growth_rate": 8, "block_config": (2, 2)},
        WHOLE,
    ),
    "DynUNet": (
        {
            **_PICTURE,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [8, 16, 32],
            "res_block": True,
        },
        FLAT,
    ),
    "EfficientNetBN": (
        {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2, "in_channels": 1, "num_classes": 3},
        FLAT,
    ),
    "HighResNet": (_PICTURE, FLAT),
    "SegResNet": ({**_PICTURE, "init_filters": 8}, FLAT),
    "SegResNetVAE": ({**_PICTURE, "init_filters": 8, "input_image_size": (32, 32)}, (32, 32)),
    "SegResNetDS": ({**_PICTURE, "init_filters": 8, "blocks_down": (1, 1, 1)}, FLAT),
    "SEResNet50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 2}, FLAT),
    "SEResNext50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 2}, FLAT),
    "ResNet": (
        {
            "block": "basic",
            "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 32, 64],
            "spatial_dims": 3,
            "n_input_channels": 1,
            "num_classes": 2,
        },
        WHOLE,
    ),
    "SwinUNETR": (
        {**_PICTURE, "feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
        FLAT,
    ),
    "UNETR": (
        {
            "in_channels": 1,
            "out_channels": 2,
            "img_size": 32,
            "feature_size": 8,
            "hidden_size": 48,
            "mlp_dim": 96,
            "num_heads": 4,
        },
        WHOLE,
    ),
    "ViT": ({**_TOKENS, "img_size": FLAT, "patch_size": (16, 16), "classification": True}, FLAT),
    "ViTAutoEnc": ({**_TOKENS, "img_size": FLAT, "patch_size": (16, 16)}, FLAT),
    "VNet": (_PICTURE, FLAT),
    "MedNeXt": (
        {
            **_PICTURE,
            "init_filters": 8,
            "blocks_down": (1, 1, 1, 1),
            "blocks_bottleneck": 1,
            "blocks_up": (1, 1, 1, 1),
        },
        FLAT,
    ),
    "AutoencoderKL": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "num_res_blocks": (1, 1),
            "channels": (8, 16),
            "attention_levels": (False, True),
            "latent_channels": 4,
            "norm_num_groups": 4,
        },
        (16, 16),
    ),
    "VQVAE": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": (8, 16),
            "num_res_layers": 1,
            "num_res_channels": (8, 16),
            "downsample_parameters": ((2, 4, 1, 1),) * 2,
            "num_embeddings": 16,
            "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
            "embedding_dim": 8,
        },
        (32, 32),
    ),
    "MaskedAutoEncoderViT": (
        {
            **_TOKENS,
            "img_size": 32,
            "patch_size": 8,
            "decoder_hidden_size": 48,
            "decoder_mlp_dim": 96,
            "decoder_num_layers": 1,
            "decoder_num_heads": 4,
        },
        (32, 32),
    ),
    "Regressor": (
        {"in_shape": (1, 32, 32), "out_shape": (3,), "channels": (8, 16), "strides": (2, 2)},
        (32, 32),
    ),
    "DAF3D": ({"in_channels": 1, "out_channels": 2}, WHOLE),
}
# The same with another number of input channels.
WIDER: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "FlexibleUNet": ({**_PICTURE, "in_channels": 3, "backbone": "efficientnet-b0"}, 3, FLAT),
    "RegUNet": ({**_MOVED, "depth": 2}, 2, (32, 32)),
    "LocalNet": ({**_MOVED, "out_channels": 2, "extract_levels": (0, 1)}, 2, (32, 32)),
    "GlobalNet": ({**_MOVED, "image_size": (32, 32), "depth": 2}, 2, (32, 32)),
    "VoxelMorphUNet": (
        {
            "spatial_dims": 2,
            "in_channels": 2,
            "unet_out_channels": 16,
            "channels": (16, *(32,) * 5),
            "final_conv_channels": (16, 16),
        },
        2,
        (32, 32),
    ),
}
# The same with inputs that are no picture.
SPECIFIED: dict[str, tuple[dict[str, Any], Any]] = {
    "DiffusionModelUNet": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": (8, 16, 16),
            "num_res_blocks": 1,
            "attention_levels": (False, True, True),
            "num_head_channels": 8,
            "norm_num_groups": 4,
        },
        ((1, 1, 16, 16), [3]),
    ),
    "MILModel": ({"num_classes": 2, "mil_mode": "att", "pretrained": False}, (1, 4, 3, 64, 64)),
    "DecoderOnlyTransformer": (
        {
            "num_tokens": 50,
            "max_seq_len": 32,
            "attn_layers_dim": 32,
            "attn_layers_depth": 2,
            "attn_layers_heads": 4,
        },
        ("ids", 50, 1, 16),
    ),
    "Generator": (
        {"latent_shape": (16,), "start_shape": (8, 8, 8), "channels": (8, 4, 1), "strides": (2, 2, 1)},
        (1, 16),
    ),
}


def make(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a network without weights of the package."""
    from monai.networks import nets

    network: nn.Module = getattr(nets, name)(**arguments)
    return network


NETWORKS = [
    *(
        Network(f"monai:{name}", partial(make, name, given), image(shape, channels=1), name)
        for name, (given, shape) in ARCHITECTURES.items()
    ),
    *(
        Network(f"monai:{name}", partial(make, name, given), image(shape, channels=channels), name)
        for name, (given, channels, shape) in WIDER.items()
    ),
    *(
        Network(f"monai:{name}", partial(make, name, given), partial(made, spec), name)
        for name, (given, spec) in SPECIFIED.items()
    ),
]
