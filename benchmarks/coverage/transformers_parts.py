"""What several families of transformers share: specifications of inputs, backbones and fields of configurations.

Specifications are read by `benchmarks.coverage.registry.made`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.coverage.shrink import MARKS, SECTIONS

Table = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]  # family: class, changed fields, inputs

IDS, ONE, REPLY = ("ids", 100, 2, 12), ("ids", 100, 1, 12), ("ids", 100, 1, 6)
PICTURE, LARGE, SOUND = (1, 3, 32, 32), (1, 3, 64, 64), (1, 4000)
ONES, HEADS = [1, 1, 1, 1], [1, 2, 2, 4]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
HYBRID = ["linear_attention", "full_attention"]

_SMALL_RESNET: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": ONES}
RESNET: dict[str, Any] = {"model_type": "resnet", **_SMALL_RESNET, "out_features": STAGES[3:]}
RESNET_3 = {**RESNET, "out_features": STAGES[1:]}
RESNET_4 = {**RESNET, "out_features": STAGES}
RT_RESNET = {"model_type": "rt_detr_resnet", **_SMALL_RESNET, "out_features": STAGES[1:], "layer_type": "basic"}
_SMALL_SWIN: dict[str, Any] = {"embed_dim": 16, "depths": ONES, "num_heads": HEADS, "window_size": 4, "image_size": 64}
SWIN: dict[str, Any] = {"model_type": "swin", **_SMALL_SWIN, "out_features": STAGES}
_NO_BACKBONE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
BACKBONE = {"backbone_config": RESNET, **_NO_BACKBONE}
BACKBONE_3 = {"backbone_config": RESNET_3, **_NO_BACKBONE}
DETECTOR = {"backbone_config": RT_RESNET, "encoder_in_channels": [24, 32, 48], "decoder_in_channels": [64, 64, 64]}

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TEXT_ROPE = {"text_config.rope_parameters": {**ROPE, "mrope_section": SECTIONS}}
TILES = {"image_grid_pinpoints": [[32, 32]]}
# A picture cut into 16 patches, of which two by two are one token.
PATCHES: dict[str, Any] = {
    "input_ids": ("marked", MARKS["image"], 4, 1, 12),
    "pixel_values": (16, 384),
    "image_grid_thw": [[1, 4, 4]],
    "mm_token_type_ids": [[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]],
}
SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}
SERIES |= {"feature_size": 5}
PAST: dict[str, Any] = {
    "past_values": (1, 10),
    "past_time_features": (1, 10, 1),
    "past_observed_mask": ("ones", 1, 10),
    "future_values": (1, 4),
    "future_time_features": (1, 4, 1),
}


def marked(count: int) -> dict[str, Any]:
    """Return a text with that many places for features of a picture."""
    return {"input_ids": ("marked", MARKS["image"], count, 1, count + 8)}
