"""Save and load pruned networks: ``weights.safetensors`` and ``plan.json``, nothing else, no pickle.

Loading builds the unpruned network, gives its tensors the stored shapes, derives every width and
number of heads from them and checks the result against a stored output. No graph and no data are
needed. A wrong, truncated or hostile file raises one `PlanError`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ifap.arguments import BUILDER, FOLDER, MAPPING, NEW_FOLDER, PRUNED, TEXT, checked, optional
from ifap.axes.compiled import without_compiler
from ifap.axes.draws import same_draws
from ifap.axes.state import kept_state
from ifap.axes.tensors import as_real
from ifap.costs import count_params
from ifap.errors import PlanError, first_line, kind_and_line
from ifap.example_inputs import CheckBoxIndices, make_inputs, variants
from ifap.files import beside, read_bounded
from ifap.forward import (
    call,
    dense_outputs,
    device_of,
    evaluation_mode,
    task_tensors,
    to_device,
    unwrapped,
)
from ifap.plan import (
    FINGERPRINT_VALUES,
    MASK,
    PLAN_FILE,
    Builder,
    LayerMask,
    Plan,
    note_plan,
    read_plan,
    unused_parts,
)
from ifap.saving import legacy, rebuilding
from ifap.saving.builders import bounded, build
from ifap.saving.history import REPORT_FILE, History, history_of
from ifap.trouble import is_resource_error

if TYPE_CHECKING:
    from ifap.results import Pruned

WEIGHTS_FILE, _MAX_WEIGHTS_BYTES = "weights.safetensors", 2**38
# A constructor may make a parameter several times, and pruning leaves a thousandth of a network at the least.
_MOST_TIMES, _MOST_SHRUNK, _MORE = 4, 1000, 2**10


@checked(pruned=PRUNED, folder=NEW_FOLDER, builder=optional(TEXT), arguments=optional(MAPPING))
def save(
    pruned: Pruned, folder: str | Path, builder: str | None = None, arguments: Mapping[str, Any] | None = None
) -> None:
    """Save a pruned network as ``weights.safetensors`` and ``plan.json``, and how it came to be as ``report.json``.

    Parameters
    ----------
    pruned : Pruned
        What `ifap.prune` returned; its network may have been trained further.
    folder : str or Path
        Where to; made if it does not exist. Files there are replaced at once, never half written.
    builder : str, optional
        Name of the unpruned network as `ifap.build` knows it, such as ``"timm:efficientnet_lite0"``; then `load` needs
        nothing but the folder.
    arguments : mapping, optional
        The arguments that `ifap.build` took.

    Raises
    ------
    PlanError
        If a layer was added or exchanged after pruning, the outputs of the network are not finite, it returns no
        floating-point tensor, or the builder makes another network.
    """
    plan, found, left = pruned.plan, count_params(pruned.model), pruned.plan.costs.params_after
    if found != left:
        raise PlanError(f"the network has {found:,} parameters, pruning left {left:,}: a layer was added or exchanged")
    if builder is not None:
        plan = plan.model_copy(update={"builder": _checked_builder(builder, arguments or {}, plan)})
    write_network(pruned.model, plan, folder, history=history_of(pruned) if pruned.receipts else None)


def _checked_builder(identifier: str, arguments: Mapping[str, Any], plan: Plan) -> Builder:
    """Return a builder that makes a network of the size that the plan had before pruning."""
    made, wanted = count_params(build(identifier, **arguments)), plan.costs.params_before
    if made != wanted:
        raise PlanError(f"builder '{identifier}' makes {made:,} parameters, the network that was pruned had {wanted:,}")
    return Builder(id=identifier, args=dict(arguments))


@checked(folder=FOLDER, builder=optional(BUILDER))
def load(folder: str | Path, builder: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a network that `save` wrote.

    Parameters
    ----------
    folder : str or Path
        The folder with the two files.
    builder : callable, optional
        Makes the unpruned network; its weights do not matter. Not needed where the plan names a network that
        `ifap.build` knows.

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
    builder = builder or _named_builder(plan, weights, folder)
    try:
        return _loaded(builder, plan, weights, folder, has_run=False)
    except PlanError as error:
        if plan.format == 1:
            raise
        # Some networks settle their structure in their first forward, as the pruned one had done.
        with suppress(PlanError):
            return _loaded(builder, plan, weights, folder, has_run=True)
        raise error


def build_unpruned(folder: str | Path, builder: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Build the network that a saved one was before pruning, with whatever weights its builder gives it.

    The network is in evaluation mode; see `load` for the arguments. Raises a PlanError if the plan names no builder and
    none is given, or if the builder makes another network.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    builder = builder or _named_builder(plan, _read_weights(folder / WEIGHTS_FILE, plan), folder)
    model = unwrapped(builder()).eval()
    made, wanted = count_params(model), plan.costs.params_before
    if made != wanted:
        raise PlanError(f"{folder}: the builder makes {made:,} parameters, the network that was pruned had {wanted:,}")
    return model


def _named_builder(plan: Plan, weights: Mapping[str, Tensor], folder: Path) -> Callable[[], nn.Module]:
    """Return what builds the network that a plan names, bounded by the size of the saved one."""
    identifier = plan.builder.id
    if identifier is None:
        raise PlanError(f"{folder}: the plan names no builder: give the function that makes the unpruned network")
    stored = sum(tensor.numel() for tensor in weights.values())
    values = _MOST_TIMES * min(plan.costs.params_before, _MOST_SHRUNK * stored) + _MORE
    tensors = _MOST_TIMES * len(weights) + _MORE

    def make() -> nn.Module:
        with bounded(tensors, values):
            return build(identifier, **plan.builder.args)

    return make


def _loaded(
    builder: Callable[[], nn.Module], plan: Plan, weights: dict[str, Tensor], folder: Path, *, has_run: bool
) -> nn.Module:
    """Build a network, give it the structure and weights of a plan, and compare its outputs with the fingerprint."""
    try:
        model = builder()
    except (TypeError, AttributeError) as error:
        raise PlanError(f"{folder}: the builder fails without arguments: {kind_and_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise PlanError(f"{folder}: the builder returned {type(model).__name__}, not a network")
    model = unwrapped(model)
    try:
        rebuilding.match_type(model, weights)
        if has_run:
            _some_outputs(model, plan.example_inputs)
        (legacy if plan.format == 1 else rebuilding).rebuild(model, plan, weights)
        model.eval()
        states = rebuilding.absent_states(model, plan.kept)
        _compare(_fingerprint(model, plan.example_inputs), plan, states)
        note_plan(model, plan if plan.format > 1 else None)
        return model
    except PlanError as error:
        raise PlanError(f"{folder}: {error}") from None
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        if is_resource_error(error):
            raise
        raise PlanError(f"{folder}: does not fit the network that the builder makes ({first_line(error)})") from None


def read_masks(folder: str | Path) -> dict[str, Tensor]:
    """Read the masks of a network whose single weights were masked; empty for any other.

    Each weight has a boolean tensor of its shape; True is kept. Raises a PlanError if a file is missing, damaged or
    hostile, or if a masked weight is not zero.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    return _take_masks(_read_weights(folder / WEIGHTS_FILE, plan), plan, folder) if plan.sparsity else {}


def write_network(
    model: nn.Module,
    plan: Plan,
    folder: str | Path,
    masks: Mapping[str, Tensor] | None = None,
    history: History | None = None,
) -> None:
    """Write a network and its plan, with a fresh fingerprint, checksum and costs.

    `model` must have the structure that `plan` describes; the plan is from `ifap.prune`, `unpruned_plan` or
    `read_plan`. `masks` are boolean, by the names of weights, which must be zero where their mask is False.
    """
    state, shared = _state(model.state_dict() if plan.format == 1 else rebuilding.stored_tensors(model))
    masks = masks or {}
    sparsity = {name: LayerMask(kept=int(mask.sum()), size=mask.numel()) for name, mask in masks.items()}
    _check_masked(state, masks)
    content = save_safetensors({**state, **{MASK + name: _packed(mask) for name, mask in masks.items()}})
    inputs = _runnable(model, plan.example_inputs)
    plan = plan.model_copy(
        update={
            "example_inputs": inputs,
            "fingerprint": _finite(_fingerprint(model, inputs)),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "shared": shared,
            "sparsity": sparsity,
            "versions": _versions(),
        }
    )
    # A plan without masks, or without new biases, stays the text that it was before there were any.
    unused = unused_parts(plan) | {name for name in ("sparsity", "biases") if not getattr(plan, name)}
    text = plan.model_dump_json(indent=1, exclude=unused)
    files = {WEIGHTS_FILE: content, PLAN_FILE: (text + "\n").encode()}
    if history is not None:
        files[REPORT_FILE] = (history.model_dump_json(indent=1) + "\n").encode()
    _replace_files(Path(folder), files)


def _state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor once, and the second names of those that have two."""
    state: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
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
    for name in ("ifap", "torch", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


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
        raise PlanError(f"{path}: not a valid safetensors file ({first_line(error)})") from None


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _take_masks(weights: dict[str, Tensor], plan: Plan, folder: Path) -> dict[str, Tensor]:
    """Take the masks that the plan lists out of the stored tensors, and check them against the weights."""
    masks: dict[str, Tensor] = {}
    for name, layer in plan.sparsity.items():
        weight, packed = weights.get(name), weights.pop(MASK + name, None)
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


def _runnable(model: nn.Module, spec: Any) -> Any:
    """Return a description of inputs on which the network runs: random numbers that it uses as positions may not do."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    failures: list[Exception] = []
    for each in variants(spec, dtype):
        try:
            with CheckBoxIndices():  # type: ignore[no-untyped-call]
                _fingerprint(model, each)
            return each
        except (IndexError, RuntimeError, ValueError) as error:
            if is_resource_error(error) or isinstance(error, PlanError):
                raise
            failures.append(error)
    raise PlanError(f"the network does not run on its example inputs: {first_line(failures[0])}") from failures[0]


def _fingerprint(model: nn.Module, spec: Any) -> list[float]:
    """Return some outputs of the network on inputs that follow from `spec` alone; the network is left as it was."""
    with kept_state(model):
        return _some_outputs(model, spec)


def _some_outputs(model: nn.Module, spec: Any) -> list[float]:
    inputs = to_device(make_inputs(spec), device_of(model))
    with evaluation_mode(model), torch.no_grad(), dense_outputs(model), same_draws(), without_compiler():
        torch.manual_seed(0)
        found = [as_real(tensor) for tensor in task_tensors(model, call(model, inputs))]
        output = next((tensor for tensor in found if tensor.is_floating_point()), next(iter(found), None))
    if output is None or output.numel() == 0:
        raise PlanError("the network returns no tensor with values")
    flat = output.detach().reshape(-1).double().cpu()
    if torch.isinf(flat).any() and not torch.isinf(flat).all():
        flat = flat[~torch.isinf(flat)]  # places that a network masks by design
    positions = torch.linspace(0, len(flat) - 1, min(len(flat), FINGERPRINT_VALUES)).round().long()
    return [float(value) for value in flat[positions]]


def _finite(values: list[float]) -> list[float]:
    if not all(math.isfinite(value) for value in values):
        raise PlanError("the network's outputs are not finite: it is not worth saving")
    return values


def _compare(values: list[float], plan: Plan, states: list[str]) -> None:
    stored = plan.fingerprint
    # Other hardware rounds differently; a wrong network is off by far more than this.
    scale = max((abs(value) for value in stored), default=0.0) + 1e-6
    same = len(values) == len(stored) and all(
        math.isfinite(a) and abs(a - b) <= 1e-2 * scale for a, b in zip(values, stored, strict=False)
    )
    if not same:
        held = f"'{states[0]}' held a tensor of an earlier forward: reset it before you save" if states else ""
        hint = held or "is this its builder?"
        raise PlanError(f"the loaded network's output differs from its fingerprint: {hint}")
