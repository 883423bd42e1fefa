"""Sentence encoders: MiniLM (six layers of BERT) and MPNet (twelve, of BERT base's size)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrained import texts
from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.case import Case, Measures
from benchmarks.pretrained.measures import embeddings
from benchmarks.pretrained.sentences import encoded, load_weights, mean_states
from benchmarks.pretrained.splits import Split

BATCH = 32


class SentenceEncoder(nn.Module):
    """An encoder with what its users make of it: the mean over tokens, of unit length.

    Parameters
    ----------
    encoder : nn.Module
        Returns ``last_hidden_state``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one embedding a text: shape (texts, width)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_states(states, attention_mask)


def minilm(folder: Path, split: Split) -> list[Case]:
    """Return the case of MiniLM."""
    from transformers import BertConfig, BertModel

    return _case("minilm", folder, split, lambda file: BertModel(BertConfig.from_json_file(file), False))


def mpnet(folder: Path, split: Split) -> list[Case]:
    """Return the case of MPNet."""
    from transformers import MPNetConfig, MPNetModel

    return _case("mpnet", folder, split, lambda file: MPNetModel(MPNetConfig.from_json_file(file), False))


def _case(key: str, folder: Path, split: Split, build: Callable[[Path], nn.Module]) -> list[Case]:
    from tokenizers import Tokenizer

    encoder = build(path_of(key, "config.json", folder))
    load_weights(encoder, path_of(key, "model.safetensors", folder))
    model = SentenceEncoder(encoder.float()).eval()
    tokenize = Tokenizer.from_file(str(path_of(key, "tokenizer.json", folder)))
    calibration = batches(tokenize, texts.sentences(folder, "calibration"))
    tested = batches(tokenize, texts.sentences(folder, split))
    wanted = _embed(model, tested)

    def measure(pruned: nn.Module) -> Measures:
        return embeddings(wanted, _embed(pruned, tested))

    # One text of full length, so that MACs are those of the longest.
    example = {name: torch.ones(1, texts.LONGEST, dtype=torch.int64) for name in calibration[0]}
    return [
        Case(
            model,
            example,
            calibration,
            _signs,
            _loss,
            measure,
            {"keep_embeddings": True},
            blocks="encoder.encoder.layer",
        )
    ]


def batches(tokenize: Any, sentences: list[str]) -> list[dict[str, Tensor]]:
    """Return texts as batches of ids and masks, those of like length together."""
    tokenize.enable_truncation(texts.LONGEST)
    tokenize.enable_padding()
    return encoded(tokenize, sorted(sentences, key=len), BATCH)


def _embed(model: nn.Module, texts_: list[dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in texts_])


def _signs(batch: dict[str, Tensor]) -> Tensor:
    """Return a seed for the random projections of a batch, which takes its first ids."""
    return batch["input_ids"].sum(dim=1)


def _loss(outputs: Tensor, seeds: Tensor) -> Tensor:
    """Return a random projection of the embeddings: an encoder has no loss of its own without labels."""
    generator = torch.Generator().manual_seed(int(seeds.sum()))
    return (outputs * torch.randn(outputs.shape, generator=generator)).sum() / len(outputs)
