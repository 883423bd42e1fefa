"""Torch-Pruning's pruners, run as their examples do; the order in which they remove units becomes a score.

Each removes a little of the network in each of many steps, over all layers. What goes in a step is noted, so that the
library then cuts in the same order and ends at the same MACs as every other method, and our compensation can follow.
Layers whose outputs must stay are left alone, as by the library. Transformers are left out: asked for whole heads of
all layers together, version 1.6.1 ends with an UnboundLocalError.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ifap
from benchmarks.pretrained.cutting import by_score
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.axes.units import Floats, Graph
from ifap.cli.samples import first_sample
from ifap.forward import Inputs, call, evaluation_mode
from ifap.layers import is_conv, modules_by_name
from ifap.methods import AnyMethod
from ifap.methods.base import Loss
from ifap.methods.units import spread

STEPS, LARGEST, ENOUGH = 400, 0.95, 0.5  # of how many steps; share of a width, and of the MACs, that may go


def order(model: nn.Module, inputs: Inputs, graph: Graph, importance: Any, pruner: Any, **options: Any) -> Floats:
    """Return for each unit the step in which a pruner removes it, and a later one for what stays.

    Parameters
    ----------
    model : nn.Module
        The network, with gradients where the importance needs them; it is changed.
    inputs : object
        Of one forward.
    graph : Graph
        Its units.
    importance : object
        Torch-Pruning's.
    pruner : type
        Torch-Pruning's.
    **options
        More for the pruner.
    """
    names = {module: name for name, module in modules_by_name(model).items()}
    found: Any = pruner(
        model,
        inputs,
        importance=importance,
        global_pruning=True,
        pruning_ratio=LARGEST,
        max_pruning_ratio=LARGEST,
        iterative_steps=STEPS,
        ignored_layers=_staying(model, graph),
        **options,
    )
    steps = np.full(graph.num_units, float(STEPS + 1))
    left: dict[str, np.ndarray[Any, Any]] = {}
    whole = ifap.cost(model, inputs).macs
    for step in range(STEPS):
        for group in found.step(interactive=True):
            _note(group, names, graph, left, steps, step)
            group.prune()
        if step % 8 == 7 and ifap.cost(model, inputs).macs < (1 - ENOUGH) * whole:
            break
    return steps


def _staying(model: nn.Module, graph: Graph) -> list[nn.Module]:
    """Return the layers of whose outputs no unit can go."""
    modules = modules_by_name(model)
    slots = {name: graph.slot(name, "out") for name, module in modules.items() if _makes(module)}
    return [modules[name] for name, slot in slots.items() if slot is None or not (graph.unit_of[slot] >= 0).any()]


def _makes(module: nn.Module) -> bool:
    return is_conv(module) or isinstance(module, nn.Linear)


def _note(
    group: Any,
    names: dict[nn.Module, str],
    graph: Graph,
    left: dict[str, np.ndarray[Any, Any]],
    steps: Floats,
    step: int,
) -> None:
    """Write down the units of every layer whose outputs a group of Torch-Pruning removes."""
    for dependency, positions in group:
        module = dependency.target.module
        name = names.get(module)
        if name is None or not _makes(module) or "out_channels" not in dependency.handler.__name__:
            continue
        slot = graph.slot(name, "out")
        if slot is None:
            continue
        present = left.setdefault(name, np.arange(len(graph.unit_of[slot])))
        units = graph.unit_of[slot][present[positions]]
        steps[units[units >= 0]] = np.minimum(steps[units[units >= 0]], step)
        left[name] = np.delete(present, positions)


def _differentiate(model: nn.Module, labelled: Iterable[tuple[Inputs, Tensor]], loss: Loss) -> None:
    model.requires_grad_(True)
    for inputs, targets in labelled:
        with evaluation_mode(model), torch.enable_grad():
            loss(call(model, inputs), targets).backward()


def _method(kind: str, *, isomorphic: bool = False) -> AnyMethod:
    def method(
        model: nn.Module,
        batches: Iterable[Any],
        *,
        normalize: str,
        site: str,
        seed: int,
        graph: Graph,
        labelled: Iterable[tuple[Any, Tensor]],
        loss: Loss,
    ) -> dict[str, Tensor]:
        import torch_pruning as tp

        warnings.simplefilter("ignore")
        twin = copy.deepcopy(model)
        if kind == "taylor":
            _differentiate(twin, labelled, loss)
        importance = {
            "magnitude": tp.importance.GroupMagnitudeImportance,
            "taylor": tp.importance.GroupTaylorImportance,
            "bn_scale": tp.importance.BNScaleImportance,
        }[kind]()
        pruner = tp.pruner.BNScalePruner if kind == "bn_scale" else tp.pruner.BasePruner
        inputs = first_sample(next(iter(batches)))
        return spread(graph, order(twin, inputs, graph, importance, pruner, isomorphic=isomorphic), pinned=1.0)

    return method


for _name, _kind, _isomorphic, _title in (
    ("tp_group_magnitude", "magnitude", False, "Torch-Pruning, GroupMagnitude"),
    ("tp_group_taylor", "taylor", False, "Torch-Pruning, GroupTaylor"),
    ("tp_bn_scale", "bn_scale", False, "Torch-Pruning, BNScale"),
    ("tp_isomorphic", "taylor", True, "Torch-Pruning, isomorphic GroupTaylor"),
):
    _scores = _method(_kind, isomorphic=_isomorphic)
    RIVALS.register(_name)(Rival(by_score(_scores), _title, ("convolutional",)))
