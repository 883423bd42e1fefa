"""Passages of SQuAD as tokens for a language model and as sentences for encoders, divided by article."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.splits import articles

BLOCK = 128  # tokens that a language model reads at a time
BLOCKS = {"calibration": 128, "development": 16, "heldout": 32}
SENTENCES = {"calibration": 512, "development": 300, "heldout": 1000}
LONGEST = 64  # tokens of a sentence
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def passages(folder: Path, part: str) -> dict[str, list[str]]:
    """Return the passages of the articles of one part, by title."""
    read = json.loads(path_of("squad", "squad.json", folder).read_text("utf-8"))
    by_title = {each["title"]: [paragraph["context"] for paragraph in each["paragraphs"]] for each in read["data"]}
    return {title: by_title[title] for title in articles(sorted(by_title))[part]}


def blocks(folder: Path, part: str, tokenize: Any) -> Tensor:
    """Return blocks of tokens, each within one article, as many of each: shape (blocks, tokens)."""
    by_article = [
        torch.tensor([number for text in texts for number in tokenize.encode(text).ids])
        for texts in passages(folder, part).values()
    ]
    cut = [tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK) for tokens in by_article]
    wanted, turns = BLOCKS[part], max(map(len, cut))
    found = [rows[turn] for turn in range(turns) for rows in cut if turn < len(rows)]
    return torch.stack(found[:wanted])


def sentences(folder: Path, part: str) -> list[str]:
    """Return different sentences of 40 to 250 characters, in mixed order."""
    texts = [text for found in passages(folder, part).values() for text in found]
    split = [sentence.strip() for text in texts for sentence in _SENTENCE.split(text)]
    chosen = sorted({sentence for sentence in split if 40 <= len(sentence) <= 250})
    random.Random(0).shuffle(chosen)
    return chosen[: SENTENCES[part]]
