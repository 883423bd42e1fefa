"""Call networks, read their outputs, and make copies so that the caller's network is never changed."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ifap.arguments import shown
from ifap.axes.attention import adopt
from ifap.axes.compiled import without_compiler
from ifap.axes.passes import modes
from ifap.axes.state import State, kept_state
from ifap.axes.tensors import USUAL, fields_of, keep_notes, laid_out_as, map_tensors
from ifap.closures import rebind
from ifap.errors import ConfigError, GraphError, IfapError, ScoreError, first_line, kind_and_line, nearest
from ifap.layers import modules_by_name
from ifap.trouble import is_resource_error

__all__ = ["map_tensors"]

_DEPTH = 3  # of objects within objects, such as a distribution around another
Inputs = Any  # a tensor, a tuple or list of arguments, or a dict of keyword arguments


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Run `model` on a copy of its inputs, which a forward may change in place; see `call_directly`."""
    with torch._C.DisableTorchFunction():  # copying is no call of the network's
        copied = map_tensors(inputs, _copied)
    return call_directly(model, copied)


def _copied(x: Tensor) -> Tensor:
    copy = x.clone()
    return copy if type(copy) is type(x) or isinstance(x, nn.Parameter) else copy.as_subclass(type(x))


def call_directly(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Run `model` on a tensor, on a tuple or list of arguments, or on a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        _check_length(model, inputs)
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def run_batch(model: nn.Module, batch: Inputs, number: int, data: str = "calibration") -> Any:
    """Run a network on a batch of a user's data, which must be on its device; see `on_batch` for errors."""
    with on_batch(number, data), without_compiler():
        return call(model, batch)


@contextmanager
def on_batch(number: int, data: str, kind: type[IfapError] = ScoreError) -> Iterator[None]:
    """Name the batch of a user's data on which a network or its loss fails inside the block.

    `number` counts from 1, and `data` says which data, such as ``"calibration"``. `kind` is the error to raise, for
    example if a batch holds labels or has another size.
    """
    try:
        yield
    except IfapError:
        raise
    except Exception as error:
        if is_resource_error(error):
            raise
        hint = "; give inputs without labels" if data == "calibration" and isinstance(error, TypeError) else ""
        who = "network" if data == "calibration" else "network or the loss"
        raise kind(f"the {who} fails on batch {number} of the {data} data: {kind_and_line(error)}{hint}") from error


def scalar(loss: Any) -> Tensor:
    """Return what a user's loss returned, or raise a `ConfigError` if it is not one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else shown(loss)
        raise ConfigError(f"loss must return a tensor with one number, not {found}")
    return loss.reshape(())


def _check_length(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise an error for a text that is too long; the network itself would only name an index."""
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


def children(tree: Any) -> dict[Any, Any]:
    """Return the items of a dict, tuple, list, namespace or dataclass by key; empty for a leaf."""
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    return fields_of(tree)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists, dicts, named tuples, namespaces and dataclasses, in order."""
    if isinstance(tree, Tensor):
        yield tree
    for value in children(tree).values():
        yield from tensors(value)


def task_tensors(model: nn.Module, outputs: Any, names: Sequence[str] | None = None) -> Iterator[Tensor]:
    """Yield the tensors of a network's outputs whose shape must stay.

    Tensors come in the order of the outputs, those inside of objects last. Objects of any class count, such as the
    boxes of a detector or a distribution, but not those that the network takes back as an argument of the same name,
    such as caches. `names` are the named outputs that count; all by default. Raises a ConfigError if the network does
    not return one of them.
    """
    if names is None:
        yield from tensors(outputs)
        yield from _inside_objects(outputs, _arguments(model))
        return
    named = {key: value for key, value in children(outputs).items() if isinstance(key, str) and value is not None}
    for name in names:
        if name not in named:
            raise ConfigError(f"outputs: the network returns no '{name}': {nearest(name, named)}")
    yield from tensors([named[name] for name in names])


def _arguments(model: nn.Module) -> set[str]:
    """Return the names of what a network takes; none where its forward does not say, such as a scripted one."""
    try:
        return set(inspect.signature(type(model).forward).parameters)
    except (AttributeError, TypeError, ValueError):
        return set()


def _inside_objects(tree: Any, taken_back: set[str]) -> Iterator[Tensor]:
    """Yield the tensors in attributes of objects that containers hold."""
    found = children(tree)
    if not found:
        yield from _attributes(tree, _DEPTH)
    for key, value in found.items():
        if key not in taken_back:
            yield from _inside_objects(value, taken_back)


def _attributes(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors among the attributes of an object, and of objects in its attributes down to some depth."""
    if not depth or isinstance(value, (Tensor, nn.Module, type)):
        return
    for held in getattr(value, "__dict__", {}).values():
        yield from tensors(held)
        if not children(held):
            yield from _attributes(held, depth - 1)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers: compiled, data-parallel and distributed modules."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer (the CPU for a network without any)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move every tensor of `inputs` to `device`."""
    return map_tensors(inputs, lambda tensor: tensor.to(device))


def placed(batch: Inputs, device: torch.device, number: int, data: str = "calibration") -> Inputs:
    """Move a batch of a user's data to a device; see `on_batch` for errors."""
    with on_batch(number, data):
        return to_device(batch, device)


def _in_containers(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples; other objects may not like to be asked what they hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _in_containers(each)


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy to prune; it keeps its own hooks and gradient flags but no gradients.

    Raises a GraphError if the network holds something that cannot be copied.
    """
    # Weights that hooks compute, and features that are kept, are results of autograd, which torch does not copy.
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for module in modules_by_name(model).values()
        for value in module.__dict__.values()
        for tensor in _in_containers(value)
        if tensor.grad_fn is not None
    }
    try:
        with torch.no_grad():  # torch copies the parameters of scripted modules by an operation
            twin = copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute raises that Python cannot copy, such as a lock
        if is_resource_error(error):
            raise
        where = _cannot_be_copied(model)
        held = f": attribute '{where}'" if where else ""
        raise GraphError(f"the network cannot be copied by copy.deepcopy ({first_line(error)}){held}") from error
    rebind(twin, memo)
    for mine, other in zip(twin.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(other.requires_grad)
        keep_notes(mine, other)  # torch copies values alone
    twin.zero_grad(set_to_none=True)
    return twin


def _cannot_be_copied(model: nn.Module) -> str:
    """Return the attribute that cannot be copied, empty if it is not a plain one."""
    for name, module in modules_by_name(model).items():
        for key, value in module.__dict__.items():
            if key in USUAL:
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # whatever an attribute raises
                return f"{name}.{key}" if name else key
    return ""


def refuse_empty(model: nn.Module) -> None:
    """Raise a `ScoreError` if a network has no values to run with."""
    name = next((name for name, tensor in model.named_parameters() if tensor.is_meta), None)
    if name is not None:
        raise ScoreError(f"'{name}' holds no values (it is on the meta device): load the weights before pruning")


def refuse_unmade(model: nn.Module) -> None:
    """Raise a `GraphError` if a lazy layer has not made its weights yet."""
    modules = modules_by_name(model)
    for layer, module in modules.items():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise GraphError(f"layer '{layer}' has not made its weights yet: run the network once on a sample before")
    for layer, module in modules.items():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        held = (module._parameters, module._buffers, module.__dict__)
        is_made = parametrize.is_parametrized(module)  # in training it must not be asked for
        if not is_made and not any("weight" in each for each in held):
            raise GraphError(f"layer '{layer}' has no weight before the first forward: run the network once before")


def copy_to_prune(model: nn.Module) -> nn.Module:
    """Return a copy whose attention modules of torch read their widths from their weights."""
    refuse_unmade(model)
    twin = private_copy(model)
    adopt(twin)
    _lay_out(twin)
    return twin


def _lay_out(model: nn.Module) -> None:
    """Give weights the memory format of a loaded network: the rounding of sums depends on it."""
    users = Counter(
        weight.untyped_storage().data_ptr() for weight in model.parameters() if weight.layout is torch.strided
    )
    for weight in model.parameters():
        if weight.layout is not torch.strided or users[weight.untyped_storage().data_ptr()] > 1:
            continue
        weight.data = laid_out_as(weight.data, weight)


@contextmanager
def dense_outputs(model: nn.Module) -> Iterator[None]:
    """Let networks with an attribute ``is_dense``, such as detectors, return outputs of a fixed shape inside the block.

    How many boxes a detector returns depends on what it sees, and choosing them cannot be traced:
    what they are chosen from is traced, counted and compared instead.
    """
    found: list[Any] = [
        module
        for module in modules_by_name(model).values()
        if "is_dense" in module.__dict__ or hasattr(type(module), "is_dense")
    ]
    before = [(module, module.is_dense) for module in found]
    for module, _ in before:
        module.is_dense = True
    try:
        yield
    finally:
        for module, was_dense in before:
            module.is_dense = was_dense


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back to the mode that each had."""
    with modes(model, training=False):
        yield


@contextmanager
def reading(model: nn.Module) -> Iterator[State]:
    """Put a network in evaluation mode, and its modes and its state back: a forward may keep what it saw."""
    with kept_state(model) as state, evaluation_mode(model):
        yield state
