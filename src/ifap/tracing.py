"""Copies of a network to look at, and one way to call it; the caller's network is never touched."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ifap.attention import attention_configs
from ifap.errors import ConfigError
from ifap.layers import is_activation, is_norm

Inputs = Any  # a tensor, a tuple or list of arguments, or a dict of keyword arguments

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Run `model` on a tensor, on a tuple or list of arguments, or on a dict of keyword arguments."""
    if isinstance(inputs, dict):
        _check_length(model, inputs)
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _check_length(model: Any, inputs: dict[str, Any]) -> None:
    """Say that a text is too long, which the network itself would only say of some index."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    ids = inputs.get("input_ids")
    if not isinstance(positions, int) or not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] <= positions:
        return
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if any(table.num_embeddings == positions for table in tables):  # not so where positions are computed
        raise ConfigError(
            f"input_ids: {ids.shape[1]} tokens are too many: the network's table of positions has {positions}; "
            "cut the texts shorter"
        )


def is_trouble(error: BaseException) -> bool:
    """Whether an error is about memory or device, and so says nothing about the network that was run."""
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError), MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply `function` to every tensor in nested tuples, lists and dicts; other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        # Model outputs of some libraries are dict subclasses that a plain dict can stand for.
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [map_tensors(value, function) for value in tree]
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors(value)


# What a task reads of the outputs of a language model, which returns hidden states beside them.
_TASK_OUTPUTS = ("logits", "start_logits", "end_logits", "prediction_logits")


def task_tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of a network's outputs that a task reads: logits where they have that name, else all."""
    named = {key: outputs[key] for key in _TASK_OUTPUTS if key in outputs} if isinstance(outputs, dict) else {}
    yield from tensors(named or outputs)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer (the CPU for a network without any)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move every tensor of `inputs` to `device`."""
    return map_tensors(inputs, lambda tensor: tensor.to(device))


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy without data, without hooks, in evaluation mode, with every parameter requiring grad.

    No memory is taken for the weights: parameters and buffers are replaced while copying, so the
    cost does not depend on the size of the network. Shared parameters stay shared.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.is_floating_point()
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for module in model.modules():
        for name in _HOOKS:
            if name in module.__dict__:
                memo[id(module.__dict__[name])] = OrderedDict()
    twin = copy.deepcopy(model, memo).eval()
    for config in attention_configs(twin):
        config._attn_implementation = "eager"
    return twin


def skip_values(model: nn.Module) -> nn.Module:
    """Let the norms and activations of a copy without data do nothing but pass their input on; returns it.

    Their values do not exist and their shapes do not change, but the data-free versions of these
    operations are written in Python and would take most of the time of a forward.
    """
    for module in model.modules():
        if is_norm(module):
            # One cheap operation, so that the norm still shows up in a trace.
            module.__dict__["forward"] = lambda x, *_args, **_kwargs: x.neg()
        elif is_activation(module) and not isinstance(module, (nn.GLU, nn.PReLU)):
            module.__dict__["forward"] = lambda x, *_args, **_kwargs: x
    return model


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy to prune; it keeps its own hooks and gradients flags but no gradients."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    return twin


@contextmanager
def dense_outputs(model: nn.Module) -> Iterator[None]:
    """Let networks with an attribute ``is_dense``, such as detectors, return outputs of a fixed shape inside the block.

    How many boxes a detector returns depends on what it sees, and choosing them cannot be traced:
    what they are chosen from is traced, counted and compared instead.
    """
    found: list[Any] = [module for module in model.modules() if hasattr(module, "is_dense")]
    before = [(module, module.is_dense) for module in found]
    for module, _ in before:
        module.is_dense = True
    try:
        yield
    finally:
        for module, was_dense in before:
            module.is_dense = was_dense


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by plain products: fused kernels are opaque to a counter of operations."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def meta_forward() -> Iterator[None]:
    """Let a forward run on the meta device: tensors made inside it are created there."""
    with torch.device("meta"), plain_attention(), _whole_masks():
        yield


@contextmanager
def _whole_masks() -> Iterator[None]:
    """Let transformers make every attention mask: whether one is needed would depend on its values."""
    module: Any = sys.modules.get("transformers.masking_utils")
    if module is None:
        yield
        return
    original = module.is_tracing
    module.is_tracing = lambda *_args, **_kwargs: True
    try:
        yield
    finally:
        module.is_tracing = original


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back to the mode that each had."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


@contextmanager
def training_outputs(model: nn.Module) -> Iterator[None]:
    """Let a network return what it returns in training, such as its losses, without learning from what it sees.

    Norms keep their statistics, nothing is dropped out, and every module is put back to its mode.
    """
    with evaluation_mode(model):
        model.train()
        for module in model.modules():
            if is_norm(module) or isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        yield
