"""Give a layer a new weight, also where it makes its weight from other tensors, as under a weight norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

_TOLERANCE = 1e-3  # of single precision, and of half precision too


def takes_weight(module: nn.Module) -> bool:
    """Return whether a layer computes with the weight that it is given.

    A layer whose weight is no parameter is tried: a spectral norm, for example, scales whatever it is given.
    """
    own = module._parameters.get("weight")
    if own is not None or not makes_weight(module):
        return own is not None and own.is_floating_point()
    before = made_weight(module)
    wanted = before + before.flip(0) / 2
    try:
        undo = give_weight(module, wanted)
    except (RuntimeError, ValueError):  # it is not made backwards, or not from every weight, such as an orthogonal one
        return False
    found = made_weight(module)
    undo()
    return bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())


def makes_weight(module: Any) -> bool:
    """Return whether a layer makes its weight from other tensors by a parametrisation or hook of torch."""
    return isinstance(module, nn.Module) and (
        parametrize.is_parametrized(module, "weight") or _norm(module) is not None
    )


def made_weight(module: Any) -> Tensor:
    """Return the weight that a layer computes with."""
    norm = _norm(module)
    weight: Tensor = module.weight if norm is None else norm.compute_weight(module)
    return weight.detach()


def give_weight(module: Any, weight: Tensor) -> Callable[[], None]:
    """Give a layer another weight, in place; returns a function that undoes it."""
    with torch.no_grad():
        if not makes_weight(module):
            undo = restoring([module.weight])
            module.weight.copy_(weight)
        elif (norm := _norm(module)) is not None:
            undo = restoring([module.weight_g, module.weight_v])
            module.weight_g.copy_(torch.norm_except_dim(weight, 2, norm.dim))
            module.weight_v.copy_(weight)
        else:
            undo = restoring([*module.parametrizations.weight.parameters()])
            module.weight = weight.to(module.weight.dtype, copy=True)  # its storage becomes the parameter's
    return undo


def restoring(tensors: list[Tensor]) -> Callable[[], None]:
    """Return a function that restores the present values of tensors."""
    before = [tensor.detach().clone() for tensor in tensors]

    def restore() -> None:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)

    return restore


def _norm(module: nn.Module) -> WeightNorm | None:
    """Return the hook of torch's old weight norm that makes a layer's weight."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))
    return next((hook for hook in hooks if hook.name == "weight"), None)
