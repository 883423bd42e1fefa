"""What one whole prune step costs against Torch-Pruning's own pruner on the same network.

A step is graph, ranking and removal of a tenth of the channels by weight magnitude, from nothing:
no graph of an earlier step is used, and both sides score by the same data-free criterion.
"""

from __future__ import annotations

import copy
import warnings

import torch
import torch_pruning as tp
import torchvision
from torch import nn

from benchmarks.ratio import Ratio, compare, report, timed
from ifap.attention import split_attention
from ifap.costs import macs_by_module
from ifap.graph import trace
from ifap.methods import METHODS
from ifap.ranking import Budget, Ranking, floors, unit_scores

SHARE = 0.1
LIMIT = 1.5
NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_large", "convnext_tiny", "vit_b_16")


def our_step(model: nn.Module, inputs: torch.Tensor) -> None:
    """Trace, rank and cut a copy once, as `ifap.prune` does."""
    split_attention(model)
    graph = trace(model, inputs)
    scores = METHODS.get("magnitude")(model, [], normalize="layer", site="output", seed=0)
    limits = floors(graph, graph.units_per_group(), 1, 0.95)
    budget = Budget(graph, model, macs_by_module(model, inputs))
    ranking = Ranking(graph, unit_scores(graph, model, scores), limits, budget)
    removed = ranking.units(ranking.removed_per_group(round(SHARE * graph.num_units)))
    graph.apply(model, removed)
    graph.without(removed)


def their_step(model: nn.Module, inputs: torch.Tensor) -> None:
    """Construct Torch-Pruning's pruner and take one step."""
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    outputs = [list(model.modules())[-1]]
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=SHARE,
        iterative_steps=1,
        ignored_layers=outputs,
        num_heads=dict(heads),
        out_channel_groups=dict(heads),
        in_channel_groups={},
    )
    pruner.step()


def measure(name: str) -> Ratio:
    """Compare both on one torchvision network."""
    torch.manual_seed(0)
    original = getattr(torchvision.models, name)().eval()
    inputs = torch.randn(1, 3, 224, 224)

    def ours() -> float:
        model = copy.deepcopy(original)
        return timed(lambda: our_step(model, inputs))

    def theirs() -> float:
        model = copy.deepcopy(original)
        return timed(lambda: their_step(model, inputs))

    return compare(f"{name}, 224 px", ours, theirs, limit=LIMIT, runs=5)


def main() -> None:
    """Print and record the ratios."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [measure(name) for name in NETWORKS]
    report("surgery", "One prune step against Torch-Pruning's BasePruner (one thread)", "BasePruner", rows)


if __name__ == "__main__":
    main()
