"""What the networks for text have in common."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ifap.data import read_tensors
from ifap.errors import ConfigError

log = logging.getLogger(__name__)

_PREFIXES = ("bert.", "transformer.", "model.")
_CORE = ("embeddings.", "encoder.", "decoder.", "shared.", "wte.", "wpe.", "h.", "ln_f.")
_TIED = "embed_tokens."

TINY = {"layers": 2, "heads": 4, "width": 64, "inner": 128}
"""The small networks of all three families: trained from nothing in seconds."""


def check_length(model: str, max_length: int, table: int) -> None:
    """Refuse texts that are longer than a network's table of positions.

    Raises
    ------
    ConfigError
        If the texts are longer; names the model and the longest that does.
    """
    if max_length > table:
        raise ConfigError(
            f"max_length: {max_length} tokens are too many for '{model}': its table of positions has {table}"
        )


def load_pretrained_text(model: nn.Module, path: str | Path) -> None:
    """Load the published weights of a network for text into an unpruned one, in place.

    Parameters
    ----------
    model : nn.Module
        The network. Heads that the file does not have keep the weights they have; the log counts them.
    path : str or Path
        A safetensors file of the transformers library, with any head or none.

    Raises
    ------
    ConfigError
        If the file cannot be read or does not fit; nothing is loaded then.
    """
    stored = {_bare(name): tensor for name, tensor in read_tensors(Path(path)).items()}
    chosen, kept = {}, []
    for name, wanted in model.state_dict().items():
        found = stored.get(_bare(name))
        if found is None and _bare(name).startswith(_CORE) and _TIED not in name:
            raise ConfigError(f"{path}: tensor '{_bare(name)}' of the network is missing: these are another network's")
        if found is not None and found.shape == wanted.shape:
            chosen[name] = found
        elif found is not None and _bare(name).startswith(_CORE):
            raise ConfigError(_misfit(path, _bare(name), list(found.shape), list(wanted.shape)))
        else:
            kept.append(name)
    if kept:
        log.info("%s: %d tensors keep their own weights, the first is '%s'", path, len(kept), kept[0])
    model.load_state_dict(chosen, strict=False)


def _bare(name: str) -> str:
    """Return a tensor's name as the network without any head calls it."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _misfit(path: str | Path, name: str, found: list[int], wanted: list[int]) -> str:
    if found[1:] == wanted[1:] and name in {"embeddings.word_embeddings.weight", "wte.weight", "shared.weight"}:
        return (
            f"{path} and the tokenizer do not belong together: {found[0]} words stored, {wanted[0]} in the vocabulary"
        )
    return f"{path}: tensor '{name}' has shape {found}, the network's has {wanted}"
