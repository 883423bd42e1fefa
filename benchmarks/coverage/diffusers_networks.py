"""Networks of diffusers: denoisers of pictures, clips and sound, control networks and autoencoders, in small sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.registry import Network, made

_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
_BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_HEADS = {"num_attention_heads": 4, "attention_head_dim": 16}
_JOINT = {**_HEADS, "num_layers": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
_FLUX = {**_JOINT, "in_channels": 16, "num_single_layers": 2, "axes_dims_rope": (4, 6, 6)}
_TEXT, _TIME = (1, 6, 32), [10]
_FLUX_INPUTS: dict[str, Any] = {
    "hidden_states": (1, 16, 16),
    "encoder_hidden_states": _TEXT,
    "pooled_projections": (1, 32),
    "timestep": [0.5],
    "img_ids": ("rows", 16, 3),
    "txt_ids": ("rows", 6, 3),
}
_SD3_INPUTS: dict[str, Any] = {
    "hidden_states": (1, 4, 16, 16),
    "encoder_hidden_states": _TEXT,
    "pooled_projections": (1, 32),
    "timestep": _TIME,
}
_SD3 = {**_JOINT, "sample_size": 16, "in_channels": 4, "out_channels": 4, "caption_projection_dim": 64}
_CONTEXT = {"sample": (1, 4, 16, 16), "timestep": _TIME, "encoder_hidden_states": _TEXT}
_CLIP = {"sample": (1, 4, 4, 16, 16), "timestep": _TIME, "encoder_hidden_states": _TEXT}
_PICTURE, _FILM = {"sample": (1, 3, 32, 32)}, {"sample": (1, 3, 5, 32, 32)}
_FRAMES = {"hidden_states": (1, 4, 2, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME}


def _four(name: str, part: str = "3D") -> dict[str, Any]:
    return {f"{way.lower()}_block_types": (f"{name}{way}Block{part}",) * 4 for way in ("Down", "Up")}


# Name of the class, after a + what is special: fields of its configuration, and what a forward takes, which is read by
# `benchmarks.coverage.registry.made`.
TABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet1DModel": (
        {"sample_size": 64, "block_out_channels": (16, 16, 32), "in_channels": 14, "out_channels": 14}
        | {"time_embedding_type": "positional", "use_timestep_embedding": True, "act_fn": "silu"}
        | {"down_block_types": ("DownResnetBlock1D",) * 3, "up_block_types": ("UpResnetBlock1D",) * 2}
        | {"mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock", "freq_shift": 1.0},
        {"sample": (1, 14, 64), "timestep": _TIME},
    ),
    "UNet2DModel": (
        {**_BLOCKS, "sample_size": 16, "attention_head_dim": 8}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        {"sample": (1, 3, 16, 16), "timestep": _TIME},
    ),
    "UNet2DConditionModel": (
        {**_BLOCKS, "down_block_types": _DOWN, "up_block_types": _UP, "cross_attention_dim": 32, "sample_size": 16},
        _CONTEXT,
    ),
    "UNet2DConditionModel+xl": (
        {**_BLOCKS, "down_block_types": _DOWN, "up_block_types": _UP, "cross_attention_dim": 32, "sample_size": 16}
        | {"use_linear_projection": True, "transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4)}
        | {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        | {"projection_class_embeddings_input_dim": 80},
        {**_CONTEXT, "added_cond_kwargs": {"text_embeds": (1, 32), "time_ids": (1, 6)}},
    ),
    "UNet3DConditionModel": (
        {**_BLOCKS, "cross_attention_dim": 32, "attention_head_dim": 8}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        _CLIP,
    ),
    "UNetMotionModel": (
        {**_BLOCKS, "cross_attention_dim": 32, "num_attention_heads": 4, "motion_num_attention_heads": 4}
        | {"motion_max_seq_length": 8, "use_motion_mid_block": False}
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}
        | {"up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")},
        {**_CLIP, "encoder_hidden_states": (4, 6, 32)},  # one text for each frame
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "num_attention_heads": (2, 4),
        }
        | {"down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")}
        | {"up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}
        | {"addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96},
        {"sample": (1, 2, 8, 16, 16), "timestep": _TIME, "encoder_hidden_states": (1, 1, 32), "added_time_ids": (1, 3)},
    ),
    "I2VGenXLUNet": (
        {**_BLOCKS, "cross_attention_dim": 32, "attention_head_dim": 8}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        {**_CLIP, "fps": [2], "image_latents": (1, 4, 4, 16, 16), "image_embeddings": (1, 32)},
    ),
    "Kandinsky3UNet": (
        {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "groups": 8, "attention_head_dim": 16}
        | {"time_embedding_dim": 64, "cross_attention_dim": 64, "encoder_hid_dim": 32},
        {**_CONTEXT, "encoder_attention_mask": ("ones", 1, 6)},
    ),
    "StableCascadeUNet": (
        {"block_out_channels": (32, 64), "num_attention_heads": (2, 4), "conditioning_dim": 32, "in_channels": 4}
        | {"out_channels": 4, "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1)}
        | {"clip_text_pooled_in_channels": 32, "clip_text_in_channels": 32, "clip_image_in_channels": 32},
        {"sample": (1, 4, 16, 16), "timestep_ratio": [0.5], "clip_text_pooled": (1, 1, 32), "clip_text": (1, 6, 32)}
        | {"clip_img": (1, 1, 32)},
    ),
    "UVit2DModel": (
        {"hidden_size": 64, "cond_embed_dim": 32, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40}
        | {"encoder_hidden_size": 32, "vocab_size": 65, "codebook_size": 64, "in_channels": 64}
        | {"block_out_channels": 64, "num_res_blocks": 1, "block_num_heads": 4, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "intermediate_size": 96, "sample_size": 8},
        {"input_ids": ("ids", 64, 1, 8, 8), "encoder_hidden_states": _TEXT, "pooled_text_emb": (1, 32)}
        | {"micro_conds": (1, 5)},
    ),
    "T5FilmDecoder": (
        {
            "input_dims": 16,
            "targets_length": 16,
            "d_model": 64,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 16,
            "d_ff": 96,
        },
        {"encodings_and_masks": (((1, 8, 64), ("ones", 1, 8)),), "decoder_input_tokens": (1, 16, 16)}
        | {"decoder_noise_time": [0.5]},
    ),
    "Transformer2DModel": (
        {**_HEADS, "in_channels": 32, "norm_num_groups": 8, "num_layers": 2, "cross_attention_dim": 32},
        {"hidden_states": (1, 32, 8, 8), "encoder_hidden_states": _TEXT},
    ),
    "TransformerTemporalModel": (
        {**_HEADS, "in_channels": 32, "norm_num_groups": 8, "num_layers": 2},
        {"hidden_states": (4, 32, 4, 4), "num_frames": 4},
    ),
    "PriorTransformer": (
        {**_HEADS, "num_layers": 2, "embedding_dim": 32, "num_embeddings": 7},
        {"hidden_states": (1, 32), "timestep": _TIME, "proj_embedding": (1, 32), "encoder_hidden_states": (1, 7, 32)},
    ),
    "DiTTransformer2DModel": (
        {**_HEADS, "num_layers": 2, "sample_size": 8, "norm_num_groups": 8, "num_embeds_ada_norm": 10},
        {"hidden_states": (1, 4, 8, 8), "timestep": _TIME, "class_labels": [3]},
    ),
    "PixArtTransformer2DModel": (
        {**_HEADS, "num_layers": 2, "sample_size": 8, "norm_num_groups": 8, "cross_attention_dim": 64}
        | {"caption_channels": 32, "use_additional_conditions": False},
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME}
        | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "SD3Transformer2DModel": (_SD3, _SD3_INPUTS),
    "SD3Transformer2DModel+3.5": (
        {**_SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        _SD3_INPUTS,
    ),
    "FluxTransformer2DModel": (_FLUX, _FLUX_INPUTS),
    "Flux2Transformer2DModel": (
        {**_HEADS, "num_layers": 2, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": 32}
        | {"timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
        {"hidden_states": (1, 16, 16), "encoder_hidden_states": _TEXT, "timestep": [0.5], "guidance": [1.0]}
        | {"img_ids": ("rows", 16, 4), "txt_ids": ("rows", 6, 4)},
    ),
    "ChromaTransformer2DModel": (
        {name: value for name, value in _FLUX.items() if name != "pooled_projection_dim"}
        | {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1},
        {name: value for name, value in _FLUX_INPUTS.items() if name != "pooled_projections"},
    ),
    "BriaTransformer2DModel": (
        {**_FLUX, "pooled_projection_dim": None},
        {name: value for name, value in _FLUX_INPUTS.items() if name != "pooled_projections"},
    ),
    "AuraFlowTransformer2DModel": (
        {**_HEADS, "sample_size": 16, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 32}
        | {"caption_projection_dim": 64, "pos_embed_max_size": 64},
        {"hidden_states": (1, 4, 16, 16), "encoder_hidden_states": _TEXT, "timestep": [0.5]},
    ),
    "SanaTransformer2DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 4}
        | {"cross_attention_head_dim": 16, "cross_attention_dim": 64, "caption_channels": 32, "sample_size": 8},
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME},
    ),
    "HunyuanDiT2DModel": (
        {**_HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 64, "num_layers": 2}
        | {"cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 32, "text_len": 6}
        | {"text_len_t5": 6, "use_style_cond_and_image_meta_size": False},
        {"hidden_states": (1, 4, 8, 8), "timestep": [10.0], "encoder_hidden_states": _TEXT}
        | {"text_embedding_mask": ("ones", 1, 6), "encoder_hidden_states_t5": _TEXT}
        | {"text_embedding_mask_t5": ("ones", 1, 6)}
        | {"image_rotary_emb": ("pair", 16, 16)},
    ),
    "Lumina2Transformer2DModel": (
        {"sample_size": 8, "in_channels": 4, "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1}
        | {"num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16, "axes_dim_rope": (4, 6, 6)}
        | {"axes_lens": (32, 32, 32), "cap_feat_dim": 32},
        {"hidden_states": (1, 4, 8, 8), "timestep": [0.5], "encoder_hidden_states": _TEXT}
        | {"encoder_attention_mask": ("true", 1, 6)},
    ),
    "PRXTransformer2DModel": (
        {"in_channels": 4, "context_in_dim": 32, "hidden_size": 64, "num_heads": 4, "depth": 2, "axes_dim": [8, 8]},
        {"hidden_states": (1, 4, 8, 8), "timestep": [0.5], "encoder_hidden_states": _TEXT},
    ),
    "CogView3PlusTransformer2DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 32, "time_embed_dim": 32}
        | {"condition_dim": 8, "sample_size": 8, "pos_embed_max_size": 8},
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME, "original_size": (1, 2)}
        | {"target_size": (1, 2), "crop_coords": (1, 2)},
    ),
    "CogView4Transformer2DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 32, "time_embed_dim": 32}
        | {"condition_dim": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        {"hidden_states": (1, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME, "original_size": (1, 2)}
        | {"target_size": (1, 2), "crop_coords": (1, 2)},
    ),
    "QwenImageTransformer2DModel": (
        {**_HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 32}
        | {"axes_dims_rope": (4, 6, 6)},
        {"hidden_states": (1, 16, 16), "encoder_hidden_states": _TEXT, "timestep": [0.5]}
        | {"encoder_hidden_states_mask": ("ones", 1, 6), "img_shapes": ("as is", [[(1, 4, 4)]])},
    ),
    "CogVideoXTransformer3DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 2}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 6},
        {"hidden_states": (1, 2, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME},
    ),
    "LTXVideoTransformer3DModel": (
        {**_HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 64, "num_layers": 2}
        | {"caption_channels": 32},
        {"hidden_states": (1, 16, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME}
        | {"encoder_attention_mask": ("true", 1, 6), "num_frames": 1, "height": 4, "width": 4},
    ),
    "MochiTransformer3DModel": (
        {**_HEADS, "num_layers": 2, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 32}
        | {"time_embed_dim": 8, "max_sequence_length": 6},
        {**_FRAMES, "encoder_attention_mask": ("true", 1, 6)},
    ),
    "WanTransformer3DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 96}
        | {"num_layers": 2, "rope_max_seq_len": 32},
        _FRAMES,
    ),
    "SkyReelsV2Transformer3DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 96}
        | {"num_layers": 2, "rope_max_seq_len": 32},
        _FRAMES,
    ),
    "HunyuanVideoTransformer3DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 1}
        | {"num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 32, "rope_axes_dim": (4, 6, 6)},
        {**_FRAMES, "encoder_attention_mask": ("ones", 1, 6), "pooled_projections": (1, 32), "guidance": [1000]},
    ),
    "AllegroTransformer3DModel": (
        {"num_attention_heads": 4, "attention_head_dim": 24, "num_layers": 2, "cross_attention_dim": 96}
        | {"sample_height": 8, "sample_width": 8, "sample_frames": 2, "caption_channels": 32},
        {**_FRAMES, "encoder_attention_mask": ("ones", 1, 6), "attention_mask": ("ones", 1, 2, 8, 8)},
    ),
    "LatteTransformer3DModel": (
        {**_HEADS, "in_channels": 4, "num_layers": 2, "cross_attention_dim": 64, "sample_size": 8, "patch_size": 2}
        | {"norm_type": "ada_norm_single", "caption_channels": 32, "video_length": 2, "num_embeds_ada_norm": 1000}
        | {"norm_elementwise_affine": False},
        _FRAMES,
    ),
    "CosmosTransformer3DModel": (
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 32, "adaln_lora_dim": 8}
        | {"max_size": (4, 16, 16)},
        {**_FRAMES, "fps": 30, "padding_mask": ("zeros", 1, 1, 8, 8)},
    ),
    "StableAudioDiTModel": (
        {**_HEADS, "sample_size": 16, "in_channels": 8, "out_channels": 8, "num_layers": 2}
        | {"num_key_value_attention_heads": 2, "cross_attention_dim": 32, "time_proj_dim": 16}
        | {"global_states_input_dim": 32, "cross_attention_input_dim": 32},
        {"hidden_states": (1, 8, 16), "timestep": [0.5], "encoder_hidden_states": _TEXT}
        | {"global_hidden_states": (1, 1, 32), "rotary_embedding": ("pair", 17, 8)},
    ),
    "ControlNetModel": (
        {**_BLOCKS, "down_block_types": _DOWN, "cross_attention_dim": 32}
        | {"conditioning_embedding_out_channels": (16, 32)},
        {**_CONTEXT, "controlnet_cond": (1, 3, 32, 32)},
    ),
    "SD3ControlNetModel": (_SD3, {**_SD3_INPUTS, "controlnet_cond": (1, 4, 16, 16)}),
    "FluxControlNetModel": (_FLUX, {**_FLUX_INPUTS, "controlnet_cond": (1, 16, 16)}),
    "T2IAdapter": ({"channels": [32, 64], "num_res_blocks": 1}, {"x": (1, 3, 64, 64)}),
    "AutoencoderKL": (
        {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        _PICTURE,
    ),
    "AsymmetricAutoencoderKL": (
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        | {"down_block_out_channels": (32, 64), "up_block_out_channels": (32, 64), "norm_num_groups": 8},
        _PICTURE,
    ),
    "AutoencoderKLTemporalDecoder": (
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 64)},
        {**_PICTURE, "num_frames": 1},
    ),
    "VQModel": (
        {**_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        _PICTURE,
    ),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (32, 32), "decoder_block_out_channels": (32, 32)}
        | {"num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)},
        _PICTURE,
    ),
    "AutoencoderDC": (
        {"latent_channels": 8, "attention_head_dim": 8, "encoder_block_out_channels": (32, 64)}
        | {"decoder_block_out_channels": (32, 64), "encoder_layers_per_block": (1, 1)}
        | {"decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,))}
        | {"decoder_qkv_multiscales": ((), (5,))}
        | {f"{side}_block_types": ("ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")},
        _PICTURE,
    ),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 16, "decoder_channels": 16, "decoder_input_channels": 8, "downsampling_ratios": [2, 4]}
        | {"channel_multiples": [1, 2]},
        {"sample": (1, 2, 256)},
    ),
    "AutoencoderKLCogVideoX": (
        {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4}
        | _four("CogVideoX"),
        _FILM,
    ),
    "AutoencoderKLWan": ({"base_dim": 16, "z_dim": 16, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]}, _FILM),
    "AutoencoderKLQwenImage": (
        {"base_dim": 16, "z_dim": 16, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]},
        {"sample": (1, 3, 1, 32, 32)},
    ),
    "AutoencoderKLLTXVideo": (
        {"latent_channels": 8, "block_out_channels": (16, 32, 32, 32), "layers_per_block": (1,) * 5}
        | {"decoder_block_out_channels": (16, 32, 32, 32), "decoder_layers_per_block": (1,) * 5},
        {"sample": (1, 3, 9, 32, 32)},
    ),
    "AutoencoderKLHunyuanVideo": (
        {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
        _FILM,
    ),
    "AutoencoderKLMagvit": (
        {"block_out_channels": [16, 16, 32, 32], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
        _FILM,
    ),
}


def make(name: str) -> nn.Module:
    """Return a network of diffusers."""
    import diffusers

    network: nn.Module = getattr(diffusers, name.partition("+")[0])(**TABLE[name][0])
    return network


NETWORKS = [
    Network(
        f"diffusers:{name}",
        partial(make, name),
        partial(made, inputs),
        name,
        doubles=name != "TransformerTemporalModel",  # it is told the number of frames
        fixed=("img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding", "padding_mask"),
    )
    for name, (_, inputs) in TABLE.items()
]
