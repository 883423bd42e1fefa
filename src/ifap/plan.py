"""The plan of a pruned network: ``plan.json`` says how the unpruned one becomes it, and nothing that could run.

A wrong, truncated or hostile file raises one `PlanError`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from ifap.errors import PlanError, first_line
from ifap.example_inputs import AnyInput, Count, Part
from ifap.files import read_bounded

if TYPE_CHECKING:
    from torch import nn

PLAN_FILE = "plan.json"
FINGERPRINT_VALUES = 64
# A plan may come from anyone. These bounds keep what loading it takes near the size of the network that it names:
# Python needs up to ten times a file's size for numbers and forty times for small containers, and one forward of a
# convolutional network some dozens of times its input's.
_MAX_PLAN_BYTES = 32 * 2**20
_MAX_PLAN_PARTS = 400_000
_LARGEST_SIZE = 2**24
_NOTE = "_pruning_plan"
ONLY_FIRST, ONLY_LATER = {"split_attention", "heads"}, {"attention", "attributes", "calls", "sequences", "biases"}
"""What a plan of version 1 alone has, and what later ones have."""
MASK = "mask:"
"""Before the name of a mask in the weights file; no module of torch has a colon in its name."""
# One wrong entry is enough: a list of a million would be a million errors.
Positions = Annotated[list[Count], Field(fail_fast=True)]


class Builder(Part):
    """Who builds the unpruned network: an id that the caller understands, and its arguments."""

    id: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)


class Costs(Part):
    """MACs and parameters, before and after."""

    macs_before: Count
    macs_after: Count
    params_before: Count
    params_after: Count


class AttributeSize(Part):
    """An integer attribute that the forward reads as a size: a module, the path below it, and the value."""

    module: str
    path: Annotated[list[str | int], Field(min_length=1, max_length=4)]
    value: Count


class CallSize(Part):
    """A size argument of one call that is set to a value or scaled by a fraction, and its value before.

    Files without `sequences` say by `every` after how many calls of the function the corrections repeat.
    """

    module: str
    function: str
    ordinal: Count
    path: Annotated[list[str | int], Field(min_length=2, max_length=5)]
    value: Annotated[int, Field(gt=-_LARGEST_SIZE, lt=_LARGEST_SIZE)] | float | None = None
    fraction: (
        Annotated[list[Annotated[int, Field(ge=0, lt=_LARGEST_SIZE)]], Field(min_length=2, max_length=2)] | None
    ) = None
    before: Annotated[int, Field(gt=-_LARGEST_SIZE, lt=_LARGEST_SIZE)] | float | None = Field(
        default=None, exclude_if=lambda each: each is None
    )
    every: Annotated[int, Field(gt=0, lt=_LARGEST_SIZE)] | None = Field(
        default=None, exclude_if=lambda each: each is None
    )


class CallSequence(Part):
    """The calls of one function that the forward of a module makes, by the form of their arguments.

    After the last call the sequence continues at index `again`.
    """

    module: str
    function: str
    forms: list[JsonValue]
    again: Count = 0


class LayerMask(Part):
    """How many weights of a layer are kept, and how many there are."""

    kept: Count
    size: Count


class Plan(Part):
    """The kept units of each layer, and everything needed to rebuild the network.

    Parameters
    ----------
    builder : Builder
        Who builds the unpruned network.
    split_attention : list of str
        Attention modules that were split so that they can lose heads (version 1 alone).
    kept : dict of str to dict of str to list of int
        Layer, then side, to the positions of the unpruned network that are left; layers and sides
        that lost nothing are not listed. A network that is pruned again is described from the unpruned one on.
    heads : dict of str to int
        Number of heads of each attention module (version 1 alone).
    attention : list of str
        Attention modules of torch that read their widths from their weights.
    attributes : list of AttributeSize
        Sizes that the forward reads from attributes of modules.
    calls : list of CallSize
        Sizes among the arguments of calls.
    sequences : list of CallSequence
        All calls of the functions in `calls`, in order.
    biases : list of str
        Layers without a bias in the unpruned network that have one now.
    example_inputs : InputSpec, InputValues, InputConstant, InputList or InputDict
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

    format: Literal[1, 2] = 2
    builder: Builder = Builder()
    split_attention: list[str] = Field(default_factory=list)
    kept: dict[str, dict[str, Positions]] = Field(default_factory=dict)
    heads: dict[str, Count] = Field(default_factory=dict)
    attention: list[str] = Field(default_factory=list)
    attributes: list[AttributeSize] = Field(default_factory=list)
    calls: list[CallSize] = Field(default_factory=list)
    sequences: list[CallSequence] = Field(default_factory=list, exclude_if=lambda each: not each)
    biases: list[str] = Field(default_factory=list)
    example_inputs: Annotated[AnyInput, Field(discriminator="kind")]
    costs: Costs
    shared: dict[str, str] = Field(default_factory=dict)
    fingerprint: Annotated[list[float], Field(fail_fast=True, max_length=FINGERPRINT_VALUES)] = Field(
        default_factory=list
    )
    sparsity: dict[str, LayerMask] = Field(default_factory=dict)
    weights_sha256: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class _Note:
    """The plan that a network keeps in an attribute; copies of the network share it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __deepcopy__(self, memo: dict[int, Any]) -> _Note:
        return self


def note_plan(model: nn.Module, plan: Plan | None) -> nn.Module:
    """Let a network remember the plan that describes it, or forget it, and return the network."""
    if plan is None:
        model.__dict__.pop(_NOTE, None)
    else:
        model.__dict__[_NOTE] = _Note(plan)
    return model


def noted_plan(model: nn.Module) -> Plan | None:
    """Return the plan of a network that was pruned before, None for any other: a second plan continues it."""
    note = model.__dict__.get(_NOTE)
    return note.plan if isinstance(note, _Note) else None


def read_plan(folder: str | Path) -> Plan:
    """Read and check ``plan.json`` alone.

    Raises a PlanError if it is missing, damaged or hostile.
    """
    path = Path(folder) / PLAN_FILE
    with one_line_errors(path):
        content = read_bounded(path, _MAX_PLAN_BYTES)
        if sum(map(content.count, b'[{"')) > _MAX_PLAN_PARTS:
            raise PlanError(f"{path}: more than {_MAX_PLAN_PARTS} names and lists")
        plan = Plan.model_validate(json.loads(content.decode(), object_pairs_hook=_once_each))
        unknown = [name for name in sorted(unused_parts(plan)) if getattr(plan, name)]
        if unknown:
            raise PlanError(f"{path}: {unknown[0]}: a plan of format {plan.format} has none")
        return plan


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a JSON file is read and validated into one line with its name."""
    try:
        yield
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
        raise PlanError(f"{path}: not valid JSON ({first_line(error)})") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise if a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"'{name[:40]}' stands there twice")
    return found


def unused_parts(plan: Plan) -> set[str]:
    """Return the fields of other plan formats that this plan does not use."""
    return ONLY_LATER if plan.format == 1 else ONLY_FIRST
