"""What an iteration of removing channels costs against Torch-Pruning on the same network, without scoring by data.

An iteration is trace, ranking and removal of a tenth of the units by weight magnitude, a criterion that both sides
have; ours then checks the cut network as `ifap.prune` does. The proof, which `ifap.prune` makes once at the end, is no
part of it. Three comparisons: the first iteration from nothing (a pruner constructed and its first step); a further
iteration, for which both sides keep their graph; and one iteration over all layers against building a dependency graph
for each layer that is cut, as the public code release of the method does. A peer that takes more than a minute is
stopped: its row then says so, and the minute stands for its time.
"""

from __future__ import annotations

import copy
import gc
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning as tp
import torchvision
from torch import nn

from benchmarks import tracing
from benchmarks.ratio import Ratio, compare, report, timed
from ifap.axes.attention import adopt
from ifap.axes.cut import cut_units
from ifap.axes.units import Graph, Indices
from ifap.checks import Checks
from ifap.methods import METHODS
from ifap.methods.base import score
from ifap.ranking import Budget, Ranking, floors, unit_scores
from ifap.view import trace

SHARE = 0.1
RUNS = 9
LIMIT, LIMIT_BY_LAYER = 0.5, 0.02
PATIENCE = 60.0  # seconds of the processor that the peer has for one step
NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_large", "convnext_tiny", "vit_b_16", "swin_t")


@dataclass
class State:
    """What `ifap.prune` keeps between two iterations."""

    model: nn.Module
    inputs: torch.Tensor
    graph: Graph
    checks: Checks


def begin(model: nn.Module, inputs: torch.Tensor) -> State:
    """Trace, as `ifap.prune` does once."""
    adopt(model)
    return State(model, inputs, trace(model, inputs), Checks(inputs))


def cut(state: State) -> None:
    """Rank the units that are left, remove the lowest and check what is left."""
    state.graph, _ = cut_units(state.model, state.graph, lowest(state))
    check(state)


def lowest(state: State) -> Indices:
    """Return the units that go."""
    graph = state.graph
    scores = score(METHODS.get("magnitude"), state.model, [], normalize="layer", site="output", seed=0, graph=graph)
    limits = floors(graph, graph.units_per_group(), 1, 0.95)
    ranking = Ranking(graph, unit_scores(graph, scores), limits, Budget(graph))
    return ranking.units(ranking.removed_per_group(round(SHARE * graph.num_units)))


def check(state: State) -> None:
    """Run the cut network on its example, as `ifap.prune` does."""
    state.checks.check(state.model, state.graph)


def our_step(model: nn.Module, inputs: torch.Tensor) -> None:
    """Trace, rank and cut a copy once, as `ifap.prune` does."""
    cut(begin(model, inputs))


def their_pruner(model: nn.Module, inputs: torch.Tensor, steps: int = 1) -> tp.pruner.BasePruner:
    """Construct Torch-Pruning's pruner, which is to remove a tenth in each step."""
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1 - (1 - SHARE) ** steps,
        iterative_steps=steps,
        ignored_layers=[list(model.modules())[-1]],
        num_heads=dict(heads),
        out_channel_groups=dict(heads),
        in_channel_groups={},
    )


def their_step(model: nn.Module, inputs: torch.Tensor) -> None:
    """Construct Torch-Pruning's pruner and take one step."""
    their_pruner(model, inputs).step()


def graph_for_each_layer(model: nn.Module, inputs: torch.Tensor) -> None:
    """Cut every convolution by a tenth, each through a dependency graph built for it."""
    for layer in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
        lowest = layer.weight.detach().flatten(1).norm(dim=1).argsort()[: round(SHARE * layer.out_channels)]
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=np.sort(lowest.numpy()).tolist())
        if graph.check_pruning_group(group):
            group.prune()


def iterations(name: str) -> list[Ratio]:
    """Compare the first iteration of both on one torchvision network, and a further one if the peer gets that far."""
    original, inputs = network(name)

    def ours() -> float:
        return on_a_copy(original, lambda model: lambda: our_step(model, inputs))

    def theirs() -> float:
        return on_a_copy(original, lambda model: lambda: their_step(model, inputs))

    if not ends(theirs):
        quantity = f"{name}, first iteration, peer stopped after {PATIENCE:g} s"
        return [Ratio.of_pairs(quantity, [(ours(), PATIENCE) for _ in range(4)][1:], limit=LIMIT)]
    return [compare(f"{name}, first iteration", ours, theirs, limit=LIMIT, runs=RUNS), further_iteration(name)]


def ends(function: Callable[[], object]) -> bool:
    """Run a function; return False if it is stopped because it takes too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        function()
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return True


def further_iteration(name: str) -> Ratio:
    """Compare the second step of both."""
    original, inputs = network(name)

    def ours(model: nn.Module) -> Callable[[], object]:
        state = begin(model, inputs)
        cut(state)
        return lambda: cut(state)

    def theirs(model: nn.Module) -> Callable[[], object]:
        pruner = their_pruner(model, inputs, steps=2)
        pruner.step()
        return pruner.step

    return compare(
        f"{name}, further iteration",
        lambda: on_a_copy(original, ours),
        lambda: on_a_copy(original, theirs),
        limit=LIMIT,
        runs=RUNS,
    )


def by_layer(name: str) -> Ratio:
    """Compare one iteration over all layers with a graph for each layer."""
    original, inputs = network(name)
    return compare(
        f"{name}, against a graph for each layer",
        lambda: on_a_copy(original, lambda model: lambda: our_step(model, inputs)),
        lambda: on_a_copy(original, lambda model: lambda: graph_for_each_layer(model, inputs)),
        limit=LIMIT_BY_LAYER,
        runs=1,
    )


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a torchvision network with random weights and one image."""
    torch.manual_seed(0)
    return getattr(torchvision.models, name)().eval(), torch.randn(1, 3, 224, 224)


def on_a_copy(original: nn.Module, prepare: Callable[[nn.Module], Callable[[], object]]) -> float:
    """Time what `prepare` makes of a copy of a network; neither the copy nor the preparation counts."""
    step = prepare(copy.deepcopy(original))
    gc.collect()  # else what the one side leaves behind is cleared away in the time of the other
    return timed(step)


def main() -> None:
    """Print and record the ratios."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [row for name in NETWORKS for row in iterations(name)]
    rows.append(by_layer("resnet50"))
    rows += tracing.rows()
    title = "Removing a tenth of the units against Torch-Pruning, and reading large networks (one thread)"
    report("surgery", title, "peer or allowed", rows)


if __name__ == "__main__":
    main()
