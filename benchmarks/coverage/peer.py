"""What Torch-Pruning does with the same network, used as its own examples use it.

Those prune by group magnitude over the whole network, leave the last layer alone, say how many heads a query, key and
value have so that all heads become thinner alike, step until the cost is down, and write the new widths into attention
modules of timm and transformers.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.check import flat, forward, said
from benchmarks.coverage.measure import TARGET, Note
from benchmarks.coverage.registry import Network

STEPS = 40
LARGEST = 0.98  # share of the units of a layer that may go
_QUERIES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
_HEADS = ("num_attention_heads", "num_heads", "heads", "n_heads")
_WIDTHS = ("all_head_size", "inner_dim", "embed_dim")


def measure(network: Network, folder: Path, note: Note) -> None:
    """Prune a network by half of its MACs with Torch-Pruning and note what came of it."""
    import torch_pruning as tp

    import ifap

    warnings.simplefilter("ignore")
    model, inputs = network.build(), network.inputs()
    shapes = [tuple(tensor.shape) for tensor in forward(model, inputs)]
    whole = ifap.cost(model, inputs).macs
    heads, last = _heads(model), _last(model)
    start = time.perf_counter()
    try:
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=LARGEST,
            iterative_steps=STEPS,
            ignored_layers=last,
            num_heads=heads,
            output_transform=_sum,
        )
        achieved = 0.0
        for _ in range(STEPS):
            pruner.step()
            _refresh(model, pruner.num_heads)
            achieved = 1 - ifap.cost(model, inputs).macs / whole
            if achieved >= TARGET:
                break
        changed = [tuple(tensor.shape) for tensor in forward(model, inputs)]
    except Exception as error:
        note({"peer_state": "traceback", "peer_reason": said(error), "peer_seconds": _since(start)})
        return
    state = "reached" if achieved >= TARGET else "partly"
    if changed != shapes:
        state, reason = "wrong", f"outputs {shapes} became {changed}"
    else:
        reason = ""
    note({"peer_state": state, "peer_achieved": round(achieved, 4), "peer_reason": reason})
    note({"peer_seconds": _since(start)})


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def _sum(outputs: Any) -> torch.Tensor:
    return torch.stack([tensor.float().sum() for tensor in flat(outputs) if tensor.requires_grad]).sum()


def _last(model: nn.Module) -> list[nn.Module]:
    """Return the classifier, the layer that examples leave alone: the last one with weights."""
    layers: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    named = [getattr(model, name, None) for name in ("head", "fc", "classifier", "lm_head")]
    found = [module for module in named if isinstance(module, nn.Module)]
    return found or layers[-1:]


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the layers that make queries, keys and values with their number of heads."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        count = next((getattr(module, name) for name in _HEADS if isinstance(getattr(module, name, None), int)), None)
        if count is None:
            continue
        fused = getattr(module, "qkv", None)
        if isinstance(fused, nn.Linear):
            found[fused] = count
        for names in _QUERIES:
            parts = [getattr(module, name, None) for name in names]
            if all(isinstance(part, nn.Linear) for part in parts):
                found.update({part: count for part in parts if part is not None})
    return found


def _refresh(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Write the new numbers of heads and widths into attention modules, as the examples do after pruning."""
    for module in model.modules():
        made = next((part for part in module.children() if part in heads and isinstance(part, nn.Linear)), None)
        if made is None:
            continue
        fused = made is getattr(module, "qkv", None)
        width, count = made.out_features // (3 if fused else 1), heads[made]
        for name in _HEADS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, count)
        for name in ("head_dim", "attention_head_size"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, width // count)
        for name in _WIDTHS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, width)
