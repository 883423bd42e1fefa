"""T5 (Raffel et al. 2020): an encoder and a decoder with relative positions; from transformers.

A text is padded, on the right, with the id 0 and ends with the id 1. Inputs are ``input_ids`` and
``attention_mask``; the decoder reads the same text, shifted by one, except under the head
``language``, which is also given ``decoder_input_ids``.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ifap.study.models.base import MODELS, Head
from ifap.study.models.text import TINY

PAD, END = 0, 1


@MODELS.register("t5_base")
def t5_base(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = 12) -> nn.Module:
    """Return the untrained network of the published size: twice 12 layers of 12 heads; any length of text works."""
    return _network(
        head, num_labels, vocab_size=vocab_size, d_model=768, d_kv=64, d_ff=3072, num_layers=layers, num_heads=12
    )


@MODELS.register("t5_tiny")
def t5_tiny(head: Head, num_labels: int, vocab_size: int, max_length: int, layers: int = TINY["layers"]) -> nn.Module:
    """Return a small untrained network: twice two layers of four heads; any length of text works."""
    return _network(
        head,
        num_labels,
        vocab_size=vocab_size,
        d_model=TINY["width"],
        d_kv=TINY["width"] // TINY["heads"],
        d_ff=TINY["inner"],
        num_layers=layers,
        num_heads=TINY["heads"],
        dropout_rate=0.0,
    )


def _network(head: Head, num_labels: int, **sizes: Any) -> nn.Module:
    # transformers takes seconds to import, which listing the models should not.
    from transformers import T5Config, T5ForConditionalGeneration, T5ForQuestionAnswering

    others: dict[str, Any] = {"num_labels": 2 if head == "span" else num_labels, "decoder_start_token_id": PAD}
    config = T5Config(**sizes, **others, pad_token_id=PAD, eos_token_id=END, use_cache=head == "language")
    heads: dict[str, Any] = {
        "classification": _classifier,
        "span": lambda: T5ForQuestionAnswering,
        "language": lambda: T5ForConditionalGeneration,
    }
    return cast("nn.Module", heads[head]()(config))


@cache
def _classifier() -> Any:
    from transformers import T5ForSequenceClassification
    from transformers.modeling_outputs import Seq2SeqSequenceClassifierOutput

    base: Any = T5ForSequenceClassification

    class T5Classifier(base):  # type: ignore[misc]
        """T5ForSequenceClassification that finds the end of a text by its mask rather than by the id of the end.

        The same for texts that end with it, and also for others (a cut one, made-up inputs). Whatever
        the ids are, the forward is the same program, so that it can be traced and compiled.
        """

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            states = self.transformer(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=self._shift_right(input_ids),
                use_cache=False,
            ).last_hidden_state
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = (positions * (mask != 0)).argmax(dim=1)
            chosen = states[torch.arange(len(states), device=states.device), last]
            return Seq2SeqSequenceClassifierOutput(logits=self.classification_head(chosen))

    return T5Classifier
