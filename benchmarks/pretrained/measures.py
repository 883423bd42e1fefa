"""How much a pruned network still does what the original does; without labels, and with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrained.case import Measures
from benchmarks.pretrained.sentences import nearest_others
from ifap.forward import Inputs, call


def outputs_of(model: nn.Module, batches: Sequence[Inputs]) -> list[Tensor]:
    """Return what a network makes of each batch."""
    with torch.no_grad():
        return [call(model, batch) for batch in batches]


def divergence(original: Tensor, pruned: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of class probabilities, in nats: shape (samples,).

    Parameters
    ----------
    original, pruned : Tensor, shape (samples, classes)
        Logits.
    """
    wanted, found = original.float().log_softmax(dim=-1), pruned.float().log_softmax(dim=-1)
    return (wanted.exp() * (wanted - found)).sum(dim=-1)


def agreement(original: Tensor, pruned: Tensor) -> Tensor:
    """Return 1 where both have the same largest logit, else 0: shape (samples,)."""
    return (original.argmax(dim=-1) == pruned.argmax(dim=-1)).float()


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of a language model for each token but the first of each block: shape (tokens, words)."""
    with torch.no_grad():
        return model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)


def next_tokens(original: Iterable[Tensor], pruned: Iterable[Tensor], blocks: Sequence[Tensor]) -> Measures:
    """Return divergence, agreement and perplexity of a language model, over all tokens but the first of a block.

    Parameters
    ----------
    original, pruned : iterable of Tensor
        Logits of each batch; see `logits_of`.
    blocks : sequence of Tensor, shape (blocks, tokens)
        Batches of tokens.
    """
    sums, number = torch.zeros(3, dtype=torch.float64), 0
    for wanted, found, tokens in zip(original, pruned, blocks, strict=True):
        surprise = functional.cross_entropy(found.float(), tokens[:, 1:].flatten(), reduction="sum")
        sums += torch.stack([divergence(wanted, found).sum(), agreement(wanted, found).sum(), surprise]).double()
        number += len(found)
    kl, same, loss = (sums / number).tolist()
    return {"kl": kl, "agreement": same, "metric": math.exp(loss)}


def embeddings(wanted: Tensor, found: Tensor) -> Measures:
    """Compare embeddings of unit length with the original ones: shape (texts, width).

    Returns
    -------
    dict
        ``metric`` is the mean cosine to the original; ``agreement`` the share of texts whose nearest other text is
        still the same; ``rank`` Spearman's correlation of the cosines of all pairs, as in tests of similarity.
    """
    theirs, ours = wanted @ wanted.T, found @ found.T
    above = torch.triu_indices(len(wanted), len(wanted), offset=1).unbind()
    rank = spearmanr(theirs[above].numpy(), ours[above].numpy()).statistic
    same = nearest_others(theirs) == nearest_others(ours)
    cosine = (wanted * found).sum(dim=1)
    return {"metric": float(cosine.mean()), "agreement": float(same.float().mean()), "rank": float(rank)}


def relative_error(wanted: Tensor, found: Tensor) -> float:
    """Return the L2 norm of the difference over that of the original."""
    return float((wanted - found).norm() / wanted.norm().clamp_min(torch.finfo(wanted.dtype).tiny))
