"""BERT (Devlin et al. 2019): an encoder that reads the whole text at once; from transformers.

A text is padded with the id 0. Inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ifap.study.models.base import MODELS, Head
from ifap.study.models.text import TINY, check_length

POSITIONS = 512
PAD = 0


@MODELS.register("bert_base")
def bert_base(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = 12) -> nn.Module:
    """Return the untrained network of the published size: 12 layers of 12 heads, 512 positions."""
    check_length("bert_base", max_length, POSITIONS)
    return _network(head, num_labels, vocab_size=vocab_size, num_hidden_layers=layers)


@MODELS.register("bert_minilm")
def bert_minilm(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = 6) -> nn.Module:
    """Return the untrained network in the size of MiniLM-L6 (Wang et al. 2020): six layers, 384 wide."""
    check_length("bert_minilm", max_length, POSITIONS)
    return _network(
        head,
        num_labels,
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        num_attention_heads=12,
        hidden_size=384,
        intermediate_size=1536,
    )


@MODELS.register("bert_tiny")
def bert_tiny(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = TINY["layers"]) -> nn.Module:
    """Return a small untrained network: two layers of four heads, as many positions as are asked for."""
    return _network(
        head,
        num_labels,
        vocab_size=vocab_size,
        max_position_embeddings=max_length,
        num_hidden_layers=layers,
        num_attention_heads=TINY["heads"],
        hidden_size=TINY["width"],
        intermediate_size=TINY["inner"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _network(head: Head, num_labels: int, **sizes: Any) -> nn.Module:
    # transformers takes seconds to import, which listing the models should not.
    from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification

    labels: dict[str, Any] = {"num_labels": 2 if head == "span" else num_labels}
    config = BertConfig(**sizes, **labels, pad_token_id=PAD, use_cache=False)
    heads = {
        "classification": BertForSequenceClassification,
        "span": BertForQuestionAnswering,
        "language": BertForMaskedLM,
    }
    return cast("nn.Module", heads[head](config))
