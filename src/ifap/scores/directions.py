"""Draw random directions of the outputs whose second moment is the metric of the outputs.

The *Fisher information* of the outputs, in nats of KL divergence. An output that holds the logits of classes or tokens
stands for their softmax: the direction is the gradient of the log-probability of a class drawn from it. Any other
output stands for a Gaussian around itself, with the spread that it has over the samples: the direction is a random
projection.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_SAME = (
    "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Alias",
    "ToCopy", "Clone", "Expand", "Slice", "Select", "Mul", "Div", "Add", "Sub", "UpsampleBilinear2D",
    "UpsampleNearest2D", "UpsampleLinear1D", "UpsampleTrilinear3D",
)  # fmt: skip
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Linear", "MkldnnLinear")
_CONVOLUTIONS = ("Convolution", "ConvolutionOverrideable", "MkldnnConvolution")
_FLAT = 0.9  # of the largest entropy that a softmax can have
_GAUSSIAN_SHARE = 0.03  # of the length of a softmax's direction


def class_axis(output: Tensor) -> int | None:
    """Return the axis that counts classes if an output holds logits, else None.

    No name says so. Logits are what a matrix product or convolution makes last, with nothing but a change of shape, a
    constant or a change of resolution after it, and their softmax is no flat one: its mean entropy is below nine tenths
    of the largest. Embeddings that a projection makes, or colours, have a flat one.
    """
    axis = _axis_of_product(output)
    if axis is None or output.shape[axis] < 2:
        return None
    values = output.detach().float().movedim(axis, -1)
    logs = values.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1).mean()
    return axis if float(entropy) < _FLAT * math.log(values.shape[-1]) else None


def _axis_of_product(output: Tensor) -> int | None:
    """Return the axis of an output that the last product of the forward made, None if something else came last."""
    node: Any = output.grad_fn
    while node is not None:
        kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if kind in _PRODUCTS:
            return output.dim() - 1
        if kind in _CONVOLUTIONS:
            return 1 if output.dim() > 2 else output.dim() - 1
        before = [inner for inner, _ in node.next_functions if inner is not None]
        if kind not in _SAME or len(before) != 1:
            return None
        node = before[0]
    return None


def direction(output: Tensor, axis: int | None, generator: torch.Generator) -> Tensor:
    """Draw a direction of an output.

    `axis` is that of `class_axis`, and `generator` must be on the device of the output. The direction has the shape of
    the output. Outer products of such directions have the Fisher information as their mean.
    """
    noise = torch.randn(output.shape, generator=generator, device=output.device)
    if axis is None or not output.numel():
        return (noise / _scale(output.detach().float())).to(output.dtype)
    values = output.detach().float().movedim(axis, -1)
    probabilities = values.softmax(dim=-1).reshape(-1, values.shape[-1])
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    found = probabilities.scatter_add_(1, drawn, probabilities.new_full(drawn.shape, -1.0))
    # A little of a random projection: where numbers that are no logits saturate the softmax, it is all that is left.
    noise = noise.movedim(axis, -1).reshape(found.shape)
    found = found + _GAUSSIAN_SHARE * torch.nn.functional.normalize(noise, dim=1)
    return found.reshape(values.shape).movedim(-1, axis).to(output.dtype)


def _scale(values: Tensor) -> float:
    """Return the standard deviation of values; of a constant, or of a single number, its size; one for zeros."""
    size = float(values.square().mean().sqrt()) if values.numel() else 0.0
    spread = float(values.std(correction=0)) if values.numel() else 0.0
    return spread if spread > 1e-6 * size else size or 1.0
