"""Attention heads as the paper scores them, found by what a forward does and not by the class that does it.

A trace notes the calls whose result, or whose first step, are attention probabilities with an axis of heads
(`ifap.axes.trace.Attention`). Here the probabilities of those calls are read while calibration data pass, and the score
of a head is given to all positions that its weights make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ifap.axes.calls import ATTENTION
from ifap.axes.running import Running
from ifap.axes.tensors import functorch
from ifap.axes.units import Graph, Indices
from ifap.scores.weights import all_weights

Reduce = Callable[[Tensor], Tensor]
Read = Callable[[int, Tensor], None]
AT_ONCE = 2**18
"""Attention probabilities that are made at once: so many stay in the cache of a processor."""


class HeadCalls(TorchFunctionMode):
    """Pass the attention probabilities of every recorded call to a function while it is open.

    ``reduce(probabilities)`` takes the probabilities of some samples, of shape (samples, units, queries, keys), and
    returns a tensor of shape (samples, ...). Heads of one unit stand below each other. ``read(number, reduced)`` takes
    the number of the call in ``graph.structure.attention`` and these tensors, joined over all samples.
    """

    def __init__(self, running: Running, graph: Graph, reduce: Reduce, read: Read) -> None:
        super().__init__()
        self._running, self._reduce, self._read = running, reduce, read
        self._order = [_order(units) for units in graph.heads]
        self._numbers: dict[tuple[str, str, int], int] = {
            call: number for number, call in enumerate(graph.structure.attention)
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ATTENTION:
            return func(*args, **kwargs)
        number = self._numbers.get((self._running.module, name, self._running.count(name)))
        if number is None:
            return func(*args, **kwargs)
        kept: list[Tensor] = []

        def see(found: Tensor) -> None:
            with torch._C.DisableTorchFunction():  # what is done here is no call of the network's
                units = self._by_unit(number, found)
                if units is not None:
                    kept.append(self._reduce(units))

        if name == "softmax":
            output = func(*args, **kwargs)
            see(output)
        else:  # torch's fused attention does not return them, and would compute them once more
            output = attended(see, *args, **kwargs)
        if kept:
            with torch._C.DisableTorchFunction():
                self._read(number, torch.cat(kept))
        return output

    def _by_unit(self, number: int, found: Tensor) -> Tensor | None:
        """Return probabilities as (samples, units, queries, keys), or None where their heads are no units."""
        order = self._order[number]
        if order is None or found.shape[-3] != order.numel():
            return None
        found = found.reshape(-1, *found.shape[-3:])
        if order.shape[1] == 1:
            return found
        return found[:, order.reshape(-1)].unflatten(1, order.shape).flatten(2, 3)


def attended(
    see: Callable[[Tensor], None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Compute torch's fused attention for some samples at a time; `see` gets the probabilities of each part."""
    samples, count = len(query), len(query)
    if query.dim() > 3 and len(key) == len(value) == samples:
        count = max(1, AT_ONCE // max(1, math.prod(query.shape[1:-1]) * key.shape[-2]))
    of_samples = attn_mask is not None and attn_mask.dim() == query.dim() and len(attn_mask) == samples
    whole: Tensor | None = None
    for first in range(0, max(samples, 1), max(count, 1)):
        part = slice(first, first + count)
        mask = attn_mask[part] if attn_mask is not None and of_samples else attn_mask
        found = probabilities(query[part], key[part], value[part], mask, *args, **kwargs)
        see(found)
        values = value[part]
        if kwargs.get("enable_gqa", False):
            values = values.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
        place = whole[part] if whole is not None and _may_write(found) else None
        output: Tensor = torch.matmul(found, values, out=place)
        if count >= samples:
            return output
        if place is None:
            whole = output.new_empty(samples, *output.shape[1:]) if whole is None else whole
            whole[part] = output
    assert whole is not None
    return whole


def _may_write(x: Tensor) -> bool:
    """Whether an operation may write into a tensor: nothing learns, is mapped or changes its type."""
    return x.dtype == torch.float32 and not torch.is_grad_enabled() and not functorch.is_functorch_wrapped_tensor(x)


def _order(units: Indices) -> Any:
    """Return the heads of each unit, shape (units, heads); None where units have different numbers of heads."""
    first, counts = np.unique(units, return_counts=True)
    if len(units) == 0 or first[0] < 0 or len(set(counts.tolist())) > 1:
        return None
    by_first = {unit: index for index, unit in enumerate(dict.fromkeys(units.tolist()))}
    order = np.argsort([by_first[unit] for unit in units.tolist()], kind="stable")
    return torch.from_numpy(order.reshape(len(first), -1))


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention probabilities of a call of torch's fused attention, which does not return them."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), float("-inf"))
    if attn_mask is None:
        return _softmax(logits)
    hidden = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == float("-inf")
    logits = logits.masked_fill(hidden, float("-inf")) if attn_mask.dtype == torch.bool else logits + attn_mask
    # A query that sees no key attends to nothing.
    return _softmax(logits).masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax over keys, in the memory of the logits: a cache then holds what is read next."""
    return torch.softmax(logits, dim=-1, out=logits) if _may_write(logits) else logits.softmax(dim=-1)


def head_weights(model: nn.Module, graph: Graph) -> list[Tensor]:
    """Return the summed norms of the query, key and value weights of the units of each noted call.

    Positions of a unit that lie side by side in a weight count as one matrix: ||W_Q,h|| + ||W_K,h|| + ||W_V,h||,
    whether queries, keys and values have a layer each or share one. Heads of several calls that leave together share
    what their weights amount to.
    """
    members = [list(dict.fromkeys(units[units >= 0].tolist())) for units in graph.heads]
    totals = _summed_norms(model, graph, {unit for units in members for unit in units})
    calls: dict[int, int] = {}
    for units in members:
        for unit in units:
            calls[unit] = calls.get(unit, 0) + 1
    return [torch.tensor([totals.get(unit, 0.0) / calls[unit] for unit in units]) for units in members]


def _summed_norms(model: nn.Module, graph: Graph, wanted: set[int]) -> dict[int, float]:
    totals: dict[int, float] = {}
    if not wanted:
        return totals
    rows_of = all_weights(model, graph)
    for slot, name in graph.weight_slots():
        units = graph.unit_of[slot]
        rows = rows_of.get(name)
        if rows is None or not wanted.intersection(units.tolist()):
            continue
        squares = torch.linalg.vector_norm(rows.float(), dim=1).square().cpu().numpy()
        starts = np.flatnonzero(np.diff(units, prepend=-2))
        for start, norm in zip(starts, np.sqrt(np.add.reduceat(squares, starts)), strict=True):
            unit = int(units[start])
            totals[unit] = totals.get(unit, 0.0) + float(norm)
    return totals


def replace_heads(graph: Graph, scores: dict[str, Tensor], heads: list[Tensor]) -> dict[str, Tensor]:
    """Give the positions of heads the scores of the heads, wherever a weight makes them.

    `scores` are changed in place and returned. `heads` holds for each noted call the score of each of its units, in
    their order.
    """
    values, counts = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for units, found in zip(graph.heads, heads, strict=True):
        members = list(dict.fromkeys(units[units >= 0].tolist()))
        if len(found) == len(members):
            values[members] += found.detach().double().cpu().numpy()
            counts[members] += 1
    if not counts.any():
        return scores
    values = values / np.maximum(counts, 1)
    for slot, name in graph.weight_slots():
        units = graph.unit_of[slot]
        is_head = (units >= 0) & (counts[units] > 0)
        if not is_head.any():
            continue
        old = scores.get(name)
        new = torch.zeros(len(units)) if old is None else old.detach().float().cpu().clone()
        new[torch.from_numpy(is_head)] = torch.from_numpy(values[units[is_head]]).float()
        scores[name] = new if old is None else new.to(old.device)
    return scores
