"""What one forward takes, written down: shapes and types, never data, but for small integers and plain arguments."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ifap.axes.dispatch import DispatchMode
from ifap.errors import PlanError, nearest
from ifap.forward import Inputs, children

_MAX_INPUT_ELEMENTS = 2**22
_INDEX_ELEMENTS = 2**8
"""What an integer among the inputs counts as: it is looked up, and stands for a vector."""
_MAX_STORED_VALUES = 4096
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip

Count = Annotated[int, Field(ge=0, lt=2**63)]


Fill = Literal["normal", "one", "zero"]


class Part(BaseModel):
    """A part of a plan: strict types, and nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class InputSpec(Part):
    """Shape, type and, for integers, range of one example input; floats are drawn, or all are one or zero."""

    kind: Literal["tensor"] = "tensor"
    shape: Annotated[list[Count], Field(fail_fast=True, max_length=16)]
    dtype: str
    high: Count = 1
    fill: Fill = "normal"


class InputValues(Part):
    """One small example input of integers as it is: which ids a text holds decides how a network reads it."""

    kind: Literal["values"] = "values"
    shape: Annotated[list[Count], Field(fail_fast=True, max_length=16)]
    dtype: str
    values: Annotated[list[int], Field(fail_fast=True, max_length=_MAX_STORED_VALUES)]


class InputConstant(Part):
    """An argument that is no tensor: a number, a flag, a word or nothing."""

    kind: Literal["constant"] = "constant"
    value: bool | int | float | Annotated[str, Field(max_length=256)] | None


class InputList(Part):
    """Positional inputs."""

    kind: Literal["list"] = "list"
    items: list[InputSpec | InputValues | InputConstant | InputList | InputDict]


class InputDict(Part):
    """Keyword inputs, a named tuple, or the fields of a namespace or dataclass."""

    kind: Literal["dict", "named", "namespace"] = "dict"
    items: dict[str, InputSpec | InputValues | InputConstant | InputList | InputDict]


AnyInput = InputSpec | InputValues | InputConstant | InputList | InputDict


def make_inputs(spec: AnyInput, seed: int = 0) -> Inputs:
    """Return inputs of the shapes and types that a plan names, random but for stored integers, on the CPU.

    Raises a PlanError if they would be too large, or a type is unknown.
    """
    if _elements(spec) > _MAX_INPUT_ELEMENTS:
        raise PlanError("example_inputs: the shapes are too large: one or a few samples are enough")
    return _make_inputs(spec, torch.Generator().manual_seed(seed))


def can_be_saved(example_inputs: Inputs) -> bool:
    """Whether a network with these example inputs can be saved: they must be few enough for whoever loads it."""
    return _elements(input_spec(example_inputs)) <= _MAX_INPUT_ELEMENTS


# --- writing --------------------------------------------------------------------------------------


def input_spec(inputs: Inputs) -> Any:
    """Return the description of example inputs."""
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        if dtype in ("int64", "int32", "bool") and 0 < inputs.numel() <= _MAX_STORED_VALUES:
            return InputValues(shape=list(inputs.shape), dtype=dtype, values=[int(v) for v in inputs.reshape(-1)])
        is_number = inputs.is_floating_point() or inputs.is_complex()
        high = 1 if is_number or inputs.numel() == 0 else int(inputs.max())
        return InputSpec(shape=list(inputs.shape), dtype=dtype, high=max(high, 0))
    if isinstance(inputs, Mapping):
        return InputDict(items={str(key): input_spec(value) for key, value in inputs.items()})
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return InputList(items=[input_spec(value) for value in inputs])
    if fields := children(inputs):
        kind: Literal["named", "namespace"] = "named" if isinstance(inputs, tuple) else "namespace"
        return InputDict(kind=kind, items={name: input_spec(value) for name, value in fields.items()})
    if inputs is None or isinstance(inputs, (bool, int, float, str)):
        return InputConstant(value=inputs)
    raise PlanError(
        "example inputs must be tensors, numbers, flags or words in tuples, lists, dicts or dataclasses, "
        f"not {type(inputs).__name__}; wrap the network in a module that takes these"
    )


def variants(spec: Any, dtype: torch.dtype | None = None) -> Iterator[Any]:
    """Yield descriptions of the same inputs: as they are, then floats that are all alike, then floats of another type.

    A forward may use floats as positions, and its weights may have been given another type since. `dtype` is the type
    of the network's weights.
    """
    typed = [] if dtype is None else [_changed(spec, dtype=str(dtype).removeprefix("torch."))]
    for each in (spec, *(other for other in typed if other != spec)):
        yield each
        for fill in ("one", "zero"):
            yield _changed(each, fill=fill)


def _changed(spec: Any, **values: str) -> Any:
    """Return the description of inputs whose floats are changed."""
    if isinstance(spec, InputDict):
        items = {key: _changed(value, **values) for key, value in spec.items.items()}
        return spec.model_copy(update={"items": items})
    if isinstance(spec, InputList):
        return InputList(items=[_changed(value, **values) for value in spec.items])
    is_floating = isinstance(spec, InputSpec) and _DTYPES[spec.dtype].is_floating_point
    return spec.model_copy(update=values) if is_floating else spec


# --- making ---------------------------------------------------------------------------------------


def _elements(spec: Any) -> int:
    """Return the elements of all inputs together, before any is made; those of integers count for more."""
    if isinstance(spec, InputDict):
        return sum(_elements(value) for value in spec.items.values())
    if isinstance(spec, InputList):
        return sum(_elements(value) for value in spec.items)
    if isinstance(spec, InputConstant):
        return 1
    dtype = _DTYPES.get(spec.dtype, torch.float32)
    return math.prod(spec.shape) * (1 if dtype.is_floating_point or dtype == torch.bool else _INDEX_ELEMENTS)


def _make_inputs(spec: Any, generator: torch.Generator) -> Any:
    if isinstance(spec, InputDict):
        items = {key: _make_inputs(value, generator) for key, value in spec.items.items()}
        return _KINDS[spec.kind](items)
    if isinstance(spec, InputList):
        return [_make_inputs(value, generator) for value in spec.items]
    if isinstance(spec, InputConstant):
        return spec.value
    if spec.dtype not in _DTYPES:
        raise PlanError(f"example_inputs: unknown dtype '{spec.dtype}': {nearest(spec.dtype, _DTYPES)}")
    dtype = _DTYPES[spec.dtype]
    if isinstance(spec, InputValues):
        if len(spec.values) != math.prod(spec.shape):
            raise PlanError(f"example_inputs: {len(spec.values)} values for the shape {spec.shape}")
        return torch.tensor(spec.values, dtype=torch.int64).to(dtype).view(spec.shape)
    is_number = dtype.is_floating_point or dtype.is_complex
    if is_number and spec.fill != "normal":
        return torch.full(spec.shape, int(spec.fill == "one"), dtype=dtype)
    if dtype.is_complex:
        return torch.randn(spec.shape, generator=generator, dtype=dtype)
    if is_number:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, spec.high + 1, spec.shape, generator=generator).to(dtype)


def _named(items: dict[str, Any]) -> Any:
    """Return a named tuple of the fields that a plan names."""
    try:
        return namedtuple("Inputs", items)(**items)
    except (ValueError, TypeError) as error:
        raise PlanError(f"example_inputs: {error}") from None


_KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": dict,
    "named": _named,
    "namespace": lambda items: SimpleNamespace(**items),
}


class CheckBoxIndices(DispatchMode):
    """Reject boxes whose sample index is out of range: kernels that pool inside boxes would read foreign memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "torchvision" and "roi_" in str(func):
            samples = args[1][:, 0]
            if bool(((samples < 0) | (samples >= args[0].shape[0])).any()):
                raise IndexError("a box is of a sample that there is not")
        return func(*args, **(kwargs or {}))
