"""What the library knows about each kind of layer: its sides and its weights per unit.

A *side* is a dimension of a layer along which units can be removed: ``"out"`` and, for layers
that mix channels, ``"in"``. Depthwise convolutions and norms have one side, ``"out"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm


def modules_by_name(model: nn.Module) -> dict[str, Any]:
    """Return what ``model.named_modules()`` yields, without a generator for each level: asked very often."""
    found: dict[str, Any] = {"": model}
    seen = {model}

    def visit(module: nn.Module, prefix: str) -> None:
        for key, child in module._modules.items():
            if child is None or child in seen:
                continue
            seen.add(child)
            found[prefix + key] = child
            if child._modules:
                visit(child, f"{prefix}{key}.")

    visit(model, "")
    return found


def is_within(name: str, module: str) -> bool:
    """Whether a name is that of a module, or of something inside it."""
    return name == module or name.startswith(f"{module}.")


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what ``model.named_parameters()`` yields: each parameter once, by its first name."""
    found: dict[nn.Parameter, str] = {}
    for name, module in modules_by_name(model).items():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter not in found:
                found[parameter] = f"{name}.{key}" if name else key
    return {name: parameter for parameter, name in found.items()}


def is_conv(module: nn.Module) -> bool:
    """Whether `module` is a (transposed) convolution of 1 to 3 dimensions."""
    return isinstance(module, _ConvNd)


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalises and scales channels."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is an elementwise non-linearity: torch's own, or from a module named ``activations``."""
    home = type(module).__module__.rpartition(".")[2]
    return home in {"activation", "activations"} and not isinstance(module, _NOT_ELEMENTWISE)


# Attention and probabilities: not one value a unit.
_NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution reads the one input channel of its number."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.out_channels == module.in_channels


def is_spatial(module: nn.Module) -> bool:
    """Whether `module` is a convolution that looks at more than one position, so not 1x1."""
    return isinstance(module, _ConvNd) and any(size > 1 for size in module.kernel_size)


def is_producer(module: nn.Module) -> bool:
    """Whether `module` has weights that produce units: a convolution, linear layer or embedding."""
    return isinstance(module, (_ConvNd, nn.Linear, nn.Embedding))


def sides(module: nn.Module) -> dict[str, int]:
    """Return the width of each side of `module`; empty for layers without channels of their own."""
    if isinstance(module, _ConvNd):
        if is_depthwise(module):
            return {"out": module.out_channels}
        return {"out": module.out_channels, "in": module.in_channels}
    if isinstance(module, nn.Linear):
        return {"out": module.out_features, "in": module.in_features}
    if isinstance(module, nn.Embedding):
        return {"out": module.embedding_dim}
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return {"out": module.num_features}
    if isinstance(module, nn.GroupNorm):
        return {"out": module.num_channels}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"out": int(module.normalized_shape[-1])}
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return {"out": module.num_parameters}
    return {}


def shared_parameters(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Return the parameters that several modules hold, each as its (module, attribute) pairs in order."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules_by_name(model).values():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    return [pairs for pairs in owners.values() if len(pairs) > 1]


def unit_axis(module: nn.Module) -> int:
    """Return the axis of a layer's input and output that counts their units (negative: from the end)."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    return -1


def contracted_axis(module: nn.Module | None) -> str | None:
    """Return which dimension of its weight a layer contracts, ``"dim0"`` or ``"dim1"``; None if it is not just one."""
    if not isinstance(module, nn.Linear | _ConvNd) or getattr(module, "groups", 1) != 1:
        return None
    return "dim0" if isinstance(module, _ConvTransposeNd) else "dim1"


def has_plain_forward(module: nn.Module) -> bool:
    """Whether a layer is a linear one or a convolution that runs as torch's own does."""
    kind = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    if kind is None or "forward" in module.__dict__ or "weight" not in module._parameters:
        return False
    own = type(module)
    return own is kind or all(getattr(own, name, None) is getattr(kind, name, None) for name in _FORWARD)


def weight_by_group(module: Any) -> Tensor:
    """Return a copy of a layer's weight in float32 at least: shape (groups, outputs, inputs of a group, taps)."""
    weight: Tensor = module.weight.detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    by_group = weight.reshape(*weight.shape[:2], -1).unflatten(0, (getattr(module, "groups", 1), -1))
    return (by_group.transpose(1, 2) if isinstance(module, _ConvTransposeNd) else by_group).clone()


def add_bias(module: Any) -> None:
    """Give a convolution or linear layer a bias of zeros like its weight, in place."""
    groups = module.groups if getattr(module, "transposed", False) else 1
    width = module.weight.shape[1] * groups if getattr(module, "transposed", False) else module.weight.shape[0]
    zeros = torch.zeros(width, dtype=module.weight.dtype, device=module.weight.device)
    module.bias = nn.Parameter(zeros, requires_grad=module.weight.requires_grad)


_PLAIN = (nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d)
_FORWARD = ("forward", "_conv_forward", "__call__")


def unit_weights(module: nn.Module) -> Tensor:
    """Return the weights that produce each output unit, one row a unit: shape (units, weights)."""
    return unit_rows(module, module.weight.detach())  # type: ignore[operator]


def unit_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a tensor of the shape of a layer's weight, such as its gradient, with one row a unit."""
    if isinstance(module, _ConvTransposeNd):
        # (in, out / groups, ...) -> (out, in / groups * ...)
        grouped = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
        return grouped.flatten(0, 1).flatten(1)
    if isinstance(module, nn.Embedding):
        return weight.t()
    return weight.flatten(1)


def weight_norms(module: nn.Module) -> Tensor:
    """Return the L2 norm of the weights of each output unit, shape (units,)."""
    return torch.linalg.vector_norm(unit_weights(module).float(), dim=1)
