"""What the layers that read a unit see of it, and how they can do without.

A layer that mixes channels, a convolution or a linear layer, computes ``y = W x``. Without the inputs G it loses
``W_G x_G``, of which the inputs K that stay can say a part: ``x_G`` is about ``A x_K`` with the A of least squares, so
that ``W_K + W_G A`` does for the whole of W what can be done without training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from ifap.axes.attention import adopted
from ifap.axes.units import Graph, Indices
from ifap.errors import ScoreError
from ifap.flow import forwards
from ifap.forward import Inputs, evaluation_mode
from ifap.layers import modules_by_name, shared_parameters, sides, unit_axis
from ifap.weights import used_by_attention

DAMPING = 1e-4  # of the mean of the diagonal: inputs of which one follows from the others have no single A
WIDEST = 8192  # inputs of a layer that is compensated; their products take half a GiB

Summed = Callable[[Any, Tensor], Tensor]
"""What is added up of the inputs of a layer, one row a position."""


def readers(model: nn.Module, graph: Graph) -> dict[str, Indices]:
    """Return the unit of each input channel of every layer that reads channels; -1 where none can go."""
    slots = {name: graph.slot(name, "in") for name in modules_by_name(model)}
    return {name: graph.unit_of[slot] for name, slot in slots.items() if slot is not None}


def _compensable(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the layers that can be compensated.

    Left out are layers in groups, of which each sees a part of what stays, transposed convolutions, layers that share
    their weight with another, which is not theirs to change, and very wide ones.
    """
    modules = modules_by_name(model)
    shared = {id(module) for pairs in shared_parameters(model) for module, _ in pairs}
    return {
        name
        for name in names
        if getattr(modules[name], "groups", 1) == 1
        and not isinstance(modules[name], _ConvTransposeNd)
        and id(modules[name]) not in shared
        and sides(modules[name])["in"] <= WIDEST
    }


def reading_norms(module: Any) -> Tensor:
    """Return the squared L2 norm of the weights that read each input channel of a layer: shape (inputs,), float64."""
    weight: Tensor = module.weight.detach().double()
    if isinstance(module, _ConvTransposeNd):  # (inputs, outputs of a group, ...)
        return weight.flatten(1).square().sum(dim=1)
    groups = getattr(module, "groups", 1)  # (outputs, inputs of a group, ...)
    by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return by_group.square().sum(dim=(1, 3)).flatten()


def mean_squares(model: nn.Module, batches: Iterable[Inputs], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the mean square over samples and positions of each input channel of layers: shape (inputs,), float64.

    Parameters, errors and layers that did not run are as of `second_moments`.
    """
    return _means(model, batches, names, lambda _module, rows: rows.square().sum(dim=0))


def second_moments(model: nn.Module, batches: Iterable[Inputs], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the mean of ``x x^T`` over samples and positions of what each layer reads.

    Parameters
    ----------
    model : nn.Module
        The network; it is run in evaluation mode without gradients.
    batches : iterable
        Calibration inputs without labels.
    names : iterable of str
        Layers from `readers`.

    Returns
    -------
    dict of str to Tensor
        Shape (inputs, inputs), float64; a layer with a bias has one more input, which is always 1.
        Layers that did not run are left out.

    Raises
    ------
    ScoreError
        If there is no batch, if the network does not take one, or if an input is not finite (the layer is named).
    SplitError
        If `batches` is a test split.
    """
    return _means(model, batches, names, _products)


def _products(module: Any, rows: Tensor) -> Tensor:
    if module.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows.t() @ rows


def _means(model: nn.Module, batches: Iterable[Inputs], names: Iterable[str], summed: Summed) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    with evaluation_mode(model), torch.no_grad(), _adding(model, set(names), summed, sums, numbers):
        for _ in forwards(model, batches):
            pass
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise ScoreError(f"layer '{name}': its inputs are not finite on the calibration data")
    return {name: total / numbers[name] for name, total in sums.items()}


@contextmanager
def _adding(
    model: nn.Module, names: set[str], summed: Summed, sums: dict[str, Tensor], numbers: dict[str, int]
) -> Iterator[None]:
    """Add up, inside the block, what `summed` makes of the inputs of the named layers, and their positions."""

    def hook(name: str, module: Any) -> Any:
        def add(_module: nn.Module, args: Any) -> None:
            with torch._C.DisableTorchFunction():  # what is done here is no call of the network's
                rows = _rows(module, args[0])
                found = summed(module, rows).double()
                sums[name] = sums[name] + found if name in sums else found
            numbers[name] = numbers.get(name, 0) + len(rows)

        return add

    modules = modules_by_name(model)
    silent = used_by_attention(model) & names
    with ExitStack() as stack:
        for name in names - silent:
            stack.callback(modules[name].register_forward_pre_hook(hook(name, modules[name])).remove)
        if silent:
            stack.enter_context(adopted(model))
            stack.enter_context(_LinearCalls({id(modules[n].weight): hook(n, modules[n]) for n in silent}))
        yield


class _LinearCalls(TorchFunctionMode):
    """Hand on what ``functional.linear`` is given together with certain weights.

    Parameters
    ----------
    readers : dict of int to callable
        ``id`` of a weight to what takes a module, which is None, and the arguments.
    """

    def __init__(self, readers: dict[int, Callable[[Any, Any], None]]) -> None:
        super().__init__()
        self._readers = readers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and len(args) > 1 and id(args[1]) in self._readers:
            with torch._C.DisableTorchFunction():
                self._readers[id(args[1])](None, args)
        return func(*args, **(kwargs or {}))


def _rows(module: Any, x: Tensor) -> Tensor:
    """Return the input of a layer with one row a position and one column a channel."""
    axis = unit_axis(module)
    return x.detach().movedim(axis, -1).reshape(-1, x.shape[axis]).float()


def _damped(moment: Tensor) -> Tensor:
    return moment + DAMPING * moment.diagonal().mean().clamp_min(1e-30) * torch.eye(
        len(moment), dtype=moment.dtype, device=moment.device
    )


def compensate(model: nn.Module, graph: Graph, removed: Indices, batches: Iterable[Inputs]) -> None:
    """Change the weights that read units which are about to go, so that what stays stands in for them.

    Call it before the units are cut. Weights of the removed inputs are left as they are, and so are layers with
    groups, transposed convolutions, layers that share a weight, and those with more than `WIDEST` inputs.

    Parameters
    ----------
    model : nn.Module
        The network that `graph` describes; changed in place.
    graph : Graph
        Its units.
    removed : integer array
        The units that are about to go.
    batches : iterable
        Calibration inputs without labels, for `second_moments`.
    """
    modules = modules_by_name(model)
    gone = {name: np.isin(units, removed) for name, units in readers(model, graph).items()}
    touched = {name for name, lost in gone.items() if lost.any() and not lost.all()}
    gone = {name: gone[name] for name in _compensable(model, touched)}
    if not gone:
        return
    for name, moment in second_moments(model, batches, gone).items():
        _replace(modules[name], torch.from_numpy(gone[name]), moment.cpu())


def _replace(module: Any, lost: Tensor, moment: Tensor) -> None:
    """Add to the weights of the inputs that stay what those of the lost ones did."""
    weight, bias = module.weight, module.bias
    left = torch.cat([~lost, torch.ones(len(moment) - len(lost), dtype=torch.bool)])
    gone = torch.cat([lost, torch.zeros(len(moment) - len(lost), dtype=torch.bool)])
    shares = torch.linalg.solve(_damped(moment)[left][:, left], moment[left][:, gone])  # (left, gone)
    shares = shares.to(weight.device, weight.dtype)
    with torch.no_grad():
        lost = lost.to(weight.device)
        reads = weight[:, lost]  # (outputs, gone, ...)
        if bias is not None:
            bias += reads.flatten(2).sum(dim=2) @ shares[-1] if reads.dim() > 2 else reads @ shares[-1]
            shares = shares[:-1]
        weight[:, ~lost] += torch.einsum("og...,lg->ol...", reads, shares)
