"""The parts of a language model that can go: attention heads and neurons of feed-forward layers.

Blocks are recognised by the names of their layers, which the model library fixes for each family
(BERT and its like, GPT-2, T5). What a unit is made of and read by is then known without a trace, and
so is where the residual stream runs past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ifap.axes.cut import follow_shapes, selected

UnitKind = Literal["heads", "neurons"]
_OWN_TABLE = "OwnTableAttention"
_HEAD_WIDTHS = ("attention_head_size", "head_dim", "key_value_proj_dim")


@dataclass(frozen=True)
class Part:
    """One block's layers around its units."""

    name: str  # The block.
    # Layers whose outputs are the units; a fused layer holds them several times, side by side.
    producers: tuple[str, ...]
    reader: str  # The layer whose inputs they are, and whose output joins the residual stream.
    # A module and the number of its positional argument that is the stream before it is joined.
    residual: tuple[str, int]
    columns: tuple[str, ...] = ()  # Embeddings with one column a head.


@dataclass(frozen=True)
class Group:
    """Units of one width of the network."""

    kind: UnitKind
    units: int  # How many.
    width: int  # Positions of a layer that one unit takes: the width of a head, or 1.
    parts: tuple[Part, ...]  # The blocks that have them; several only where the model ties their heads.

    @property
    def name(self) -> str:
        """The first block."""
        return self.parts[0].name


@dataclass(frozen=True)
class _Pattern:
    """How a family names the layers of a block; ``^`` is the module that the block is in."""

    kind: UnitKind
    producers: tuple[str, ...]
    reader: str
    residual: tuple[str, int]
    head_width: str = ""
    columns: str = ""


# T5 hands the position bias of its first block, one column a head, on to all others of the stack: a
# head can only leave all of them together, unless `ifap.study.rivals.attention.split_attention` gave each its own.
_PATTERNS = (
    _Pattern(
        "heads", ("self.query", "self.key", "self.value"), "output.dense", ("output", 1), "self.attention_head_size"
    ),
    _Pattern("neurons", ("intermediate.dense",), "output.dense", ("output", 1)),
    _Pattern("heads", ("c_attn",), "c_proj", ("^ln_1", 0), "head_dim"),
    _Pattern("heads", ("c_attn.q", "c_attn.k", "c_attn.v"), "c_proj", ("^ln_1", 0), "head_dim"),
    _Pattern("neurons", ("c_fc",), "c_proj", ("^ln_2", 0)),
    _Pattern("heads", ("q", "k", "v"), "o", ("^", 0), "key_value_proj_dim", "relative_attention_bias"),
    _Pattern("neurons", ("wi",), "wo", ("^", 0)),
    _Pattern("neurons", ("wi_0", "wi_1"), "wo", ("^", 0)),
)


# --- layers ---------------------------------------------------------------------------------------


def is_transposed(module: nn.Module) -> bool:
    """Whether `module` is the linear layer of GPT-2, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module | None) -> bool:
    """Whether `module` is a linear layer, however its weight is stored."""
    return isinstance(module, nn.Linear) or (module is not None and is_transposed(module))


def matrix(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer as a view of shape (out, in)."""
    weight = module.get_parameter("weight")
    return weight.t() if is_transposed(module) else weight


# --- finding --------------------------------------------------------------------------------------


def find_groups(model: nn.Module) -> list[Group]:
    """Return the groups of heads and neurons of a language model, in the order in which they are read.

    Empty for a network that has no blocks of a known family.
    """
    modules = dict(model.named_modules())
    found: dict[str, tuple[UnitKind, int, int, list[Part]]] = {}
    for name in modules:
        for pattern in _PATTERNS:
            part = _match(pattern, name, modules)
            if part is None:
                continue
            width = _attribute(modules[name], pattern.head_width) if pattern.head_width else 1
            size = matrix(modules[part.reader]).shape[1] // width
            tied = pattern.columns and type(modules[name]).__name__ != _OWN_TABLE
            key = _stack(name) if tied else name
            found.setdefault(key, (pattern.kind, size, width, []))[3].append(part)
            break
    groups = [Group(kind, units, width, tuple(parts)) for kind, units, width, parts in found.values()]
    places = {name: place for place, name in enumerate(modules)}
    return sorted(groups, key=lambda group: places[group.parts[0].reader])


def block_weights(model: nn.Module, groups: Sequence[Group] | None = None) -> dict[str, Tensor]:
    """Return the weights of the linear layers of all blocks, by name: what is masked in a language model.

    Embeddings, biases, norms, poolers and heads are not among them.
    """
    groups = find_groups(model) if groups is None else groups
    layers = {layer for group in groups for part in group.parts for layer in (*part.producers, part.reader)}
    return {name: weight for name, weight in model.named_parameters() if name.removesuffix(".weight") in layers}


def unit_price(group: Group, model: nn.Module, kind: str, macs: Mapping[str, int]) -> float:
    """Return what one unit of a group costs."""
    total = 0
    for part in group.parts:
        layers = (*part.producers, part.reader)
        if kind == "params":
            total += sum(model.get_submodule(name).get_parameter("weight").numel() for name in (*layers, *part.columns))
            biases = (getattr(model.get_submodule(name), "bias", None) for name in part.producers)
            total += sum(bias.numel() for bias in biases if bias is not None)
        elif group.kind == "heads":  # the attention products belong to modules inside the block
            total += sum(count for name, count in macs.items() if f"{name}.".startswith(f"{part.name}."))
        else:
            total += sum(macs.get(name, 0) for name in layers)
    return total / group.units


def _match(pattern: _Pattern, name: str, modules: Mapping[str, nn.Module]) -> Part | None:
    def within(path: str) -> str:
        base = name.rpartition(".")[0] if path.startswith("^") else name
        return ".".join(filter(None, (base, path.removeprefix("^"))))

    producers, reader = tuple(map(within, pattern.producers)), within(pattern.reader)
    if not all(is_linear(modules.get(layer)) for layer in (*producers, reader)):
        return None
    if pattern.head_width and _attribute(modules[name], pattern.head_width) is None:
        return None
    residual = within(pattern.residual[0])
    if residual not in modules:
        return None
    own = tuple(name for name in map(within, filter(None, (pattern.columns,))) if name in modules)
    return Part(name, producers, reader, (residual, pattern.residual[1]), own)


def _attribute(module: nn.Module, path: str) -> Any:
    owner: Any = module
    for step in path.split("."):
        owner = getattr(owner, step, None)
    return owner


def _stack(name: str) -> str:
    stack, _, rest = name.rpartition(".block.")
    return f"{stack}:{rest.rpartition('.')[2]}"


# --- masks ----------------------------------------------------------------------------------------


@contextmanager
def scaled_units(model: nn.Module, widths: Mapping[str, int], scales: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply what layers read by the scales of the units that it belongs to.

    `widths` maps a reader to the positions that a unit takes, and `scales` to scales of the shape (..., units); leading
    dimensions are those of a batch.
    """
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_scaler(scale, widths[name]))
        for name, scale in scales.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scaler(scale: Tensor, width: int) -> Callable[[nn.Module, Any], Tensor]:
    def scaled(_: nn.Module, inputs: Any) -> Tensor:
        read: Tensor = inputs[0]
        return read * scale.to(read).repeat_interleave(width, dim=-1)

    return scaled


# --- cutting --------------------------------------------------------------------------------------


def kept_positions(groups: Sequence[Group], model: nn.Module, kept: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return which positions of each side of each layer stay if these units stay.

    `model` is the unpruned network. `kept` holds the units of each group that stay, ascending, of the shape (kept
    units,). The result maps the layer, then ``"out"`` or ``"in"``, to ascending positions; what stays whole is not
    listed.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for group, units in zip(groups, kept, strict=True):
        if len(units) == group.units:
            continue
        whole = group.units * group.width
        inside = (units[:, None] * group.width + torch.arange(group.width)).flatten()
        for part in group.parts:
            for name in part.producers:
                copies = matrix(model.get_submodule(name)).shape[0] // whole
                found.setdefault(name, {})["out"] = torch.cat([inside + copy * whole for copy in range(copies)])
            found.setdefault(part.reader, {})["in"] = inside
            for name in part.columns:
                found.setdefault(name, {})["out"] = units
    return found


def cut_units(model: nn.Module, groups: Sequence[Group], kept: Sequence[Tensor]) -> dict[str, dict[str, list[int]]]:
    """Cut a network down to these units, in place; returns the positions that stayed, as a plan lists them.

    `groups` and `kept` are those of `kept_positions`.
    """
    positions = kept_positions(groups, model, kept)
    for name, keep in positions.items():
        _cut(model.get_submodule(name), keep)
    follow_shapes(model, positions)
    for group in groups:
        if group.kind == "heads":
            for part in group.parts:
                _refresh(model.get_submodule(part.name), part, model)
    return {name: {side: left.tolist() for side, left in keep.items()} for name, keep in positions.items()}


def _cut(module: Any, keep: dict[str, Tensor]) -> None:
    outputs = 1 if is_transposed(module) or isinstance(module, nn.Embedding) else 0
    dims = {outputs if side == "out" else 1 - outputs: left for side, left in keep.items()}
    module.weight = selected(module.weight, dims)
    if "out" in keep and getattr(module, "bias", None) is not None:
        module.bias = selected(module.bias, {0: keep["out"]})
    if is_transposed(module):
        module.nx, module.nf = module.weight.shape


def _refresh(module: Any, part: Part, model: nn.Module) -> None:
    """Make the attributes that the forward of an attention reads agree with its layers."""
    width = matrix(model.get_submodule(part.reader)).shape[1]
    owner = module.self if hasattr(module, "self") else module
    head = next(getattr(owner, name) for name in _HEAD_WIDTHS if hasattr(owner, name))
    for name, value in (
        *((name, width // head) for name in ("num_attention_heads", "num_heads", "n_heads")),
        *((name, width) for name in ("all_head_size", "split_size", "inner_dim")),
    ):
        if hasattr(owner, name):
            setattr(owner, name, value)
