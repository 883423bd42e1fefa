"""ShortGPT (Men et al. 2024): whole blocks go whose output is most like their input."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import ifap
from benchmarks.pretrained.case import Case
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.forward import call, private_copy


def influences(case: Case) -> list[float]:
    """Return for each block one minus the mean cosine of its input and output, over tokens."""
    blocks = list(case.model.get_submodule(case.blocks).children())
    totals, numbers = [0.0] * len(blocks), [0] * len(blocks)

    def adding(number: int) -> Any:
        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            cosine = functional.cosine_similarity(before, after, dim=-1)
            totals[number] += float(cosine.double().sum())
            numbers[number] += cosine.numel()

        return add

    with contextlib.ExitStack() as stack, torch.no_grad():
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(adding(number), with_kwargs=True).remove)
        for batch in case.calibration:
            call(case.model, batch)
    return [1 - total / number for total, number in zip(totals, numbers, strict=True)]


def without(case: Case, gone: list[int]) -> nn.Module:
    """Return a copy of the network without some blocks."""
    twin = private_copy(case.model)
    blocks: Any = twin.get_submodule(case.blocks)
    for number in sorted(gone, reverse=True):
        del blocks[number]
    return twin


def _way(case: Case, share: float, *, compensate: bool) -> nn.Module:
    """Remove the number of blocks whose MACs are nearest to the share."""
    scores = influences(case)
    order = sorted(range(len(scores)), key=lambda number: scores[number])
    whole = ifap.cost(case.model, case.example).macs
    one = whole - ifap.cost(without(case, order[:1]), case.example).macs
    count = min(max(1, round(share * whole / one)), len(scores) - 1)
    return without(case, order[:count])


RIVALS.register("shortgpt")(Rival(_way, "ShortGPT, whole blocks", ("transformer",), compensates=False))
