"""Save and load pruned networks: ``weights.safetensors`` and ``plan.json``, nothing else, no pickle.

Loading builds the unpruned network, gives its tensors the stored shapes, derives every width and
number of heads from them and checks the result against a stored output. No graph and no data are
needed. A wrong, truncated or hostile file raises one `PlanError`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ifap.attention import fused_attention, num_heads, projection_layers, split_attention
from ifap.costs import Cost, cost
from ifap.errors import PlanError, nearest
from ifap.families import sync
from ifap.files import beside, read_bounded
from ifap.layers import cut, refresh, replace_tensor, sides
from ifap.tracing import (
    Inputs,
    call,
    dense_outputs,
    device_of,
    evaluation_mode,
    is_trouble,
    task_tensors,
    to_device,
)

if TYPE_CHECKING:
    from ifap.graph import Graph
    from ifap.pruning import Pruned

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = 1
# A plan may come from anyone. These bounds keep what loading it takes near the size of the network that it names:
# Python needs up to ten times a file's size for numbers and forty times for small containers, and one forward of a
# convolutional network some dozens of times its input's.
_MAX_PLAN_BYTES = 32 * 2**20
_MAX_PLAN_PARTS = 400_000
_MAX_WEIGHTS_BYTES = 2**38
_MAX_INPUT_ELEMENTS = 2**22
_INDEX_ELEMENTS = 2**8
"""What an integer among the inputs counts as: it is looked up, and stands for a vector."""
_MAX_STORED_VALUES = 4096
_FINGERPRINT_VALUES = 64
_MASK = "mask:"
"""Before the name of a mask in the weights file; no module of torch has a colon in its name."""
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool,
)}  # fmt: skip

Count = Annotated[int, Field(ge=0, lt=2**63)]
# One wrong entry is enough: a list of a million would be a million errors.
Positions = Annotated[list[Count], Field(fail_fast=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Builder(_Part):
    """Who builds the unpruned network: an id that the caller understands, and its arguments."""

    id: str | None = None
    args: dict[str, Any] = {}


class InputSpec(_Part):
    """Shape, type and, for integers, range of one example input."""

    kind: Literal["tensor"] = "tensor"
    shape: Annotated[list[Count], Field(fail_fast=True, max_length=16)]
    dtype: str
    high: Count = 1


class InputValues(_Part):
    """One small example input of integers as it is: which ids a text holds decides how a network reads it."""

    kind: Literal["values"] = "values"
    shape: Annotated[list[Count], Field(fail_fast=True, max_length=16)]
    dtype: str
    values: Annotated[list[int], Field(fail_fast=True, max_length=_MAX_STORED_VALUES)]


class InputList(_Part):
    """Positional inputs."""

    kind: Literal["list"] = "list"
    items: list[InputSpec | InputValues | InputList | InputDict]


class InputDict(_Part):
    """Keyword inputs."""

    kind: Literal["dict"] = "dict"
    items: dict[str, InputSpec | InputValues | InputList | InputDict]


AnyInput = InputSpec | InputValues | InputList | InputDict


class Costs(_Part):
    """MACs and parameters, before and after."""

    macs_before: Count
    macs_after: Count
    params_before: Count
    params_after: Count


class LayerMask(_Part):
    """How many weights of a layer are kept, and how many there are."""

    kept: Count
    size: Count


class Plan(_Part):
    """Which units of which layer were kept, in order, and what it takes to rebuild the network.

    Parameters
    ----------
    builder : Builder
        Who builds the unpruned network.
    split_attention : list of str
        Attention modules that were split so that they can lose heads.
    kept : dict of str to dict of str to list of int
        Layer, then side, to the positions of the unpruned network that are left; layers and sides
        that lost nothing are not listed.
    heads : dict of str to int
        Number of heads of each attention module.
    example_inputs : InputSpec or InputValues or InputList or InputDict
        What one forward takes.
    costs : Costs
        MACs and parameters before and after.
    shared : dict of str to str
        Tensors that are another tensor under a second name.
    fingerprint : list of float
        Outputs on an input that follows from `example_inputs`.
    sparsity : dict of str to LayerMask
        Weights that are masked: their masks are in the weights file, as packed bits.
    weights_sha256 : str
        Checksum of the weights file.
    versions : dict of str to str
        Libraries that wrote the file.
    """

    format: Literal[1] = 1
    builder: Builder = Builder()
    split_attention: list[str] = []
    kept: dict[str, dict[str, Positions]] = {}
    heads: dict[str, Count] = {}
    example_inputs: Annotated[AnyInput, Field(discriminator="kind")]
    costs: Costs
    shared: dict[str, str] = {}
    fingerprint: Annotated[list[float], Field(fail_fast=True, max_length=_FINGERPRINT_VALUES)] = []
    sparsity: dict[str, LayerMask] = {}
    weights_sha256: str = ""
    versions: dict[str, str] = {}


# --- public ---------------------------------------------------------------------------------------


def save(pruned: Pruned, folder: str | Path) -> None:
    """Save a pruned network as ``weights.safetensors`` and ``plan.json``.

    Parameters
    ----------
    pruned : Pruned
        What `ifap.prune` returned; its network may have been trained further.
    folder : str or Path
        Where to; made if it does not exist. Files there are replaced at once, never half written.
    """
    write_network(pruned.model, pruned.plan, folder)


def load(folder: str | Path, builder: Callable[[], nn.Module]) -> nn.Module:
    """Load a network that `save` wrote.

    Parameters
    ----------
    folder : str or Path
        The folder with the two files.
    builder : callable
        Makes the unpruned network; its weights do not matter.

    Returns
    -------
    nn.Module
        The pruned network, on the device of the built one, in evaluation mode.

    Raises
    ------
    PlanError
        If a file is missing, damaged or hostile, or belongs to another network.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    weights = _read_weights(folder / WEIGHTS_FILE, plan)
    _take_masks(weights, plan, folder)
    model = builder()
    if not isinstance(model, nn.Module):
        raise PlanError(f"{folder}: the builder returned {type(model).__name__}, not a network")
    try:
        _rebuild(model, plan, weights)
        model.eval()
        values = _fingerprint(model, plan.example_inputs)
    except PlanError as error:
        raise PlanError(f"{folder}: {error}") from None
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        if is_trouble(error):
            raise
        raise PlanError(f"{folder}: does not fit the network that the builder makes ({_one_line(error)})") from None
    _compare(values, plan.fingerprint, folder)
    return model


def read_plan(folder: str | Path) -> Plan:
    """Read and check ``plan.json`` alone.

    Raises
    ------
    PlanError
        If it is missing, damaged or hostile.
    """
    path = Path(folder) / PLAN_FILE
    try:
        content = read_bounded(path, _MAX_PLAN_BYTES)
        if sum(map(content.count, b'[{"')) > _MAX_PLAN_PARTS:
            raise PlanError(f"{path}: more than {_MAX_PLAN_PARTS} names and lists")
        return Plan.model_validate(json.loads(content.decode(), object_pairs_hook=_once_each))
    except FileNotFoundError:
        raise PlanError(f"{path}: file not found") from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{path}: {location[:200]}: {first['msg'][:200]}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{path}: not valid JSON ({_one_line(error)})") from None


def read_masks(folder: str | Path) -> dict[str, Tensor]:
    """Read the masks of a network whose single weights were masked; empty for any other.

    Parameters
    ----------
    folder : str or Path
        The folder with the two files.

    Returns
    -------
    dict of str to Tensor
        Weight to a boolean tensor of its shape; True is kept.

    Raises
    ------
    PlanError
        If a file is missing, damaged or hostile, or a masked weight is not zero.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    return _take_masks(_read_weights(folder / WEIGHTS_FILE, plan), plan, folder) if plan.sparsity else {}


def make_inputs(spec: AnyInput, seed: int = 0) -> Inputs:
    """Return inputs of the shapes and types that a plan names, random but for stored integers, on the CPU.

    Raises
    ------
    PlanError
        If they would be too large, or a type is unknown.
    """
    if _elements(spec) > _MAX_INPUT_ELEMENTS:
        raise PlanError("example_inputs: the shapes are too large: one or a few samples are enough")
    return _make_inputs(spec, torch.Generator().manual_seed(seed))


def can_be_saved(example_inputs: Inputs) -> bool:
    """Whether a network with these example inputs can be saved: they must be few enough for whoever loads it."""
    return _elements(_input_spec(example_inputs)) <= _MAX_INPUT_ELEMENTS


def unpruned_plan(model: nn.Module, example_inputs: Inputs, builder: Builder | None = None) -> Plan:
    """Return the plan of a network that lost nothing, for saving a baseline in the same format."""
    whole = cost(model, example_inputs)
    return _plan(model, example_inputs, whole, whole, kept={}, split=[], builder=builder or Builder())


def pruned_plan(
    model: nn.Module, graph: Graph, split: list[str], example_inputs: Inputs, before: Cost, after: Cost
) -> Plan:
    """Return the plan of a network that `graph` describes.

    Parameters
    ----------
    model : nn.Module
        The pruned network.
    graph : Graph
        Its units; knows which positions are left.
    split : list of str
        Attention modules that were split.
    example_inputs : Tensor, tuple, list or dict
        What one forward takes.
    before, after : Cost
        Costs of the unpruned and of the pruned network.
    """
    kept: dict[str, dict[str, list[int]]] = {}
    for slot, left, width in zip(graph.slots, graph.kept, graph.original_widths, strict=True):
        if len(left) < width:
            kept.setdefault(slot.name, {})[slot.side] = left.tolist()
    return _plan(model, example_inputs, before, after, kept=kept, split=split, builder=Builder())


def sliced_plan(
    model: nn.Module,
    kept: dict[str, dict[str, list[int]]],
    split: list[str],
    example_inputs: Inputs,
    before: Cost,
    after: Cost,
) -> Plan:
    """Return the plan of a network that was cut without a graph; `kept` and `split` are what `Plan` says of them."""
    return _plan(model, example_inputs, before, after, kept=kept, split=split, builder=Builder())


def write_network(model: nn.Module, plan: Plan, folder: str | Path, masks: Mapping[str, Tensor] | None = None) -> None:
    """Write a network and its plan, with a fresh fingerprint, checksum and costs.

    Parameters
    ----------
    model : nn.Module
        A network with the structure that `plan` describes.
    plan : Plan
        From `ifap.prune`, `unpruned_plan` or `read_plan`.
    folder : str or Path
        Where to.
    masks : mapping of str to Tensor, optional
        Boolean masks of single weights, by name; False entries of the weights must be zero.
    """
    state, shared = _state(model)
    masks = masks or {}
    sparsity = {name: LayerMask(kept=int(mask.sum()), size=mask.numel()) for name, mask in masks.items()}
    _check_masked(state, masks)
    content = save_safetensors({**state, **{_MASK + name: _packed(mask) for name, mask in masks.items()}})
    plan = plan.model_copy(
        update={
            "fingerprint": _finite(_fingerprint(model, plan.example_inputs)),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "shared": shared,
            "sparsity": sparsity,
            "versions": _versions(),
        }
    )
    # A plan without masks stays the text that it was before there were any.
    text = plan.model_dump_json(indent=1, exclude=None if sparsity else {"sparsity"})
    _replace_files(Path(folder), {WEIGHTS_FILE: content, PLAN_FILE: (text + "\n").encode()})


# --- writing --------------------------------------------------------------------------------------


def _plan(
    model: nn.Module,
    example_inputs: Inputs,
    before: Cost,
    after: Cost,
    *,
    kept: dict[str, dict[str, list[int]]],
    split: list[str],
    builder: Builder,
) -> Plan:
    return Plan(
        builder=builder,
        split_attention=split,
        kept=kept,
        heads=_heads(model),
        example_inputs=_input_spec(example_inputs),
        costs=Costs(
            macs_before=before.macs, macs_after=after.macs, params_before=before.params, params_after=after.params
        ),
    )


def _heads(model: nn.Module) -> dict[str, int]:
    fused = fused_attention(model)
    return {
        name: num_heads(module) for name, module in model.named_modules() if projection_layers(module) or name in fused
    }


def _input_spec(inputs: Inputs) -> Any:
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        if dtype in ("int64", "int32", "bool") and 0 < inputs.numel() <= _MAX_STORED_VALUES:
            return InputValues(shape=list(inputs.shape), dtype=dtype, values=[int(v) for v in inputs.reshape(-1)])
        high = 1 if inputs.is_floating_point() or inputs.numel() == 0 else int(inputs.max())
        return InputSpec(shape=list(inputs.shape), dtype=dtype, high=max(high, 0))
    if isinstance(inputs, dict):
        return InputDict(items={str(key): _input_spec(value) for key, value in inputs.items()})
    if isinstance(inputs, (tuple, list)):
        return InputList(items=[_input_spec(value) for value in inputs])
    raise PlanError(f"example inputs must be tensors in tuples, lists or dicts, not {type(inputs).__name__}")


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor of the state once, and the second names of those that have two."""
    state: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    owners: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in owners:
            shared[name] = owners[key]
        else:
            owners[key] = name
            state[name] = tensor.detach().cpu().contiguous()
    return state, shared


def _replace_files(folder: Path, files: dict[str, bytes]) -> None:
    """Put files into a folder: all are written under temporary names before the first is renamed."""
    with beside(folder, folder=True) as temporary:
        for name, content in files.items():
            with open(temporary / name, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
        else:
            for name in files:
                os.replace(temporary / name, folder / name)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("ifap", "torch", "torch-pruning", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


# --- reading --------------------------------------------------------------------------------------


def _read_weights(path: Path, plan: Plan) -> dict[str, Tensor]:
    try:
        content = read_bounded(path, _MAX_WEIGHTS_BYTES)
    except FileNotFoundError:
        raise PlanError(f"{path}: file not found") from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != plan.weights_sha256:
        raise PlanError(
            f"{path}: checksum differs from the one in {PLAN_FILE}: truncated, changed or from another save"
        )
    try:
        return load_safetensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise PlanError(f"{path}: not a valid safetensors file ({_one_line(error)})") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; which of two equal names counts is nothing to guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"'{name[:40]}' stands there twice")
    return found


def _rebuild(model: nn.Module, plan: Plan, weights: dict[str, Tensor]) -> None:
    """Give `model` the structure of the plan and the stored weights, in place."""
    missing = set(plan.split_attention) - set(split_attention(model, plan.split_attention))
    if missing:
        raise PlanError(f"the network has no attention module '{min(missing)}' to split")
    original = _slot_widths(model)
    _check_kept(plan, original)
    targets = model.state_dict()
    _check_names(weights, plan, targets)
    tied = [pair for pair in plan.shared.items() if _held(model, pair[0]) is _held(model, pair[1])]
    for name, stored in weights.items():
        _resize(model, name, targets[name], stored)
    for alias, name in tied:
        parent, _, leaf = alias.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _held(model, name))
    _cut_unsaved(model, plan, weights)
    for module in model.modules():
        if sides(module):
            refresh(module)
    sync(model)
    model.load_state_dict({**weights, **{alias: weights[name] for alias, name in plan.shared.items()}})
    _check_widths(model, plan, original)


def _check_names(weights: dict[str, Tensor], plan: Plan, targets: dict[str, Any]) -> None:
    names = {*weights, *plan.shared}
    for alias, name in plan.shared.items():
        if name not in weights:
            raise PlanError(f"shared tensor '{alias}' refers to '{name}', which is not stored")
    for name in sorted(names - set(targets)):
        raise PlanError(f"the network has no tensor '{name}': {nearest(name, targets)}")
    for name in sorted(set(targets) - names):
        raise PlanError(f"tensor '{name}' of the network is not stored")


def _resize(model: nn.Module, name: str, old: Tensor, stored: Tensor) -> None:
    if stored.dtype != old.dtype:
        raise PlanError(f"tensor '{name}' is stored as {stored.dtype}, the network has {old.dtype}")
    if stored.dim() != old.dim() or any(new > whole for new, whole in zip(stored.shape, old.shape, strict=True)):
        raise PlanError(f"tensor '{name}' is stored as {list(stored.shape)}, which cannot come from {list(old.shape)}")
    if stored.shape != old.shape:
        parent, _, leaf = name.rpartition(".")
        empty = torch.empty(stored.shape, dtype=stored.dtype, device=old.device)
        replace_tensor(model.get_submodule(parent), leaf, empty)


def _held(model: nn.Module, name: str) -> Any:
    """Return the parameter or buffer that a network holds under a name."""
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def _cut_unsaved(model: nn.Module, plan: Plan, weights: dict[str, Tensor]) -> None:
    """Cut what has a width but no stored tensor: norms without weights, buffers that are not saved."""
    modules, stored = dict(model.named_modules()), {*weights, *plan.shared}
    for name, by_side in plan.kept.items():
        keep = {side: torch.tensor(left) for side, left in by_side.items()}
        if name not in modules:
            if name not in stored:
                from ifap.graph import cut_bare_tensor  # the tracer, which most networks load without

                cut_bare_tensor(model, name, keep)
        elif not any(key.rpartition(".")[0] == name for key in stored):
            cut(modules[name], keep)


def _slot_widths(model: nn.Module) -> dict[tuple[str, str], int]:
    widths = {(name, side): size for name, module in model.named_modules() for side, size in sides(module).items()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        widths.update({(name, f"dim{dim}"): size for dim, size in enumerate(tensor.shape)})
    return widths


def _check_kept(plan: Plan, original: dict[tuple[str, str], int]) -> None:
    for name, by_side in plan.kept.items():
        for side, left in by_side.items():
            width = original.get((name, side))
            if width is None:
                raise PlanError(f"kept: the network has no '{side}' side of '{name}'")
            ascending = all(a < b for a, b in itertools.pairwise(left))
            if not left or not ascending or left[-1] >= width:
                raise PlanError(f"kept: '{name}' {side}: positions must ascend within 0..{width - 1}")


def _check_widths(model: nn.Module, plan: Plan, original: dict[tuple[str, str], int]) -> None:
    present = _slot_widths(model)
    for (name, side), width in original.items():
        left = plan.kept.get(name, {}).get(side)
        expected = width if left is None else len(left)
        if (left is not None or not side.startswith("dim")) and present[name, side] != expected:
            raise PlanError(f"'{name}' {side}: {present[name, side]} units stored, {expected} in the plan")
    if _heads(model) != plan.heads:
        raise PlanError("the numbers of attention heads differ from those in the plan")


# --- masks ----------------------------------------------------------------------------------------


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _take_masks(weights: dict[str, Tensor], plan: Plan, folder: Path) -> dict[str, Tensor]:
    """Take the masks that the plan lists out of the stored tensors, and check them against the weights."""
    masks: dict[str, Tensor] = {}
    for name, layer in plan.sparsity.items():
        weight, packed = weights.get(name), weights.pop(_MASK + name, None)
        if weight is None or packed is None:
            raise PlanError(f"{folder}: sparsity: '{name}' has no stored {'weight' if weight is None else 'mask'}")
        if packed.dtype != torch.uint8 or packed.numel() != -(-weight.numel() // 8) or layer.size != weight.numel():
            raise PlanError(f"{folder}: sparsity: the mask of '{name}' does not fit its {weight.numel()} weights")
        bits = np.unpackbits(packed.numpy(), count=weight.numel())
        masks[name] = torch.from_numpy(bits).bool().view(weight.shape)
        if int(masks[name].sum()) != layer.kept:
            raise PlanError(f"{folder}: sparsity: the mask of '{name}' does not keep {layer.kept} weights")
    try:
        _check_masked(weights, masks)
    except PlanError as error:
        raise PlanError(f"{folder}: {error}") from None
    return masks


def _check_masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        wrong = int((weights[name] != 0).logical_and(~mask.cpu()).sum())
        if wrong:
            raise PlanError(f"{wrong} masked weights of '{name}' are not zero")


# --- fingerprint ----------------------------------------------------------------------------------


def _fingerprint(model: nn.Module, spec: Any) -> list[float]:
    """Return some outputs of the network, in evaluation mode, on inputs that follow from `spec` alone."""
    inputs = to_device(make_inputs(spec), device_of(model))
    with evaluation_mode(model), torch.no_grad(), dense_outputs(model):
        output = next((t for t in task_tensors(call(model, inputs)) if t.is_floating_point()), None)
    if output is None or output.numel() == 0:
        raise PlanError("the network returns no floating-point tensor")
    flat = output.detach().reshape(-1).double().cpu()
    positions = torch.linspace(0, len(flat) - 1, min(len(flat), _FINGERPRINT_VALUES)).round().long()
    return [float(value) for value in flat[positions]]


def _elements(spec: Any) -> int:
    """Return the elements of all inputs together, before any is made; those of integers count for more."""
    if isinstance(spec, InputDict):
        return sum(_elements(value) for value in spec.items.values())
    if isinstance(spec, InputList):
        return sum(_elements(value) for value in spec.items)
    dtype = _DTYPES.get(spec.dtype, torch.float32)
    return math.prod(spec.shape) * (1 if dtype.is_floating_point or dtype == torch.bool else _INDEX_ELEMENTS)


def _make_inputs(spec: Any, generator: torch.Generator) -> Any:
    if isinstance(spec, InputDict):
        return {key: _make_inputs(value, generator) for key, value in spec.items.items()}
    if isinstance(spec, InputList):
        return [_make_inputs(value, generator) for value in spec.items]
    if spec.dtype not in _DTYPES:
        raise PlanError(f"example_inputs: unknown dtype '{spec.dtype}': {nearest(spec.dtype, _DTYPES)}")
    dtype = _DTYPES[spec.dtype]
    if isinstance(spec, InputValues):
        if len(spec.values) != math.prod(spec.shape):
            raise PlanError(f"example_inputs: {len(spec.values)} values for the shape {spec.shape}")
        return torch.tensor(spec.values, dtype=torch.int64).to(dtype).view(spec.shape)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, spec.high + 1, spec.shape, generator=generator).to(dtype)


def _finite(values: list[float]) -> list[float]:
    if not all(math.isfinite(value) for value in values):
        raise PlanError("the network's outputs are not finite: it is not worth saving")
    return values


def _compare(values: list[float], stored: list[float], folder: Path) -> None:
    # Other hardware rounds differently; a wrong network is off by far more than this.
    scale = max((abs(value) for value in stored), default=0.0) + 1e-6
    same = len(values) == len(stored) and all(
        math.isfinite(a) and abs(a - b) <= 1e-2 * scale for a, b in zip(values, stored, strict=False)
    )
    if not same:
        raise PlanError(f"{folder}: the loaded network's output differs from its fingerprint: is this its builder?")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
