"""Run a network under the tracer: first without data, on real tensors if the forward looks at values."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_hook

from ifap.axes.attention import adopted
from ifap.axes.calls import SizeMode, listening
from ifap.axes.compiled import without_compiler
from ifap.axes.fakes import CPU, META, RUNNING_MODES, Shapes, data_free_like, forget
from ifap.axes.operations.base import PRODUCTS, RULES
from ifap.axes.operations.values import pointwise
from ifap.axes.running import Running
from ifap.axes.sizes import Key, Origin, Place, Recorder, Size, recording
from ifap.axes.state import kept_state, unchanged
from ifap.axes.tensors import (
    USUAL,
    holders,
    is_of_torch,
    map_tensors,
    named_tensors,
    once,
    plain_tensors,
    replaced_tensors,
)
from ifap.axes.trace import Axes, Forward, Tracer, pin_outputs, start, tie_renewed
from ifap.axes.training import differs_in_training, may_write_weights, recalled, sizes_of_calls
from ifap.axes.unreached import follow_siblings, not_reached
from ifap.errors import ConfigError, GraphError, IfapError, kind_and_line
from ifap.layers import modules_by_name
from ifap.trouble import is_resource_error

Inputs = Any
T = TypeVar("T")
Outputs = Callable[[Any], Iterable[Tensor]]
Call = Callable[[nn.Module, Inputs], Any]
Kind = Literal["first", "training", "sample", "modules"]
"""A pass: the first, which also records costs and output shapes; one in training mode; one on a further sample; one
that repeats another to record the axes that each module handles."""

_TORCH_SIZES = (
    "d_model", "groups", "num_groups", "normalized_shape", "num_features", "input_size", "hidden_size", "proj_size",
    "in_channels", "out_channels", "in_features", "out_features", "embedding_dim",
)  # fmt: skip
MOST_SAMPLES = 8
"""Most samples that are read to reach layers that the example inputs do not reach."""
_NOT_SEARCHED = (type, ModuleType, FunctionType, BuiltinFunctionType)
_SKIPPED = {*USUAL, "call_super_init", "dump_patches"}
_HOLD_SIZES = (int, tuple, list, dict)
_MOST_ITEMS, _DEEPEST = 64, 4  # items of a container that may hold sizes; parts of the key of one


def trace_axes(
    model: nn.Module, example_inputs: Inputs, call: Call, outputs: Outputs, samples: Iterable[Inputs] = ()
) -> tuple[Axes, dict[Key, int]]:
    """Trace the axes of a network; it is left as it was. Returns also the value of each integer attribute.

    `call` runs a network on inputs. `outputs` yields those tensors of its result whose shape must stay. `samples` are
    further inputs, for layers that the example inputs do not reach; at most `MOST_SAMPLES` are read. Raises a
    GraphError if the network does not run on its example inputs.
    """
    found = _without_values(model, example_inputs, call, outputs, samples)
    empty_caches()
    if found is not None:
        return found
    # The forward looks at values, which data-free tensors do not have: run it for real.
    try:
        found = _traced(model, example_inputs, call, outputs, samples, fake=False)
    except Exception as error:
        if is_resource_error(error) or isinstance(error, IfapError):
            raise
        raise GraphError(f"the network does not run on its example inputs: {kind_and_line(error)}") from error
    empty_caches()
    return found


def _without_values(
    model: nn.Module, example_inputs: Inputs, call: Call, outputs: Outputs, samples: Iterable[Inputs]
) -> tuple[Axes, dict[Key, int]] | None:
    """Trace a network with tensors without data; None if its forward does not run on them."""
    try:
        return _traced(model, example_inputs, call, outputs, samples, fake=True)
    except Exception as error:
        if is_resource_error(error) or isinstance(error, ConfigError):
            raise
        return None


def _traced(
    model: nn.Module, example_inputs: Inputs, call: Call, outputs: Outputs, samples: Iterable[Inputs], *, fake: bool
) -> tuple[Axes, dict[Key, int]]:
    """Trace a network; if parameters are not reached, also in training and on further samples. It is left as it was."""
    axes = Axes(Forward(values=not fake))
    with adopted(model), unchanged(model):
        attributes = _remember_attributes(model)
        read = partial(_pass, model, call=call, outputs=outputs, axes=axes)
        read(example_inputs, "first", fake=fake)
        missing = not_reached(model, axes)
        if missing or may_write_weights(model):
            _read_further(axes, read, example_inputs, "training", fake=True)
        if missing and not_reached(model, axes):
            _read_samples(samples, model, example_inputs, axes, read)
            if not_reached(model, axes):
                for given in (example_inputs, *axes.forward.samples):
                    _read_either_way(axes, read, given, "modules")
                follow_siblings(model, axes)
    if differs_in_training(model):
        wanted = sizes_of_calls(axes.recorders[0], attributes)
        axes.unsteady, axes.forward.training_shapes = _in_training(model, example_inputs, call, outputs, wanted)
    return axes, attributes


def _in_training(
    model: nn.Module, inputs: Inputs, call: Call, outputs: Outputs, wanted: dict[Place, Any]
) -> tuple[set[Place], list[tuple[int, ...]] | None]:
    """Return the calls whose sizes differ in training, and the output shapes there; None if the forward fails."""

    def run(given: Inputs) -> tuple[set[Place], list[tuple[int, ...]]]:
        return recalled(model, lambda: [tuple(x.shape) for x in outputs(call(model, given))], wanted)

    try:
        return run_in_training(model, inputs, run)
    except Exception as error:  # any error of a forward that needs targets in training
        if is_resource_error(error):
            raise
        return set(), None


def run_in_training(model: nn.Module, inputs: Inputs, run: Callable[[Inputs], T]) -> T:
    """Run a network in training, without data if possible; it learns nothing and is left as it was.

    Batch norms and dropout stay in evaluation. ``run(inputs)`` runs the network and makes the result. It gets inputs
    without data first; if that fails it gets the real ones, and its errors on these are raised.
    """
    try:
        with _as_in_training(model), data_free(model, inputs) as (given, _), Shapes():
            return run(given)
    except Exception as error:  # any error of a forward that looks at values
        if is_resource_error(error):
            raise
    with kept_state(model, parameters=True), _as_in_training(model):
        return run(inputs)


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    with unchanged(model), modes(model, training=True), torch.no_grad(), plain_kernels(), torch.random.fork_rng():
        torch.manual_seed(0)  # random numbers may decide which calls a forward makes
        yield


def _pass(
    model: nn.Module,
    inputs: Inputs,
    kind: Kind,
    *,
    call: Call,
    outputs: Outputs,
    axes: Axes,
    fake: bool,
) -> None:
    """Run one forward under the tracer."""
    running, recorder = Running(modules_by_name(model)), Recorder()
    tracer = Tracer(axes, running, RULES, pointwise, PRODUCTS)
    tracer.counts_products, tracer.sees = kind == "first", kind == "modules"
    with ExitStack() as stack:
        stack.enter_context(modes(model, training=kind == "training"))
        stack.enter_context(torch.no_grad())
        if fake:
            inputs, tensors = stack.enter_context(data_free(model, inputs))
        else:
            tensors = named_tensors(model)
            stack.callback(_forget, list(tensors.values()))
        # After the data-free tensors: to make the first of them loads torch's compiler.
        stack.enter_context(plain_kernels())
        with torch._C.DisableTorchFunction():
            start(axes, tensors)
        stack.enter_context(running)
        if tracer.sees:
            stack.callback(register_module_forward_hook(tracer.hand_back).remove)
        stack.enter_context(recording(recorder))
        stack.enter_context(tracer)
        stack.enter_context(SizeMode(tracer, recorder))
        stack.enter_context(listening())
        found = call(model, inputs)
        with torch._C.DisableTorchFunction():
            shapes = pin_outputs(outputs(found), tracer)
            tie_renewed(tensors, plain_tensors(model), tracer)
    if kind == "first":
        axes.forward.output_shapes = shapes
    axes.recorders.append(recorder)


@contextmanager
def data_free(model: nn.Module, inputs: Inputs) -> Iterator[tuple[Inputs, dict[str, Tensor]]]:
    """Let a network hold tensors without data inside the block.

    Yields the inputs without data, and the tensors without data of the network by name.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    held = list(holders(model))
    tensors = once(held)
    _MODES_TO_CHECK.append(weakref.ref(mode))
    with torch._C.DisableTorchFunction():  # these are no calls of the network
        fakes = {id(tensor): _fake(mode, tensor) for tensor in tensors.values()}
        given = map_tensors(inputs, lambda x: _fake(mode, x))
    with _quiet(), mode, replaced_tensors(held, fakes):
        RUNNING_MODES.append(mode)
        try:
            yield given, {name: fakes[id(tensor)] for name, tensor in tensors.items()}
        finally:
            forget(RUNNING_MODES.pop())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging errors of its data-free kernels: the forward is run on the real tensors then."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


_MODES_TO_CHECK: list[weakref.ref[FakeTensorMode]] = []
"""The modes of all data-free forwards since `empty_caches` last ran."""


Read = Callable[..., None]
"""Runs one forward under the tracer; see `_pass`."""


def _read_further(axes: Axes, read: Read, inputs: Inputs, kind: Kind, *, fake: bool) -> bool:
    """Run a further pass; returns False, and forgets what it recorded, if the forward fails."""
    kept = copy.copy(axes.recorders), copy.copy(axes.ties)
    try:
        read(inputs, kind, fake=fake)
    except Exception as error:  # any error of a forward that needs targets in training, or looks at values
        if is_resource_error(error):
            raise
        axes.recorders, axes.ties = kept
        return False
    if kind == "modules":
        axes.recorders, axes.ties = kept
    return True


def _read_either_way(axes: Axes, read: Read, inputs: Inputs, kind: Kind) -> bool:
    """Read data-free inputs where the forward does not look at values, and the real ones where that fails."""
    is_read = not axes.forward.values and _read_further(axes, read, inputs, kind, fake=True)
    return is_read or _read_further(axes, read, inputs, kind, fake=False)


def _read_samples(samples: Iterable[Inputs], model: nn.Module, example_inputs: Inputs, axes: Axes, read: Read) -> None:
    """Look for samples that reach parameters that the example inputs do not reach, and keep them."""
    known = {_form(example_inputs)}
    for sample in itertools.islice(samples, MOST_SAMPLES):
        missing = not_reached(model, axes)
        if not missing:
            return
        if not axes.forward.values and _form(sample) in known:
            continue  # a forward that does not look at values does the same
        known.add(_form(sample))
        if _read_either_way(axes, read, sample, "sample"):
            axes.forward.samples += [sample] if not_reached(model, axes) != missing else []


def _form(inputs: Inputs) -> str:
    """Return the shapes and types of the inputs of a forward, and its other arguments, as text."""
    return repr(map_tensors(inputs, lambda x: (tuple(x.shape), x.dtype)))


def _forget(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.__dict__.pop("_carried", None)


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Return a tensor without data; made directly, which takes a tenth of the time of torch's own way."""
    kind = type(tensor)
    if kind not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_quantized:
        return mode.from_tensor(tensor)
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
    # A network on the meta device is run as if it were on the device of its inputs.
    fake = data_free_like(mode, empty, CPU if tensor.is_meta else tensor.device)
    if kind is nn.Parameter:
        fake._is_param = True
    return fake


@contextmanager
def modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in one mode inside the block, and back to the mode that each had."""
    before = [(module, module.training) for module in modules_by_name(model).values()]
    if training or any(mode for _, mode in before):
        model.train(training)
    for module, _ in before:
        if training and isinstance(module, (_BatchNorm, _DropoutNd)):
            module.training = False  # one sample has no variance, and nothing is to be dropped
    try:
        yield
    finally:
        for module, mode in before:
            if module.training != mode:
                module.training = mode


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Compute attention and recurrent layers by plain products: fused kernels are opaque."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    recurrent = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), without_compiler(both=True):
            yield
    finally:
        torch._C._set_mkldnn_enabled(recurrent)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def empty_caches() -> None:
    """Empty the caches of functions that hold a tensor without data. Call it after a forward has released its own."""
    if any(mode() is not None for mode in _MODES_TO_CHECK):
        gc.collect(1)  # torch leaves some in young cycles
    leaked = any(mode() is not None for mode in _MODES_TO_CHECK)
    _MODES_TO_CHECK.clear()
    if not leaked:
        return
    for each in gc.get_objects():
        if type(each) is functools._lru_cache_wrapper and each.cache_info().currsize and _holds_data_free(each):
            each.cache_clear()


def _holds_data_free(cache: Any, depth: int = 5) -> bool:
    """Whether a cached result is or contains a tensor without data; other caches stay, as libraries rely on them."""
    level, seen = [cache], set[int]()
    for _ in range(depth):
        inner = [each for each in gc.get_referents(*level) if not isinstance(each, _NOT_SEARCHED)]
        if any(isinstance(each, FakeTensor) for each in inner):
            return True
        level = [each for each in inner if id(each) not in seen]
        seen.update(map(id, level))
    return False


# --- leaving the network as it was ----------------------------------------------------------------


def _remember_attributes(model: nn.Module) -> dict[Key, int]:
    """Replace integer attributes by numbers that remember their key; `unchanged` undoes it. Returns their values."""
    found: dict[Key, int] = {}
    for name, module in modules_by_name(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        attributes = module.__dict__
        keys = [key for key in _TORCH_SIZES if key in attributes] if is_of_torch(module) else list(attributes)
        for key in keys:
            if key in _SKIPPED:
                continue
            value = attributes[key]
            traced = _remembered((name, key), value, found)
            if traced is not value:
                attributes[key] = traced
    return found


def _remembered(key: Key, value: Any, found: dict[Key, int]) -> Any:
    if type(value) is int:
        found[key] = value
        return Size(value, Origin("attribute", (key, value)))
    if type(value) in (tuple, list, dict):
        return _remembered_items(key, value, found)
    if is_settings(value) and len(key) == 2:
        twin = copy.copy(value)
        for inner, item in list(vars(value).items()):
            if type(item) is int:
                vars(twin)[inner] = _remembered((*key, inner), item, found)
        return twin
    return value


def _remembered_items(key: Key, value: Any, found: dict[Key, int]) -> Any:
    """Return a container in which integers remember their key, or the container itself if it holds none."""
    items = value if isinstance(value, dict) else dict(enumerate(value))
    if not 0 < len(items) <= _MOST_ITEMS or len(key) >= _DEEPEST:
        return value
    traced = {
        place: _remembered((*key, place), item, found)
        if type(item) in _HOLD_SIZES and type(place) in (int, str)
        else item
        for place, item in items.items()
    }
    if all(traced[place] is item for place, item in items.items()):
        return value
    return traced if isinstance(value, dict) else type(value)(traced.values())


def is_settings(value: Any) -> bool:
    """Whether an attribute is an object of settings: plain attributes, no tensors and no code."""
    if isinstance(value, (nn.Module, Tensor, type, dict, list, tuple, set, str)) or callable(value):
        return False
    if type(value).__module__.split(".")[0] in ("torch", "builtins", "numpy", "collections", "functools", "enum"):
        return False
    return hasattr(value, "__dict__") and not isinstance(getattr(type(value), "__dict__", {}).get("__slots__"), tuple)
