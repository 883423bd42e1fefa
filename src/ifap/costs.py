"""One counter of multiply-accumulates and parameters, the same before and after pruning.

A multiply-accumulate (MAC) is one multiplication and one addition inside a convolution, a linear
layer or an attention product (query-key and probability-value). Norms, activations, biases and
poolings are not counted. The paper prints MACs as "GFlops".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from ifap.arguments import MODULE, checked
from ifap.axes.fakes import Shapes, quick
from ifap.axes.passes import data_free, empty_caches, plain_kernels, run_in_training
from ifap.axes.running import Running
from ifap.axes.state import unchanged
from ifap.errors import GraphError, kind_and_line
from ifap.forward import Inputs, call, dense_outputs, evaluation_mode, reading, task_tensors
from ifap.layers import modules_by_name
from ifap.trouble import is_resource_error


@dataclass(frozen=True)
class Cost:
    """Cost of one forward.

    Parameters
    ----------
    macs : int
        Multiply-accumulates of one forward over the example inputs (whole batch).
    params : int
        Elements of all parameters, a shared one counted once.
    latency : float, optional
        Predicted milliseconds of one forward, where the target is a latency; see `ifap.latency.LatencyModel`.
    bytes : int, optional
        What parameters and buffers take in memory, and so in a file; known of a network that was pruned.
    """

    macs: int
    params: int
    latency: float | None = field(default=None, repr=False, compare=False)
    bytes: int | None = field(default=None, repr=False, compare=False)

    def reduction(self, base: Cost, kind: str) -> float:
        """Return the share of `base` that is gone, in [0, 1]; `kind` is the name of a cost."""
        whole = getattr(base, kind)
        return 1.0 - getattr(self, kind) / whole if whole else 0.0


@checked(model=MODULE)
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

    Raises
    ------
    GraphError
        If the network does not run on its example inputs.

    Notes
    -----
    Convolutions, linear layers and the two products of attention are counted. The paper prints MACs as "GFlops".

    Examples
    --------
    >>> ifap.cost(resnet50, torch.zeros(1, 3, 224, 224))
    Cost(macs=4089184256, params=25557032)
    """
    return Cost(macs=sum(macs_by_module(model, example_inputs).values()), params=count_params(model))


def count_params(model: nn.Module) -> int:
    """Return the number of elements of all parameters, a shared one counted once."""
    held = {parameter for module in modules_by_name(model).values() for parameter in module._parameters.values()}
    return sum(parameter.numel() for parameter in held if parameter is not None)


def params_by_module(model: nn.Module) -> dict[str, int]:
    """Return the number of elements of the parameters that each module holds itself; modules without any are left out.

    A shared parameter counts for the first module alone, so that the numbers add up to `count_params`.
    """
    found: dict[str, int] = {}
    seen: set[nn.Parameter] = set()
    for name, module in modules_by_name(model).items():
        held = {parameter for parameter in module._parameters.values() if parameter is not None} - seen
        seen |= held
        if held:
            found[name] = sum(parameter.numel() for parameter in held)
    return found


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers that a network saves, a shared one counted once."""
    held: dict[int, Tensor] = {}
    for module in modules_by_name(model).values():
        saved = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        held.update((id(t), t) for t in (*module._parameters.values(), *saved.values()) if t is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def macs_by_module(model: nn.Module, example_inputs: Inputs) -> dict[str, int]:
    """Count the MACs that each module does itself, its children left out.

    The keys are qualified module names (``""`` for the network itself); modules without MACs are left out. The network
    is run without data if possible. Raises a NetworkError if it does not run.
    """
    counter = _Counter(model)
    with suppress(NetworkError):
        shapes_without_data(model, example_inputs, counter=counter)
        return counter.macs
    # The forward looks at values, which data-free tensors do not have: run it for real.
    counter = _Counter(model)
    with reading(model), torch.no_grad(), dense_outputs(model), plain_kernels():
        _run(model, counter, example_inputs)
    return counter.macs


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


def _experts(x: Tensor, weights: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count a product of rows sorted by expert: each row is multiplied with the weights of its expert."""
    return 2 * x.numel() * int(weights.shape[-1])


def _deformed(_x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count a deformable convolution, which does the products of a plain one."""
    return 2 * out_val.numel() * int(weight[0].numel())


def _bilinear(*args: Any, out_val: Tensor, **_: Any) -> int:
    """Count three factors, each broadcast over the dimensions that it lacks, as one product."""
    shapes: list[list[int]] = []
    for x, missing in zip(args[:3], args[3:6], strict=True):
        sizes = iter(x.shape)
        shapes.append([1 if place in missing else next(sizes) for place in range(x.dim() + len(missing))])
    return 2 * math.prod(map(max, *shapes))


# Formulas that torch lacks; each returns twice the multiply-accumulates.
_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._trilinear.default": _bilinear,
    "aten._grouped_mm.default": _experts,
    "torchvision.deform_conv2d.default": _deformed,
}


class NetworkError(GraphError):
    """A network does not run; holds why, and the module that was running."""

    def __init__(self, reason: str, module: str) -> None:
        super().__init__(reason)
        self.reason, self.module = reason, module


def shapes_without_data(
    model: nn.Module,
    example_inputs: Inputs,
    outputs: Sequence[str] | None = None,
    *,
    counter: _Counter | None = None,
) -> list[tuple[int, ...]]:
    """Run a network on inputs without data; it is left as it was.

    Returns the shape of every tensor that the network returns, or for a language model of those that a task reads.
    `outputs` is that of `ifap.prune`. `counter` counts MACs, and notes which module runs. Raises a NetworkError if the
    forward fails: it may look at values, or not run at all.
    """
    try:
        found = _without_data(model, example_inputs, outputs, counter)
    except Exception as error:
        if is_resource_error(error):
            raise
        failure: NetworkError | None = _failure(error, "" if counter is None else counter.running.last)
    else:
        failure = None
    empty_caches()  # only now: an error in flight keeps the tensors of the forward
    if failure is not None:
        raise failure
    return found


def _without_data(
    model: nn.Module, inputs: Inputs, outputs: Sequence[str] | None, counter: _Counter | None
) -> list[tuple[int, ...]]:
    with (
        evaluation_mode(model), torch.no_grad(), dense_outputs(model), plain_kernels(), unchanged(model),
        data_free(model, inputs) as (given, _), Shapes() if counter is None else counter.counting(),
    ):  # fmt: skip
        return _task_shapes(model, call(model, given), outputs)


def _task_shapes(model: nn.Module, found: Any, outputs: Sequence[str] | None) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in task_tensors(model, found, outputs)]


def run_once(model: nn.Module, example_inputs: Inputs, outputs: Sequence[str] | None = None) -> list[tuple[int, ...]]:
    """Run a network on its example inputs; it is left as it was.

    Returns the shape of each output; see `shapes_without_data`. Raises a NetworkError if the network does not run.
    """
    with reading(model), torch.no_grad(), dense_outputs(model):
        try:
            found = call(model, example_inputs)
        except Exception as error:
            if is_resource_error(error):
                raise
            found = _run(model, _Counter(model), example_inputs)  # again, to see which module fails
        return _task_shapes(model, found, outputs)


def _run(model: nn.Module, counter: _Counter, example_inputs: Inputs) -> Any:
    try:
        with counter.counting():
            return call(model, example_inputs)
    except Exception as error:
        if is_resource_error(error):
            raise
        raise _failure(error, counter.running.last) from error


def _failure(error: Exception, module: str) -> NetworkError:
    return NetworkError(kind_and_line(error), module)


def shapes_in_training(
    model: nn.Module, example_inputs: Inputs, outputs: Sequence[str] | None = None
) -> list[tuple[int, ...]]:
    """Run a network in training mode, without data if possible; batch norms and dropout stay in evaluation.

    Returns the shape of each output; see `shapes_without_data`. Raises a NetworkError if the network does not run: it
    may need targets in training.
    """

    def run(given: Inputs) -> list[tuple[int, ...]]:
        return _task_shapes(model, _run(model, _Counter(model), given), outputs)

    try:
        with dense_outputs(model):
            return run_in_training(model, example_inputs, run)
    finally:
        empty_caches()


class _Counter(Shapes):
    """Count the MACs of each module itself while it is open, with torch's formulas for every product.

    Torch's ``FlopCounterMode`` counts for each module what its children do as well and follows the
    backward pass, which takes most of the time of a forward without data.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self.running = Running(modules_by_name(model))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside the block."""
        with self.running, self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket) or _FORMULAS.get(f"{func.namespace}.{func.__name__}")
        if formula is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        output = quick(func, args, kwargs)
        if output is None:
            output = func(*args, **kwargs)
        self._add(self.running.module, formula(*args, **kwargs, out_val=output) // 2)
        return output

    def _add(self, name: str, macs: int) -> None:
        if macs:
            self.macs[name] = self.macs.get(name, 0) + macs
