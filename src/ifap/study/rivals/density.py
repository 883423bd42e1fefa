"""How many weights each layer keeps: what a weight costs, targets, and the usual layer densities.

A cost is linear in the numbers of kept weights: every weight of a layer takes part in equally many
products. So a wanted reduction of MACs or parameters of the *whole* network can be met to within
one weight, and is never mixed up with the density of the layers that can be masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ifap.costs import count_params, macs_by_module
from ifap.errors import TargetError
from ifap.forward import Inputs
from ifap.layers import is_conv, is_depthwise
from ifap.study.rivals.blocks import block_weights

if TYPE_CHECKING:
    from ifap.results import Target

Densities = dict[str, float]
_NEARLY = 1e-9
_HALVINGS = 60


def maskable(model: nn.Module, *, first: bool = True, last: bool = True, depthwise: bool = True) -> dict[str, Tensor]:
    """Return the weights that can be masked: those of convolutions and linear layers, by name.

    Biases, norms, embeddings and free parameters are never among them; a shared weight is once. In a
    language model it is the linear layers of its blocks, and nothing else: poolers and heads stay dense.

    Parameters
    ----------
    model : nn.Module
        The network.
    first : bool, optional
        False leaves out the first convolution in the order of the modules (the stem).
    last : bool, optional
        False leaves out the last linear layer in that order (the classifier).
    depthwise : bool, optional
        False leaves out depthwise convolutions.
    """
    blocks = block_weights(model)
    if blocks:
        return blocks
    convolutions = [module for module in model.modules() if is_conv(module)]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    dense = {
        *([] if first else convolutions[:1]),
        *([] if last else linear[-1:]),
        *([] if depthwise else filter(is_depthwise, convolutions)),
    }
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for module in model.modules():
        if (is_conv(module) or isinstance(module, nn.Linear)) and module not in dense:
            weight = module.weight
            assert isinstance(weight, Tensor)
            if id(weight) in known:
                found[known[id(weight)]] = weight
    return found


@dataclass(frozen=True)
class Prices:
    """What the kept weights of each layer cost."""

    kind: str  # ``macs`` or ``params``.
    whole: int  # Cost of the unmasked network.
    sizes: dict[str, int]  # Weights of each layer that can be masked.
    each: dict[str, float]  # Cost of one weight of the layer.

    @property
    def fixed(self) -> float:
        """Cost of everything that cannot be masked."""
        return self.whole - sum(self.each[name] * size for name, size in self.sizes.items())

    def of(self, counts: Mapping[str, int]) -> float:
        """Return the cost with so many weights kept in each layer."""
        return self.fixed + sum(self.each[name] * count for name, count in counts.items())

    def goal(self, target: Target) -> float:
        """Return the cost that `target` allows; a TargetError if one weight in every layer already costs more."""
        allowed = self.whole * (1 - target.share)
        least = self.of(dict.fromkeys(self.sizes, 1))
        if not self.sizes or allowed < least:
            raise TargetError(
                f"target: {self.kind}={target.share:g} cannot be expressed by masks, which reach up to "
                f"{math.floor(1e4 * (1 - least / self.whole)) / 1e4:g}: the rest is in layers that stay dense"
            )
        return allowed


def prices(model: nn.Module, example_inputs: Inputs, kind: str, names: Iterable[str]) -> Prices:
    """Return what the named weights cost.

    Parameters
    ----------
    model : nn.Module
        The network; it is not run and not changed.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.
    kind : {'macs', 'params'}
        MACs of one forward over the example inputs, attention products included; or parameters,
        all of them, whether they can be masked or not.
    names : iterable of str
        From `maskable`.
    """
    weights = dict(model.named_parameters())
    sizes = {name: weights[name].numel() for name in names}
    if kind == "params":
        return Prices(kind, count_params(model), sizes, dict.fromkeys(sizes, 1.0))
    macs = macs_by_module(model, example_inputs)
    known = {id(weights[name]): name for name in sizes}
    own = dict.fromkeys(sizes, 0)
    for module_name, module in model.named_modules():
        name = known.get(id(getattr(module, "weight", None)))
        if name is not None:
            own[name] += macs.get(module_name, 0)
    return Prices(kind, sum(macs.values()), sizes, {name: own[name] / sizes[name] for name in sizes})


def erdos_renyi_kernel(shapes: Mapping[str, Iterable[int]], density: float) -> Densities:
    """Return layer densities that fall with the size of the layer (ERK; Evci et al., ICML 2020).

    A layer of shape (n_out, n_in, kh, kw) gets a density proportional to (n_out + n_in + kh + kw) / (n_out n_in kh kw);
    layers that would get more than 1 are dense. `density` is that of all weights together, in (0, 1].
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    scale = 0.0
    while len(dense) < len(sizes):
        free = [name for name in sizes if name not in dense]
        wanted = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = wanted / sum(raw[name] * sizes[name] for name in free)
        largest = max(raw[name] for name in free)
        if scale * largest <= 1:
            break
        dense |= {name for name in free if raw[name] == largest}
    return {name: 1.0 if name in dense else scale * raw[name] for name in sizes}


def uniform(shapes: Mapping[str, Iterable[int]], density: float) -> Densities:
    """Return the same density for every layer."""
    return dict.fromkeys(shapes, density)


def counts(densities: Densities, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return how many weights each layer keeps; floor((1 - density) size) are masked."""
    return {
        name: sizes[name] - math.floor((1 - density) * sizes[name] + _NEARLY) for name, density in densities.items()
    }


def solve_density(
    distribute: Callable[[Mapping[str, Iterable[int]], float], Densities],
    shapes: Mapping[str, Iterable[int]],
    priced: Prices,
    goal: float,
) -> dict[str, int]:
    """Find the largest density whose kept weights cost no more than `goal`; returns the kept weights of each layer.

    Raises
    ------
    TargetError
        If a layer would be left without a weight.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if priced.of(counts(distribute(shapes, middle), priced.sizes)) <= goal:
            low = middle
        else:
            high = middle
    found = counts(distribute(shapes, low), priced.sizes)
    refuse_empty(found)
    return found


def refuse_empty(found: Mapping[str, int]) -> None:
    """Raise a `TargetError` if a layer keeps nothing: the network would be cut in two."""
    empty = next((name for name, count in found.items() if count < 1), None)
    if empty is not None:
        raise TargetError(f"target: no weight of '{empty}' would be left: ask for less")
