"""Encoders of sentences: their weights, what they read, and how alike embeddings are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


def load_weights(encoder: nn.Module, file: Path) -> None:
    """Load stored weights into an encoder without a pooler, in place."""
    stored = load_file(file)
    extra = {name for name in stored if name.startswith("pooler.") or name.endswith("position_ids")}
    encoder.load_state_dict({name: value for name, value in stored.items() if name not in extra})


def encoded(tokenize: Any, texts: list[str], size: int) -> list[dict[str, Tensor]]:
    """Return texts as batches of ids and masks, in their order."""
    found = []
    for start in range(0, len(texts), size):
        batch = tokenize.encode_batch(texts[start : start + size])
        ids = torch.tensor([each.ids for each in batch])
        mask = torch.tensor([each.attention_mask for each in batch])
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def mean_states(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the last states over the tokens of each text, of unit length: shape (texts, width)."""
    mask = mask.unsqueeze(-1).to(states.dtype)
    return functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def nearest_others(similarities: Tensor) -> Tensor:
    """Return the other text that is most like each: shape (texts,); writes over the diagonal of `similarities`."""
    return similarities.fill_diagonal_(-1).argmax(dim=1)
