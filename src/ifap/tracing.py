"""Copies of a network to look at, and one way to call it; the caller's network is never touched."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from ifap.attention import attention_configs
from ifap.errors import ConfigError
from ifap.layers import has_plain_forward, is_activation, is_norm, modules_by_name, output_shape

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
    tables = [module for module in modules_by_name(model).values() if isinstance(module, nn.Embedding)]
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


def shape_copy(model: nn.Module) -> nn.Module:
    """Return a copy that hands on nothing but shapes; for `ifap.costs.probe` and, after it, `ifap.graph.trace`."""
    return skip_values(meta_copy(model))


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy without data, without hooks, in evaluation mode, with every parameter requiring grad.

    No memory is taken for the weights: parameters and buffers are replaced while copying, so the
    cost does not depend on the size of the network. Shared parameters stay shared.
    """
    memo: dict[int, Any] = {}
    for module in modules_by_name(model).values():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _without_data(tensor)
    twin: nn.Module = _copy_without_hooks(model, memo)
    kinds: set[Any] = {type(module) for module in modules_by_name(twin).values()}
    if any(_evaluates_in_its_own_way(kind) for kind in kinds):
        twin.eval()
    for config in attention_configs(twin):
        config._attn_implementation = "eager"
    return twin


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.is_floating_point()) if isinstance(tensor, nn.Parameter) else empty


def _copy_without_hooks(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Do what ``copy.deepcopy`` does to a module, some times faster: most of its attributes are numbers or empty."""
    if id(module) in memo:
        return memo[id(module)]
    kind: Any = type(module)
    if not _copies_as_usual(kind):
        return copy.deepcopy(module, memo).eval()
    twin = memo[id(module)] = object.__new__(kind)
    state = twin.__dict__
    for name, value in module.__dict__.items():
        if name in _HOOKS:
            state[name] = OrderedDict()
        elif name == "_modules":
            state[name] = type(value)((key, child and _copy_without_hooks(child, memo)) for key, child in value.items())
        elif name in ("_parameters", "_buffers"):
            state[name] = type(value)(
                (key, tensor if tensor is None else memo[id(tensor)]) for key, tensor in value.items()
            )
        elif name == "training":
            state[name] = False
        elif type(value) in _ATOMIC or (type(value) is tuple and all(type(item) in _ATOMIC for item in value)):
            state[name] = value
        elif not value and type(value) in (dict, OrderedDict, set, list):
            state[name] = type(value)()
        else:
            state[name] = copy.deepcopy(value, memo)
    return twin


_ATOMIC = (bool, int, float, str, type(None))


@cache
def _copies_as_usual(kind: Any) -> bool:
    """Whether ``copy.deepcopy`` would copy the attributes of a class of modules one by one."""
    special = any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__slots__"))
    names = ("__reduce__", "__reduce_ex__", "__getstate__")
    # What torch's own layers do on top only matters for files of older versions.
    restores_as_usual = kind.__setstate__.__module__.startswith("torch.nn.modules.")
    return restores_as_usual and not special and all(getattr(kind, name) is getattr(nn.Module, name) for name in names)


@cache
def _evaluates_in_its_own_way(kind: Any) -> bool:
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def skip_values(model: nn.Module) -> nn.Module:
    """Let the layers, norms and activations of a copy without data hand on nothing but shapes; returns it.

    Their values do not exist, and the data-free versions of these operations are written in Python
    and would take most of the time of a forward.
    """
    for module in modules_by_name(model).values():
        if is_norm(module):
            module.__dict__["forward"] = _same_shape
        elif isinstance(module, _DropoutNd) or (is_activation(module) and not isinstance(module, (nn.GLU, nn.PReLU))):
            module.__dict__["forward"] = lambda x, *_args, **_kwargs: x
        elif type(module) in _POOLS:
            module.__dict__["forward"] = partial(_pooled_shape, module)
        elif has_plain_forward(module):
            module.__dict__["forward"] = partial(_shape_alone, module)
    return model


_POOLS = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}


def _pooled_shape(module: Any, x: Tensor) -> Tensor:
    """Stand in for the forward of an adaptive average pool."""
    rank, wanted = _POOLS[type(module)], module.output_size
    sizes = wanted if isinstance(wanted, tuple) else (wanted,) * rank
    if len(sizes) != rank or x.dim() not in (rank + 1, rank + 2):
        return type(module).forward(module, x)
    spatial = [before if size is None else size for size, before in zip(sizes, x.shape[-rank:], strict=True)]
    return _with_shape(x, None, (*x.shape[:-rank], *spatial))


def _same_shape(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """Stand in for the forward of a norm, which is to show up in a trace."""
    return _with_shape(x, None, x.shape)


def _with_shape(x: Tensor, weight: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return _Layer.apply(x, weight, shape) if torch.is_grad_enabled() else _empty(x, shape)


def _empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    # Nobody who follows what is called has a use for this call, and to ask them takes ten times as long.
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return torch.empty(shape, dtype=x.dtype, device=x.device)


class _Layer(torch.autograd.Function):
    """The output of a layer without its values: a trace sees that it depends on input and weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return _empty(x, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("a network without values is not trained")


def _shape_alone(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for the forward of a layer; what does not fit goes to the layer, which says so in torch's words."""
    x = args[0] if args else next(iter(kwargs.values()))
    shape = output_shape(module, x.shape)
    if shape is None:
        return type(module).forward(module, x)
    return _with_shape(x, module.weight, shape)


class ShapesAlone(TorchDispatchMode):
    """Give sums and products of tensors without data their shape alone: torch's kernels for that are in Python."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `ifap.costs`: to be left alone by torch's compiler a mode has it loaded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = _wider(*args) if func in _ARITHMETIC else None
        if wide is None or (func in _IN_PLACE and wide is not args[0]):
            return func(*args, **(kwargs or {}))
        return wide if func in _IN_PLACE else _empty(wide, wide.shape)


_IN_PLACE = {torch.ops.aten.add_.Tensor, torch.ops.aten.mul_.Tensor}
_ARITHMETIC = {
    *_IN_PLACE,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.div.Tensor,
}


def _wider(x: Tensor, y: Any) -> Tensor | None:
    """Return the operand that a sum has shape, type and layout of, or None if that is not simply one of the two."""
    if not _is_plain(x):
        return None
    if isinstance(y, (int, float)):
        return x
    if not isinstance(y, Tensor) or not _is_plain(y) or x.dtype != y.dtype or x.dim() != y.dim():
        return None
    wide, other = (x, y) if x.numel() >= y.numel() else (y, x)
    return wide if all(b in (a, 1) for a, b in zip(wide.shape, other.shape, strict=True)) else None


def _is_plain(x: Tensor) -> bool:
    return x.is_meta and x.is_floating_point() and x.is_contiguous()


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
    training = [(module, module.training) for module in modules_by_name(model).values()]
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
