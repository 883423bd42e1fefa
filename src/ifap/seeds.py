"""Seeds: derived from what they are for, and set for a block alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(*parts: object) -> int:
    """Return a seed that depends on all `parts` and on nothing else, for example (seed, epoch)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, where: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and put them back afterwards."""
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
