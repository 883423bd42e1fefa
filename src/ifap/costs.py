"""One counter of multiply-accumulates and parameters, the same before and after pruning.

A multiply-accumulate (MAC) is one multiplication and one addition inside a convolution, a linear
layer or an attention product (query-key and probability-value). Norms, activations, biases and
poolings are not counted. The paper prints MACs as "GFlops".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ifap.tracing import (
    Inputs,
    call,
    dense_outputs,
    evaluation_mode,
    is_trouble,
    meta_copy,
    meta_forward,
    plain_attention,
    skip_values,
    task_tensors,
    to_device,
)


@dataclass(frozen=True)
class Cost:
    """What one forward costs.

    Parameters
    ----------
    macs : int
        Multiply-accumulates of one forward over the example inputs (whole batch).
    params : int
        Elements of all parameters, a shared one counted once.
    """

    macs: int
    params: int

    def reduction(self, base: Cost, kind: str) -> float:
        """Return the share of `base` that is gone, in [0, 1]; `kind` is ``macs`` or ``params``."""
        whole = getattr(base, kind)
        return 1.0 - getattr(self, kind) / whole if whole else 0.0


def cost(model: nn.Module, example_inputs: Inputs) -> Cost:
    """Count the MACs of one forward and the parameters of `model`.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not run and not changed (a copy without data is).
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward. Only shapes and types matter.

    Returns
    -------
    Cost
        MACs of the whole batch, and parameters.
    """
    return Cost(macs=sum(macs_by_module(model, example_inputs).values()), params=count_params(model))


def count_params(model: nn.Module) -> int:
    """Return the number of elements of all parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs_by_module(model: nn.Module, example_inputs: Inputs) -> dict[str, int]:
    """Count the MACs that each module does itself, its children left out.

    Parameters
    ----------
    model : nn.Module
        Any network; a copy without data is run.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.

    Returns
    -------
    dict of str to int
        Qualified module name (``""`` for the network itself) to MACs; modules without any are left out.
    """
    return probe(model, example_inputs).macs


def nonzero_macs(model: nn.Module, example_inputs: Inputs) -> int:
    """Count the MACs that are left if products with a weight of zero are not done.

    Theoretical: dense kernels do them all the same. Attention products count in full.
    """
    modules = dict(model.named_modules())
    return round(sum(macs * _density(modules[name]) for name, macs in macs_by_module(model, example_inputs).items()))


def _density(module: nn.Module) -> float:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() < 2:
        return 1.0
    return int(weight.count_nonzero()) / weight.numel()


@dataclass(frozen=True)
class Probe:
    """What one forward without data shows.

    Parameters
    ----------
    macs : dict of str to int
        See `macs_by_module`.
    output_shapes : list of tuple of int
        Shape of every tensor that the network returns; of a language model, of those that a task reads.
    """

    macs: dict[str, int]
    output_shapes: list[tuple[int, ...]]


def probe(model: nn.Module, example_inputs: Inputs) -> Probe:
    """Run a copy of `model` once, without data where that is possible, and count."""
    counter = FlopCounterMode(display=False)
    try:
        # The counter hooks what requires gradients, and a view of a parameter, such as queries, has nowhere to hook.
        twin = skip_values(meta_copy(model)).requires_grad_(False)
        inputs = to_device(example_inputs, torch.device("meta"))
        with torch.no_grad(), dense_outputs(twin), meta_forward(), counter:
            outputs = call(twin, inputs)
    except (RuntimeError, NotImplementedError) as error:
        if is_trouble(error):
            raise
        # The forward looks at values, which data-free tensors do not have: run a real copy.
        counter = FlopCounterMode(display=False)
        twin = copy.deepcopy(model).requires_grad_(False)
        with evaluation_mode(twin), torch.no_grad(), dense_outputs(twin), plain_attention(), counter:
            outputs = call(twin, example_inputs)
    return Probe(_own_macs(twin, counter), [tuple(tensor.shape) for tensor in task_tensors(outputs)])


def _own_macs(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    root = type(model).__name__
    totals = {
        name.removeprefix(root).removeprefix("."): sum(by_op.values()) // 2
        for name, by_op in counter.get_flop_counts().items()
        if name == root or name.startswith(root + ".")
    }
    own = dict(totals)
    for name in totals:
        if name:
            parent = name.rpartition(".")[0]
            while parent and parent not in own:
                # containers that are never called themselves (ModuleList) have no count of their own
                parent = parent.rpartition(".")[0]
            own[parent] = own.get(parent, 0) - totals[name]
    return {name: macs for name, macs in own.items() if macs > 0}
