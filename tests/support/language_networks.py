"""Small language models with random weights, and inputs for them."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

WORDS, LENGTH, WIDTH, HEADS, INNER, LAYERS, CLASSES = 24, 8, 16, 4, 24, 2, 3
PAD, END = 0, 8


def _bert_config(labels=CLASSES):
    return BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=LENGTH, num_labels=labels,
    )  # fmt: skip


def bert():
    torch.manual_seed(0)
    return _lively(BertForSequenceClassification(_bert_config()))


def bert_qa():
    torch.manual_seed(0)
    return _lively(BertForQuestionAnswering(_bert_config(2)))


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=INNER, n_positions=LENGTH,
        num_labels=CLASSES, pad_token_id=PAD, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    return _lively(GPT2ForSequenceClassification(config))


def t5(gated=False):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=INNER, num_layers=LAYERS, num_heads=HEADS,
        num_labels=CLASSES, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    return _lively(T5ForSequenceClassification(config))


def t5_gated():
    return t5(gated=True)


MODELS = {"bert": bert, "gpt2": gpt2, "t5": t5, "t5_gated": t5_gated}


def _lively(model):
    """Make the random weights large enough, and biases and norms uneven enough, that every part matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mbed" not in name and "norm" not in name.lower():
                parameter.add_(0.25 * torch.randn_like(parameter))
    return model.eval()


def tokens(samples=6, seed=0):
    """Return a batch: padded at the end, one end token each."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (samples,), generator=draw)
    lengths[0] = LENGTH
    ids = torch.randint(END + 1, WORDS, (samples, LENGTH), generator=draw)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids[torch.arange(samples), lengths - 1] = END
    return {"input_ids": ids * mask, "attention_mask": mask}


def labelled(batches=3, samples=6):
    """Return batches of inputs and classes."""
    draw = torch.Generator().manual_seed(9)
    return [(tokens(samples, seed), torch.randint(0, CLASSES, (samples,), generator=draw)) for seed in range(batches)]
