"""A small configuration of any family of the package transformers, from the names of the fields alone.

Families spell the same things in a few ways (``hidden_size``, ``d_model``, ``n_embd``). One table of those names and of
small values makes a network of some ten thousand weights of almost any configuration class; what does not fit is set by
`benchmarks.coverage.transformers_networks`, a few fields a family.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, VOCABULARY = 64, 4, 128
IMAGE, PATCH = 32, 8
MARKS = {"image": 120, "video": 121, "audio": 122}  # places in a text that features of something else take
SECTIONS = [2, 3, 3]  # of the half of a small head, for time, height and width

# Value, and the fields that are at most so much.
_SAME = {
    WIDTH: """
        hidden_size d_model n_embd embed_dim embedding_size projection_dim emb_dim dim_model encoder_hidden_size
        decoder_hidden_size out_hidden_size proj_dim hidden_dim word_embed_dim qformer_hidden_size
        text_hidden_size vision_hidden_size encoder_hidden_dim fusion_hidden_size word_embed_proj_dim
        classifier_proj_size mask_feature_size feature_size attention_hidden_size d_inner_hid
        adapter_hidden_size lru_width latent_dim embedding_dim head_hidden_size image_text_hidden_size
        mm_hidden_size backbone_hidden_size mlp_hidden_size pooler_output_size projector_hidden_size
        hidden_size_global fpn_hidden_size memory_attention_hidden_size d_embed memory_encoder_hidden_size
        memory_fuser_embed_dim mask_downsampler_embed_dim d_latents output_hidden_size auxiliary_channels
        fpn_feature_size cross_hidden_size input_embed_dim
    """,
    96: """
        intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff n_inner ffn_hidden_size ffn_dim mlp_dim
        dim_feedforward decoder_intermediate_size dim_ff d_inner dense_ffn_hidden_size intermediate_size_mlp
        expert_ffn_hidden_size memory_fuser_intermediate_dim vision_ffn_dim
    """,
    32: """
        moe_intermediate_size shared_expert_intermediate_size qk_nope_head_dim shared_intermediate_size
        q_lora_rank kv_lora_rank o_lora_rank mamba_d_state ssm_state_size tokens_per_image
        moe_shared_expert_intermediate_size hidden_size_per_layer_input chunk_size mamba_chunk_size
        index_head_dim mask_token_size
    """,
    16: """
        head_dim d_kv v_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim attention_head_dim
        mamba_d_head mamba_head_dim kda_head_dim global_head_dim swa_head_dim query_pre_attn_scalar dim_head
        linear_head_dim num_queries entity_emb_size state_size sliding_window window_size_1d attention_window
        conditional_embedding_size rotary_dim
    """,
    HEADS: """
        num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts
        num_local_experts n_routed_experts moe_num_experts qformer_num_attention_heads attention_heads
        decoder_num_attention_heads linear_num_value_heads linear_num_heads encoder_num_attention_heads
        index_n_heads num_decoder_attention_heads num_projection_layers_heads num_register_tokens
        num_encoder_attention_heads num_query_tokens swa_num_attention_heads
    """,
    2: """
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth num_decoder_layers
        num_encoder_layers num_experts_per_tok moe_topk num_experts_per_token moe_top_k topk
        decoder_num_hidden_layers encoder_num_hidden_layers num_mem_blocks linear_num_key_heads fusion_layers
        text_layers num_hidden_groups_layers speech_decoder_layers speech_encoder_layers text_encoder_layers
        t2u_encoder_layers t2u_decoder_layers depth_layers n_encoder_layers num_res_blocks
        memory_attention_num_layers memory_fuser_num_layers swa_num_key_value_heads decoder_num_layers
        num_text_layers first_layers
    """,
    1: """
        n_group topk_group n_shared_experts num_expert_group first_k_dense_replace num_dense_layers
    """,
    0: """
        num_nextn_predict_layers
    """,
    VOCABULARY: """
        vocab_size text_vocab_size entity_vocab_size codebook_size vocab_size_per_layer_input
        max_position_embeddings n_positions max_source_positions max_target_positions max_seq_len
    """,
}
SMALL = {name: value for value, names in _SAME.items() for name in names.split()}
_KEY_VALUE_HEADS = ("num_key_value_heads", "multi_query_group_num", "n_head_kv", "num_kv_heads")
_STAGES = (16, 32, 48, 64)
_STAGE_HEADS = (1, 2, 2, 4)
# Of fields with a number for each stage: the numbers, of which the last goes on.
_LISTS = {
    **dict.fromkeys(("depths", "num_block_repeats", "layer_depths", "depth"), (1,)),
    **dict.fromkeys(("hidden_sizes", "embed_dims", "neck_hidden_sizes", "embed_dim"), _STAGES),
    **dict.fromkeys(("num_heads", "num_attention_heads"), _STAGE_HEADS),
    **dict.fromkeys(("conv_dim", "tdnn_dim"), (32,)),
    "stem_channels": (3, 16),
}


def small_config(kind: Any, changes: Mapping[str, Any] | None = None) -> Any:
    """Return a small configuration.

    Parameters
    ----------
    kind : type
        A configuration class of transformers.
    changes : mapping, optional
        Fields that a rule gets wrong; ``text_config.depth`` names one of a part.

    Returns
    -------
    PreTrainedConfig
        With the eager attention that can be looked into left to the network's default.
    """
    fields = _small_fields(kind(), Tokens())
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        place = fields
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return kind(**copy.deepcopy(fields))


class Tokens:
    """Hand out numbers of the small vocabulary to the tokens that a family marks things with, from the top down."""

    def __init__(self) -> None:
        self._given: dict[int, int] = {}

    def __call__(self, old: int) -> int:
        """Return a number of the small vocabulary, the same for the same old number."""
        return self._given.setdefault(old, MARKS["image"] - 1 - len(self._given))


def _small_fields(config: Any, tokens: Tokens) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith("_") or name == "transformers_version" or isinstance(value, bool):
            continue
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            fields[name] = {"model_type": value.model_type, **_small_fields(value, tokens)}
            continue
        found = _small_token(name, value, tokens) if _is_token(name) else _small_value(name, value, config)
        if found is not None:
            fields[name] = found
    return fields


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index"))


def _small_token(name: str, value: Any, tokens: Tokens) -> Any:
    first, *rest = name.split("_")
    if first in MARKS and len(rest) == 2 and value is not None:
        return MARKS[first]
    if isinstance(value, list):
        return [tokens(each) if each >= VOCABULARY else each for each in value]
    return tokens(value) if isinstance(value, int) and value >= VOCABULARY else None


def _at(numbers: tuple[int, ...], i: int) -> int:
    return numbers[min(i, len(numbers) - 1)]


def _small_value(name: str, value: Any, config: Any) -> Any:
    """Return a small value of a field, or None where the default may stay."""
    if isinstance(value, dict):
        return {**value, "mrope_section": SECTIONS} if "mrope_section" in value else None
    if isinstance(value, (list, tuple)):
        return _small_list(name, value, config)
    if not isinstance(value, int):
        return None
    if name in _KEY_VALUE_HEADS:
        heads = getattr(config, "num_attention_heads", getattr(config, "n_head", value))
        return HEADS if value == heads else min(value, 2)
    if name == "image_size":
        return _side(config)
    if name == "patch_size":
        return min(PATCH, value)
    if name == "sliding_window":
        return SMALL[name]
    return min(value, SMALL[name]) if name in SMALL else None


def _small_list(name: str, value: Any, config: Any) -> Any:
    if name == "image_size":
        return type(value)([_side(config)] * len(value))
    if name not in _LISTS or any(isinstance(part, (list, tuple)) for part in value):
        return None
    return type(value)(_at(_LISTS[name], i) for i in range(len(value)))


def _side(config: Any) -> int:
    """Return the side of a picture: four by four patches, or enough for a network that halves it five times."""
    return IMAGE if getattr(config, "patch_size", None) is not None else 2 * IMAGE
