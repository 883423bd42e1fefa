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
    return torch.stack([block for rows in blocks_by_article(folder, part, tokenize) for block in rows])


def blocks_by_article(folder: Path, part: str, tokenize: Any) -> list[list[Tensor]]:
    """Return the blocks of each article."""
    by_article = [
        torch.tensor([number for text in texts for number in tokenize.encode(text).ids])
        for texts in passages(folder, part).values()
    ]
    cut = [tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK) for tokens in by_article]
    turns = [number for turn in range(max(map(len, cut))) for number, rows in enumerate(cut) if turn < len(rows)]
    return [list(rows[: turns[: BLOCKS[part]].count(number)]) for number, rows in enumerate(cut)]


def sentences(folder: Path, part: str) -> list[list[str]]:
    """Return different sentences of 40 to 250 characters, drawn at random, by article."""
    title_of = {
        sentence.strip(): title
        for title, texts in passages(folder, part).items()
        for text in texts
        for sentence in _SENTENCE.split(text)
    }
    chosen = sorted(sentence for sentence in title_of if 40 <= len(sentence) <= 250)
    random.Random(0).shuffle(chosen)
    found: dict[str, list[str]] = {}
    for sentence in chosen[: SENTENCES[part]]:
        found.setdefault(title_of[sentence], []).append(sentence)
    return list(found.values())
