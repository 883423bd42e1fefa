"""GPT-2 (Radford et al. 2019): a decoder that reads a text from left to right; from transformers.

A text is padded, on the right, with the last id of the vocabulary, which is also its end (as the
published one's ``<|endoftext|>``). Inputs are ``input_ids`` and ``attention_mask``. The class of a
text is read at its last token that is no padding.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ifap.study.models.base import MODELS, Head
from ifap.study.models.text import TINY, check_length

POSITIONS = 1024


@MODELS.register("gpt2_base")
def gpt2_base(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = 12) -> nn.Module:
    """Return the untrained network of the published size: 12 layers of 12 heads, 1024 positions."""
    check_length("gpt2_base", max_length, POSITIONS)
    return _network(head, num_labels, vocab_size=vocab_size, n_layer=layers)


@MODELS.register("gpt2_tiny")
def gpt2_tiny(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = TINY["layers"]) -> nn.Module:
    """Return a small untrained network: two layers of four heads, as many positions as are asked for."""
    return _network(
        head,
        num_labels,
        vocab_size=vocab_size,
        n_positions=max_length,
        n_layer=layers,
        n_head=TINY["heads"],
        n_embd=TINY["width"],
        n_inner=TINY["inner"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _network(head: Head, num_labels: int, *, vocab_size: int, **sizes: Any) -> nn.Module:
    # transformers takes seconds to import, which listing the models should not.
    from transformers import GPT2Config, GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2LMHeadModel

    labels: dict[str, Any] = {"num_labels": num_labels}
    last = vocab_size - 1
    config = GPT2Config(
        **sizes,
        **labels,
        vocab_size=vocab_size,
        pad_token_id=last,
        bos_token_id=last,
        eos_token_id=last,
        use_cache=head == "language",
    )
    heads = {
        "classification": GPT2ForSequenceClassification,
        "span": GPT2ForQuestionAnswering,
        "language": GPT2LMHeadModel,
    }
    return cast("nn.Module", heads[head](config))
