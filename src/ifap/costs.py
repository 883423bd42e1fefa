"""One counter of multiply-accumulates and parameters, the same before and after pruning.

A multiply-accumulate (MAC) is one multiplication and one addition inside a convolution, a linear
layer or an attention product (query-key and probability-value). Norms, activations, biases and
poolings are not counted. The paper prints MACs as "GFlops".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import flop_registry

from ifap.layers import has_plain_forward, modules_by_name
from ifap.tracing import (
    Inputs,
    ShapesAlone,
    call,
    dense_outputs,
    evaluation_mode,
    is_trouble,
    meta_forward,
    plain_attention,
    shape_copy,
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
    latency : float, optional
        Predicted milliseconds of one forward, where the target is a latency; see `ifap.latency.LatencyModel`.
    """

    macs: int
    params: int
    latency: float | None = field(default=None, repr=False, compare=False)

    def reduction(self, base: Cost, kind: str) -> float:
        """Return the share of `base` that is gone, in [0, 1]; `kind` is the name of a cost."""
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
    held = {parameter for module in modules_by_name(model).values() for parameter in module._parameters.values()}
    return sum(parameter.numel() for parameter in held if parameter is not None)


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
    modules = modules_by_name(model)
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


def probe(model: nn.Module, example_inputs: Inputs, twin: nn.Module | None = None) -> Probe:
    """Run a copy of `model` once, without data where that is possible, and count.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not changed.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.
    twin : nn.Module, optional
        What `ifap.tracing.shape_copy` made of `model`, if there is one.

    Returns
    -------
    Probe
        MACs of each module and shapes of the outputs.
    """
    layers = {name for name, module in modules_by_name(model).items() if has_plain_forward(module)}
    try:
        twin, inputs = twin or shape_copy(model), to_device(example_inputs, torch.device("meta"))
        counter = _Counter(twin, layers)
        with torch.no_grad(), dense_outputs(twin), meta_forward(), counter.counting():
            outputs = call(twin, inputs)
    except (RuntimeError, NotImplementedError) as error:
        if is_trouble(error):
            raise
        # The forward looks at values, which data-free tensors do not have: run a real copy.
        twin = copy.deepcopy(model)
        counter = _Counter(twin, layers)
        with evaluation_mode(twin), torch.no_grad(), dense_outputs(twin), plain_attention(), counter.counting():
            outputs = call(twin, example_inputs)
    return Probe(counter.macs, [tuple(tensor.shape) for tensor in task_tensors(outputs)])


class _Counter(ShapesAlone):
    """Count the MACs of each module itself while it is open, with torch's formulas for every product.

    Torch's ``FlopCounterMode`` counts for each module what its children do as well and follows the
    backward pass, which takes most of the time of a forward without data.

    Parameters
    ----------
    model : nn.Module
        What is run.
    layers : set of str
        Layers whose MACs follow from the size of their output: each value takes one unit's weights.
    """

    def __init__(self, model: nn.Module, layers: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        self._layers = layers
        self._names = {module: name for name, module in modules_by_name(model).items()}
        self._running = [""]
        self._whole: set[Any] = set()  # operations that are not made of others

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To be left alone by torch's compiler a mode has it loaded: seconds of a short job. This one never meets it.
        return False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside the block."""
        hooks = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: nn.Module, _args: Any) -> None:
        if module in self._names:
            self._running.append(self._names[module])

    def _end(self, module: Any, _args: Any, output: Any) -> None:
        if module in self._names and self._running.pop() in self._layers and output is not None:
            self._add(self._names[module], output.numel() * module.weight[0].numel())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            return self._counted_parts(func, types, args, kwargs)
        output = func(*args, **kwargs)
        name = self._running[-1]
        if name not in self._layers:
            self._add(name, formula(*args, **kwargs, out_val=output) // 2)
        return output

    def _counted_parts(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Run what has no formula, as the operations that it is made of if it is made of any."""
        if func not in self._whole:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self._whole.add(func)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _add(self, name: str, macs: int) -> None:
        if macs:
            self.macs[name] = self.macs.get(name, 0) + macs
