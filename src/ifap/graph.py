"""Which slices of a network's tensors must go together: the dependency graph, flattened once.

Torch-Pruning traces the network and says, for each connection of two layers, how positions of one
map to positions of the other. Here those maps are applied once to every position of every layer;
the connected components of the resulting graph of positions are the *units*: the smallest sets of
slices that can be removed together. Heads, groups of a grouped convolution and groups of a group
norm are further edges of the same graph, and a component that reaches something that must not
change (an output of the network, an ignored layer, a channel shuffle) is pinned. Afterwards only
plain names and integers are kept: removing units needs no new trace.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning as tp
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch_pruning import _helpers as tp_helpers
from torch_pruning import ops as tp_ops
from torch_pruning.dependency import index_mapping as tp_index_mapping
from torch_pruning.dependency.node import Node

from ifap.attention import (
    HEAD_TABLE,
    Projections,
    SplitAttention,
    check_heads,
    fused_attention,
    head_dim,
    projections,
)
from ifap.errors import GraphError, nearest
from ifap.families import sync
from ifap.layers import (
    cut,
    cut_tensor,
    is_conv,
    is_depthwise,
    is_producer,
    is_spatial,
    modules_by_name,
    shared_parameters,
    sides,
    tie,
    tied_embeddings,
    why_not,
)
from ifap.tracing import (
    Inputs,
    ShapesAlone,
    call,
    dense_outputs,
    is_trouble,
    map_tensors,
    meta_forward,
    private_copy,
    shape_copy,
    task_tensors,
    to_device,
)

Indices = npt.NDArray[np.int64]


class Slot(NamedTuple):
    """One dimension of one layer (side ``out`` or ``in``) or of a bare tensor (side ``dimN``)."""

    name: str
    side: str


@dataclass(frozen=True)
class Group:
    """Units that cut the same slots: the channels of one width of the network.

    Parameters
    ----------
    index : int
        Position among the groups of the graph.
    slots : tuple of Slot
        What a unit of this group cuts.
    width : int
        Positions that one unit takes on its widest output slot (1 for a channel, the head width
        for a head).
    """

    index: int
    slots: tuple[Slot, ...]
    width: int

    @property
    def name(self) -> str:
        """The first layer that produces these units."""
        return next((slot.name for slot in self.slots if slot.side == "out"), self.slots[0].name)


@dataclass
class Graph:
    """The units of a network.

    Parameters
    ----------
    slots : list of Slot
        Every dimension that units cut.
    unit_of : list of integer arrays
        For each slot, the unit of each position, or -1 where it is pinned.
    group_of : integer array, shape (units,)
        The group of each unit.
    groups : list of Group
        What the units of a group cut.
    pinned : dict of str to str
        Layer name to the reason why its outputs stay.
    kept : list of integer arrays
        For each slot, the positions of the traced network that are left.
    original_widths : list of int
        Width of each slot in the traced network.
    """

    slots: list[Slot]
    unit_of: list[Indices]
    group_of: Indices
    groups: list[Group]
    pinned: dict[str, str]
    kept: list[Indices] = field(default_factory=list)
    original_widths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.original_widths:
            self.original_widths = [len(units) for units in self.unit_of]
            self.kept = [np.arange(width) for width in self.original_widths]
        self._slot_index = {slot: index for index, slot in enumerate(self.slots)}

    @property
    def num_units(self) -> int:
        """Number of units that can be removed."""
        return len(self.group_of)

    def slot(self, name: str, side: str) -> int | None:
        """Return the position of a slot, or None."""
        return self._slot_index.get(Slot(name, side))

    def widths(self) -> Indices:
        """Return the present width of each slot."""
        return np.array([len(units) for units in self.unit_of], dtype=np.int64)

    def units_per_group(self) -> Indices:
        """Return how many units each group has."""
        return np.bincount(self.group_of, minlength=len(self.groups))

    def positions_per_unit(self) -> npt.NDArray[np.float64]:
        """Return how many positions of each slot one unit of each group cuts: shape (groups, slots)."""
        matrix = np.zeros((len(self.groups), len(self.slots)))
        sizes = self.units_per_group()
        for column, units in enumerate(self.unit_of):
            free = units[units >= 0]
            counts = np.bincount(self.group_of[free], minlength=len(self.groups))
            matrix[:, column] = counts / np.maximum(sizes, 1)
        return matrix

    def without(self, removed: Indices) -> Graph:
        """Return the graph of the network that lacks the units `removed`; no new trace is made."""
        alive = np.ones(self.num_units, dtype=bool)
        alive[removed] = False
        renumber = np.cumsum(alive) - 1
        unit_of, kept = [], []
        for units, origin in zip(self.unit_of, self.kept, strict=True):
            stays = self._stays(units, alive)
            units = units[stays]
            unit_of.append(np.where(units >= 0, renumber[units], -1))
            kept.append(origin[stays])
        return Graph(self.slots, unit_of, self.group_of[alive], self.groups, self.pinned, kept, self.original_widths)

    def apply(self, model: nn.Module, removed: Indices) -> None:
        """Cut the units `removed` out of `model`, in place, each tensor once.

        Parameters
        ----------
        model : nn.Module
            The network this graph describes.
        removed : integer array
            Units to remove.
        """
        alive = np.ones(self.num_units, dtype=bool)
        alive[removed] = False
        modules, shared = modules_by_name(model), shared_parameters(model)
        by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for slot, units in zip(self.slots, self.unit_of, strict=True):
            stays = self._stays(units, alive)
            if not stays.all():
                by_layer[slot.name][slot.side] = torch.from_numpy(np.flatnonzero(stays))
        for name, keep in by_layer.items():
            if name in modules:
                cut(modules[name], keep)
            else:
                cut_bare_tensor(model, name, keep)
        tie(shared)
        sync(model)

    @staticmethod
    def _stays(units: Indices, alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return np.where(units >= 0, alive[units] if len(alive) else True, True)


def cut_bare_tensor(model: nn.Module, name: str, keep: dict[str, Tensor]) -> None:
    """Cut a parameter or buffer that belongs to no known layer, by its qualified name."""
    parent, _, leaf = name.rpartition(".")
    for side, positions in keep.items():
        cut_tensor(model.get_submodule(parent), leaf, positions, int(side.removeprefix("dim")))


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    ignore: Iterable[str | nn.Module] = (),
    *,
    spatial_only: bool = False,
    twin: nn.Module | None = None,
) -> Graph:
    """Trace a network and flatten its dependencies into units.

    Parameters
    ----------
    model : nn.Module
        The network; a copy without data is traced, so that it is neither run nor changed.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.
    ignore : iterable of str or nn.Module
        Layers, or parts of the network with all their layers, whose outputs must stay.
    spatial_only : bool
        Let only those units go that a convolution larger than 1x1 produces; see `ifap.prune`.
    twin : nn.Module, optional
        What `ifap.tracing.shape_copy` made of `model`, if there is one; it is used up.

    Returns
    -------
    Graph
        Units, groups, and what is pinned and why.

    Raises
    ------
    GraphError
        If the network cannot be traced or `ignore` names something that it does not have.
    """
    ignored = _ignored_layers(model, ignore)
    check_heads(model)
    try:
        copies = iter([] if twin is None else [twin])
        found = _traced(lambda: next(copies, None) or shape_copy(model), example_inputs, on_meta=True)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if is_trouble(error):
            raise
        # The forward looks at values, which data-free tensors do not have: trace a real copy.
        found = _traced(lambda: private_copy(model), example_inputs, on_meta=False)
    return _Flattener(*found, ignored, spatial_only=spatial_only).graph()


def _ignored_layers(model: nn.Module, ignore: Iterable[str | nn.Module]) -> set[str]:
    modules = modules_by_name(model)
    names = {module: name for name, module in modules.items()}
    ignored: set[str] = set()
    for item in [ignore] if isinstance(ignore, (str, nn.Module)) else ignore:
        name = item if isinstance(item, str) else names.get(item)
        if name is None or name not in modules:
            shown = item if isinstance(item, str) else type(item).__name__
            raise GraphError(f"ignore: the network has no layer '{shown}': {nearest(str(shown), modules)}")
        ignored.update(f"{name}.{inner}".strip(".") for inner, _ in modules_by_name(modules[name]).items())
    return ignored


# --- the trace ------------------------------------------------------------------------------------


class _NetworkInput(torch.autograd.Function):
    """Marks where a network input enters, so that what is added to it keeps its channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.channels = x.shape[-1 if x.dim() == 3 else min(1, x.dim() - 1)] if x.dim() else None
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class _ChannelShuffle(torch.autograd.Function):
    """A permutation of channels: what it touches keeps its width, which keeps the permutation valid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class _Severed(torch.autograd.Function):
    """Zeros of a given shape that depend on `x` for the trace alone: no position of one is one of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


_INPUT, _SHUFFLE, _SEVERED = "_NetworkInputBackward", "_ChannelShuffleBackward", "_SeveredBackward"


def _operation(node: Node) -> str:
    """Return what autograd calls the operation of a node; empty for a layer."""
    return str(getattr(node.module, "grad_fn", "") or getattr(node.module, "_grad_fn", ""))


class _InputAwareGraph(tp.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph, which also knows how wide a network input is that is concatenated to features."""

    def get_out_channels(self, module_or_node: Any) -> Any:
        """Return the channels of a layer, or of a network input."""
        channels = super().get_out_channels(module_or_node)
        grad_fn: Any = getattr(module_or_node, "grad_fn", None)
        if channels is None and _INPUT in str(grad_fn):
            return grad_fn.channels
        return channels


_Traced = tuple[nn.Module, tp.DependencyGraph, list[str]]


def _traced(copy: Callable[[], nn.Module], example_inputs: Inputs, *, on_meta: bool) -> _Traced:
    """Trace what evaluation runs or, if training runs more layers (an auxiliary head), what training runs."""
    found = _torch_pruning_graph(copy(), example_inputs, on_meta=on_meta)
    reached = _reached(found)
    if all(name in reached for name, module in modules_by_name(found[0]).items() if is_producer(module)):
        return found
    try:
        in_training = _torch_pruning_graph(copy(), example_inputs, on_meta=on_meta, as_training=True)
    except Exception as error:  # whatever a forward raises that wants targets, for example, in training
        if is_trouble(error):
            raise
        return found
    return in_training if reached < _reached(in_training) else found


def _reached(found: _Traced) -> set[str]:
    model, graph, _ = found
    return {
        name for name, module in modules_by_name(model).items() if is_producer(module) and module in graph.module2node
    }


def _torch_pruning_graph(
    model: nn.Module, example_inputs: Inputs, *, on_meta: bool, as_training: bool = False
) -> _Traced:
    """Let Torch-Pruning trace `model`, a copy that may be changed; returns it, its graph and bare buffers."""
    buffers = _buffers_as_parameters(model)
    bare = [(parameter, _channel_dim(parameter)) for parameter in _bare_parameters(model).values()]
    inputs = to_device(example_inputs, torch.device("meta")) if on_meta else example_inputs
    graph = _InputAwareGraph()

    def forward(network: nn.Module, tree: Inputs) -> list[Tensor]:
        for module in modules_by_name(network).values() if as_training else ():
            # What chooses the way through the network trains; norms and dropout are leaves and evaluate.
            module.training = any(True for _ in module.children())
        outputs = call(network, map_tensors(tree, _mark_input))
        # One more operation makes every output end in a node of its own, which pins what feeds it.
        return [tensor * 1 for tensor in task_tensors(outputs) if tensor.grad_fn is not None]

    with warnings.catch_warnings(), torch.enable_grad(), _traceable(model), dense_outputs(model):
        warnings.simplefilter("ignore")
        with meta_forward() if on_meta else nullcontext(), ShapesAlone():  # type: ignore[no-untyped-call]
            graph.build_dependency(
                model,
                inputs,
                forward_fn=forward,
                unwrapped_parameters=[b for b in bare if b[1] is not None],
                verbose=False,
            )
    return model, graph, buffers


def _mark_input(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return _NetworkInput.apply(tensor.detach().requires_grad_())


def _owned(module: nn.Module) -> bool:
    """Whether the parameters of `module` are cut with the layer they belong to."""
    return bool(sides(module)) or why_not(module) is not None


def _bare_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that belong to no known layer, not even under a second name: position embeddings."""
    with_own = {name: module for name, module in modules_by_name(model).items() if module._parameters}
    others = {name: module for name, module in with_own.items() if not _owned(module)}
    held = {id(p) for name, module in with_own.items() if name not in others for p in module._parameters.values()}
    return {
        f"{prefix}.{name}".strip("."): parameter
        for prefix, module in others.items()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in held
    }


def _buffers_as_parameters(model: nn.Module) -> list[str]:
    """Turn bare float buffers of a copy into parameters, so that the trace sees them."""
    found = []
    for prefix, module in modules_by_name(model).items():
        if not module._buffers or _owned(module):
            continue
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point() and buffer.dim() > 0:
                del module._buffers[name]
                module.register_parameter(name, nn.Parameter(buffer.detach()))
                found.append(f"{prefix}.{name}".strip("."))
    return found


def _channel_dim(tensor: Tensor) -> int | None:
    """Guess which dimension of a bare tensor holds channels: (N, C, H, W) or the last that is not 1."""
    if tensor.dim() == 4 and tensor.shape[1] > 1:
        return 1
    return next((dim for dim in reversed(range(tensor.dim())) if tensor.shape[dim] > 1), None)


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Replace, on a copy, what Torch-Pruning cannot follow by something with the same couplings."""
    for module in modules_by_name(model).values():
        if isinstance(module, SplitAttention):
            _set_forward(module, _split_attention_couplings)
        elif isinstance(module, (nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)):
            _set_forward(module, lambda m, x: _ChannelShuffle.apply(x, lambda y: type(m).forward(m, y)))
        elif (found := projections(module)) is not None:
            _set_forward(module, partial(_projected_couplings, found))
    for module in fused_attention(model).values():
        _set_forward(module, _fused_attention_couplings)
    with _opaque_functional_shuffles():
        yield


def _set_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    module.__dict__["forward"] = lambda *args, **kwargs: function(module, *args, **kwargs)


def _split_attention_couplings(
    module: SplitAttention, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any
) -> tuple[Tensor, Tensor]:
    tokens = 1 if module.batch_first else 0
    heads = module.q(query)
    for layer, source in ((module.k, key), (module.v, value)):
        heads = heads + layer(source).mean(dim=tokens, keepdim=True)
    # Attention weights that the forward may use: they have no channels, so any number will do.
    weights = heads.detach().new_ones(heads.shape[1 - tokens], heads.shape[tokens], key.shape[tokens])
    return module.out(heads), weights


def _projected_couplings(
    found: Projections, module: nn.Module, hidden_states: Tensor, *_args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """Attend as far as couplings go: queries reach the outputs, and `_structural_edges` joins whole heads."""
    others = [kwargs.get(name) for name in ("key_value_states", "encoder_hidden_states")]
    source = next((states for states in others if states is not None), hidden_states)
    heads = module.get_submodule(found.query)(hidden_states)
    for part in (found.key, found.value):
        heads = heads + _Severed.apply(module.get_submodule(part)(source), heads.shape)
    table = getattr(module, HEAD_TABLE, None)
    if table is not None:
        row = torch.zeros(1, dtype=torch.long, device=heads.device)
        heads = heads + _Severed.apply(table(row), heads.shape)
    outputs = heads if found.out is None else module.get_submodule(found.out)(heads)
    return (outputs, *[None] * (found.outputs - 1))


def _fused_attention_couplings(module: Any, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    heads = sum(module.qkv(x).chunk(3, dim=-1))
    norm = getattr(module, "norm", None)
    return module.proj(norm(heads) if isinstance(norm, nn.Module) else heads)


@contextmanager
def _opaque_functional_shuffles() -> Iterator[None]:
    """Make torchvision's channel_shuffle function visible as one operation while tracing."""
    module: Any = sys.modules.get("torchvision.models.shufflenetv2")
    if module is None:
        yield
        return
    original = module.channel_shuffle
    module.channel_shuffle = lambda x, groups: _ChannelShuffle.apply(x, lambda y: original(y, groups))
    try:
        yield
    finally:
        module.channel_shuffle = original


# --- flattening -----------------------------------------------------------------------------------


class _Flattener:
    """Turn Torch-Pruning's graph of layers into a graph of positions and find its components."""

    def __init__(
        self, model: nn.Module, graph: tp.DependencyGraph, buffers: list[str], ignored: set[str], *, spatial_only: bool
    ) -> None:
        self._model = model
        self._spatial_only = spatial_only
        self._graph = graph
        self._ignored = ignored
        self._modules = modules_by_name(model)
        self._names = {module: name for name, module in self._modules.items()}
        self._bare: dict[Any, str] = {parameter: name for name, parameter in _bare_parameters(model).items()}
        self._sizes: dict[tuple[Node, str], int] = {}
        self._edges: dict[tuple[tuple[Node, str], int], tuple[tuple[Node, str], Indices, Indices]] = {}
        self._fixed: set[tuple[Node, str]] = set()  # slots of layers, whose widths are known
        self._joined: set[tuple[tuple[Node, str], tuple[Node, str]]] = set()  # slots with the same positions
        self._shared = {module for pairs in shared_parameters(model) for module, _ in pairs}
        self._tied = tied_embeddings(model)
        self._position = {name: index for index, name in enumerate(self._modules)}
        self._unmapped: set[tuple[Node, str]] = set()
        self._pruners: dict[nn.Module, Any] = {}
        self.pinned: dict[str, str] = {}

    def graph(self) -> Graph:
        """Return the units of the network."""
        self._spread()
        offsets, total = self._number_positions()
        label = self._components(offsets, total)
        return self._collect(label, self._pin(offsets, label), offsets)

    # Torch-Pruning's nodes and their slots

    def _slots_of(self, node: Node) -> dict[str, int]:
        """Return the sides of a node that are cut, with their widths; operations have none yet."""
        module = node.module
        if isinstance(module, nn.Parameter):
            name = self._bare.get(module)
            return {} if name is None else {f"dim{node.pruning_dim}": module.shape[node.pruning_dim]}
        return sides(module) if module in self._names else {}

    def _side(self, node: Node, function: Callable[..., Any]) -> str:
        """Return which side of a node a pruning function of Torch-Pruning cuts."""
        module = node.module
        if isinstance(module, nn.Parameter):
            return f"dim{node.pruning_dim}"
        if module in self._names and "in" in sides(module):
            if module not in self._pruners:  # found by a walk through all of Torch-Pruning's kinds of layers
                self._pruners[module] = self._graph.get_pruner_of_module(module)
            pruner = self._pruners[module]
            is_input = function == pruner.prune_in_channels and function != pruner.prune_out_channels
            return "in" if is_input else "out"
        return "out"

    def _spread(self) -> None:
        """Apply the index maps of every dependency to all positions of its source."""
        queue = []
        for node in self._graph.module2node.values():
            for side, size in self._slots_of(node).items():
                self._sizes[node, side] = size
                queue.append((node, side))
        self._fixed = set(self._sizes)
        self._widest = sum(self._sizes.values())  # no operation is wider than all layers together
        while queue:
            source = queue.pop()
            for number, dependency in enumerate(source[0].dependencies):
                if self._side(source[0], dependency.trigger) != source[1] or _is_severed(dependency):
                    continue
                target = (dependency.target, self._side(dependency.target, dependency.handler))
                width = self._connect(source, target, dependency, number)
                if target not in self._fixed and width > self._sizes.get(target, 0):
                    self._sizes[target] = width
                    queue.append(target)

    def _connect(self, source: tuple[Node, str], target: tuple[Node, str], dependency: Any, number: int) -> int:
        """Note which positions of two slots belong together; returns how wide that makes the second."""
        if all(mapping is None for mapping in dependency.index_mapping):
            self._joined.add((source, target))
            return self._sizes[source]
        images = _mapped(dependency, self._sizes[source])
        if images is None:
            self._unmapped |= {source, target}
            return 0
        sources, mapped = images
        width = int(mapped.max()) + 1 if len(mapped) else 0
        if target in self._fixed:
            inside = mapped < self._sizes[target]
            sources, mapped = sources[inside], mapped[inside]
        elif width > self._widest:  # a wrong map, which multiplies positions at every turn of a loop
            self._unmapped |= {source, target}
            return 0
        self._edges[source, number] = (target, sources, mapped)
        return width

    def _number_positions(self) -> tuple[dict[tuple[Node, str], int], int]:
        """Return where the positions of each slot begin; slots that are joined one to one share theirs."""
        number = {key: index for index, key in enumerate(self._sizes)}
        same = [(number[a], number[b]) for a, b in self._joined if self._sizes[a] == self._sizes[b]]
        left, right = np.array(same, dtype=np.int64).reshape(-1, 2).T
        offsets: dict[tuple[Node, str], int] = {}
        starts: dict[int, int] = {}
        total = 0
        for (key, size), label in zip(self._sizes.items(), _component_labels(left, right, len(number)), strict=True):
            if label not in starts:
                starts[label] = total
                total += size
            offsets[key] = starts[label]
        return offsets, total

    def _components(self, offsets: dict[tuple[Node, str], int], total: int) -> Indices:
        rows, columns = [], []
        for (source, _), (target, sources, mapped) in self._edges.items():
            if target in offsets:
                rows.append(sources + offsets[source])
                columns.append(mapped + offsets[target])
        for source, target in self._joined:
            if offsets[source] != offsets[target]:
                shared = np.arange(min(self._sizes[source], self._sizes[target]))
                rows.append(shared + offsets[source])
                columns.append(shared + offsets[target])
        for first, second in self._structural_edges(offsets):
            rows.append(first)
            columns.append(second)
        left = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        right = np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)
        return _component_labels(left, right, total)

    # Edges and pins that follow from what a layer is

    def _positions(self, offsets: dict[tuple[Node, str], int], name: str, side: str) -> Indices | None:
        """Return the positions of one slot in the graph of positions, or None if it was not traced."""
        module = self._modules.get(name)
        node = self._graph.module2node.get(module) if module is not None else None
        key = (node, side)
        if node is None or key not in offsets:
            return None
        return offsets[key] + np.arange(self._sizes[key])

    def _structural_edges(self, offsets: dict[tuple[Node, str], int]) -> Iterator[tuple[Indices, Indices]]:
        for name, module in self._modules.items():
            if isinstance(module, SplitAttention):
                parts = [
                    (f"{name}.{layer}", side)
                    for layer, side in (("q", "out"), ("k", "out"), ("v", "out"), ("out", "in"))
                ]
                blocks = [self._positions(offsets, *part) for part in parts]
                yield from _link_blocks([b for b in blocks if b is not None], module.head_dim)
            elif (found := projections(module)) is not None:
                yield from self._link_heads(offsets, name, module, found)
            elif is_conv(module) and module.groups > 1 and not is_depthwise(module):
                yield from self._link_conv_groups(offsets, name, module)
            elif isinstance(module, nn.GroupNorm):
                block = self._positions(offsets, name, "out")
                if block is not None:
                    yield from _link_blocks([block], module.num_channels // module.num_groups)
        yield from self._link_tied(offsets)
        for name, module in fused_attention(self._model).items():
            fused, inner = (
                self._positions(offsets, f"{name}.qkv", "out"),
                self._positions(offsets, f"{name}.proj", "in"),
            )
            if fused is not None and inner is not None:
                yield from _link_blocks([*np.split(fused, 3), inner], int(module.head_dim))  # type: ignore[arg-type]

    def _link_heads(
        self, offsets: dict[tuple[Node, str], int], name: str, module: nn.Module, found: Projections
    ) -> Iterator[tuple[Indices, Indices]]:
        """Make each head of keys and values, with the queries that it serves, one unit."""
        values = self._positions(offsets, f"{name}.{found.value}", "out")
        if values is None:
            return
        heads = values[:: head_dim(module)]
        for part in (found.query, found.key, found.value, HEAD_TABLE):
            positions = self._positions(offsets, f"{name}.{part}", "out")
            if positions is not None:
                yield np.repeat(heads, len(positions) // len(heads)), positions

    def _link_tied(self, offsets: dict[tuple[Node, str], int]) -> Iterator[tuple[Indices, Indices]]:
        """Join the channels of embeddings that share their weight."""
        for group in self._tied:
            slots = [self._positions(offsets, self._names[module], side) for module, side in group]
            found = [positions for positions in slots if positions is not None]
            for positions in found[1:]:
                yield found[0], positions

    def _link_conv_groups(
        self, offsets: dict[tuple[Node, str], int], name: str, module: Any
    ) -> Iterator[tuple[Indices, Indices]]:
        """Make each group of a grouped convolution, inputs and outputs, one unit."""
        inputs, outputs = self._positions(offsets, name, "in"), self._positions(offsets, name, "out")
        if inputs is None or outputs is None:
            return
        first_outputs = outputs[:: module.out_channels // module.groups]
        yield np.repeat(first_outputs, module.out_channels // module.groups), outputs
        yield np.repeat(first_outputs, module.in_channels // module.groups), inputs

    def _pin(self, offsets: dict[tuple[Node, str], int], label: Indices) -> npt.NDArray[np.bool_]:
        """Return which components must stay; says why for each layer in `pinned`."""
        is_pinned = np.zeros(int(label.max()) + 1 if len(label) else 0, dtype=bool)
        # What a layer says of itself is more to the point than what an operation beside it says.
        layers_first = sorted(offsets.items(), key=lambda item: item[0][0].module not in self._names)
        for (node, side), offset in layers_first:
            reason = self._reason(node, side)
            if reason is not None:
                components = label[offset : offset + self._sizes[node, side]]
                fresh = np.unique(components[~is_pinned[components]])
                is_pinned[fresh] = True
                self._explain(offsets, label, fresh, reason)
        if self._spatial_only:
            fresh = np.flatnonzero(~is_pinned & ~self._spatial(offsets, label))
            is_pinned[fresh] = True
            self._explain(offsets, label, fresh, "spatial_only: no convolution larger than 1x1 produces it")
        return is_pinned

    def _spatial(self, offsets: dict[tuple[Node, str], int], label: Indices) -> npt.NDArray[np.bool_]:
        """Return which components a convolution larger than 1x1 produces."""
        found = np.zeros(int(label.max()) + 1 if len(label) else 0, dtype=bool)
        for (node, side), offset in offsets.items():
            if side == "out" and node.module in self._names and is_spatial(node.module):
                found[label[offset : offset + self._sizes[node, side]]] = True
        return found

    def _reason(self, node: Node, side: str) -> str | None:
        module, name = node.module, self._names.get(node.module, "")
        if node.type == tp_ops.OPTYPE.OUTPUT:
            return "it feeds an output of the network"
        operation = _operation(node)
        if _INPUT in operation:
            return "it is added to an input of the network"
        if _SHUFFLE in operation:
            return "a channel shuffle fixes its width"
        if (node, side) in self._unmapped or (node.type == tp_ops.OPTYPE.RESHAPE and not self._keeps_channels(node)):
            return "its channels cannot be followed through a reshape"
        if name in self._ignored and side == "out":
            return "ignored by the caller"
        if isinstance(module, nn.Module) and name:
            return self._layer_reason(module, name, side)
        return None

    def _keeps_channels(self, node: Node) -> bool:
        """Whether Torch-Pruning's map through a reshape is the right one; it looks at widths alone."""
        before = list(getattr(node.grad_fn, "_saved_self_sym_sizes", []))
        outputs = getattr(node.grad_fn, "_input_metadata", [])
        widths = [self._sizes[source, "out"] for source in node.inputs if (source, "out") in self._sizes]
        if not before or not outputs or not widths:
            return True
        after, width = list(outputs[0].shape), max(widths)
        only_ones_moved = [size for size in before if size != 1] == [size for size in after if size != 1]
        only_rows_split = len(before) == 2 and before[-1] == after[-1]  # inside a linear layer on tokens
        if only_ones_moved or only_rows_split:
            return True
        stride = next((m._stride for d in node.dependencies for m in d.index_mapping if hasattr(m, "_stride")), 1)
        channels_first = before[1:2] == [width] and (len(before) != 3 or before[-1] != width)
        if channels_first:
            flattened = after == [before[0], math.prod(before[1:])] and stride == math.prod(before[2:])
            unflattened = len(before) == 2 and after[:1] == before[:1] and stride == math.prod(after[2:])
            return before[:2] == after[:2] or flattened or unflattened
        return before[-1] == width and after[-1] == width

    def _layer_reason(self, module: nn.Module, name: str, side: str) -> str | None:
        if module in self._shared and not any((module, side) in group for group in self._tied):
            return "its weight is shared with another layer"
        if isinstance(module, nn.Embedding) and side != "out":
            return "vocabularies are not cut"
        parent = self._modules.get(name.rpartition(".")[0])
        if name.endswith((".qkv", ".proj")) and parent is not None and _unknown_heads(parent):
            pins = "out" if name.endswith(".qkv") else "in"
            return "its attention block has no head_dim, so that heads cannot be told apart" if side == pins else None
        return why_not(module)

    def _explain(self, offsets: dict[tuple[Node, str], int], label: Indices, components: Indices, reason: str) -> None:
        wanted = np.zeros(int(label.max()) + 1, dtype=bool)
        wanted[components] = True
        for (node, side), offset in offsets.items():
            name = self._names.get(node.module)
            if not name or side != "out" or not is_producer(node.module):
                continue
            if wanted[label[offset : offset + self._sizes[node, side]]].any():
                self.pinned.setdefault(name, reason)

    # Components to units and groups

    def _collect(self, label: Indices, is_pinned: npt.NDArray[np.bool_], offsets: dict[tuple[Node, str], int]) -> Graph:
        slots, labels, produces = [], [], []
        for (node, side), offset in offsets.items():
            name = self._names.get(node.module) or self._bare.get(node.module)
            if not name or side not in self._slots_of(node):
                continue
            slots.append(Slot(name, side))
            labels.append(label[offset : offset + self._sizes[node, side]])
            produces.append(side == "out" and is_producer(node.module))
        for slot, partner in self._untraced_tied(slots):
            labels.append(labels[slots.index(partner)])
            slots.append(slot)
            produces.append(False)
        order = sorted(range(len(slots)), key=lambda i: self._order(slots[i]))
        return _number_units(
            [slots[i] for i in order], [labels[i] for i in order], [produces[i] for i in order], is_pinned, self.pinned
        )

    def _untraced_tied(self, slots: list[Slot]) -> list[tuple[Slot, Slot]]:
        """Return the sides of tied embeddings that the forward does not call, each with one that it does."""
        found = []
        for group in self._tied:
            own = [Slot(self._names[module], side) for module, side in group]
            traced = [slot for slot in own if slot in slots]
            found += [(slot, traced[0]) for slot in own if traced and slot not in slots]
        return found

    def _order(self, slot: Slot) -> tuple[int, str, str]:
        # Registration order of layers is stable between runs and versions; trace order is not.
        return (self._position.get(slot.name, len(self._position)), slot.name, slot.side)


def _component_labels(left: Indices, right: Indices, total: int) -> Indices:
    """Return the number of the connected component of each of `total` points."""
    edges = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(total, total))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _is_severed(dependency: Any) -> bool:
    return any(_SEVERED in _operation(node) for node in (dependency.source, dependency.target))


def _mapped(dependency: Any, size: int) -> tuple[Indices, Indices] | None:
    """Apply a dependency's index maps to positions 0..size-1: their sources and images, None if that fails."""
    sources = images = np.arange(size)
    for mapping in dependency.index_mapping:
        if mapping is None:
            continue
        translate = _VECTORISED.get(type(mapping), _one_by_one)
        try:
            chosen, images = translate(mapping, images)
        except (IndexError, ZeroDivisionError, TypeError):
            return None
        sources = sources[chosen]
    return sources, images


def _concat_map(mapping: Any, positions: Indices) -> tuple[Indices, Indices]:
    start, end = mapping.offset[0], mapping.offset[1]
    if not mapping.reverse:
        return np.arange(len(positions)), positions + start
    chosen = np.flatnonzero((positions >= start) & (positions < end))
    return chosen, positions[chosen] - start


def _split_map(mapping: Any, positions: Indices) -> tuple[Indices, Indices]:
    start, end = mapping.offset[0], mapping.offset[1]
    if mapping.reverse:
        return np.arange(len(positions)), positions + start
    chosen = np.flatnonzero((positions >= start) & (positions < end))
    return chosen, positions[chosen] - start


def _flatten_map(mapping: Any, positions: Indices) -> tuple[Indices, Indices]:
    stride = mapping._stride
    everything = np.arange(len(positions))
    if mapping.reverse:
        return everything, positions // stride
    return np.repeat(everything, stride), (positions[:, None] * stride + np.arange(stride)).reshape(-1)


def _one_by_one(mapping: Any, positions: Indices) -> tuple[Indices, Indices]:
    """Apply any other map of Torch-Pruning, which works on lists of index pairs."""
    pairs = mapping([tp_helpers._HybridIndex(idx=int(p), root_idx=i) for i, p in enumerate(positions)])
    known = [(pair.root_idx, pair.idx) for pair in pairs if pair.root_idx is not None]
    table = np.array(known, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


# The same maps as Torch-Pruning's, on whole arrays: a dense block has a hundred thousand positions.
_VECTORISED: dict[type, Callable[[Any, Indices], tuple[Indices, Indices]]] = {
    tp_index_mapping._ConcatIndexMapping: _concat_map,
    tp_index_mapping._SplitIndexMapping: _split_map,
    tp_index_mapping._FlattenIndexMapping: _flatten_map,
}


def _link_blocks(slots: list[Indices], block: int) -> Iterator[tuple[Indices, Indices]]:
    """Join block h of every slot into one component."""
    for positions in slots:
        heads = slots[0][::block]
        yield np.repeat(heads, block), positions


def _unknown_heads(module: nn.Module) -> bool:
    qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
    looks_fused = (
        isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and qkv.out_features == 3 * proj.in_features
    )
    return looks_fused and not isinstance(getattr(module, "head_dim", None), int)


def _number_units(
    slots: list[Slot],
    labels: list[Indices],
    produces: list[bool],
    is_pinned: npt.NDArray[np.bool_],
    pinned: dict[str, str],
) -> Graph:
    """Number the components that can be removed and gather those that cut the same slots."""
    produced = np.zeros(len(is_pinned), dtype=bool)
    for components, is_source in zip(labels, produces, strict=True):
        produced[components] |= is_source
    free = produced & ~is_pinned
    # First appearance numbers the units, so that unit order follows channel order.
    flat = np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)
    flat = flat[free[flat]]
    first = np.full(len(is_pinned), -1, dtype=np.int64)
    first[flat[::-1]] = np.arange(len(flat))[::-1]
    seen = np.flatnonzero(first >= 0)
    unit_of_component = np.full(len(is_pinned), -1, dtype=np.int64)
    unit_of_component[seen[np.argsort(first[seen])]] = np.arange(len(seen))
    unit_of = [unit_of_component[components] for components in labels]
    counts = _positions_by_unit(unit_of, len(seen))
    _, first_unit, inverse = np.unique(_row_keys(counts), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first_unit))
    group_of = rank[inverse.reshape(-1)] if len(seen) else np.empty(0, dtype=np.int64)
    by_group = counts[np.sort(first_unit)].toarray() if len(seen) else []
    groups = [_group(index, row, slots) for index, row in enumerate(by_group)]
    return Graph(slots, unit_of, group_of.astype(np.int64), groups, pinned)


def _positions_by_unit(unit_of: list[Indices], units: int) -> Any:
    """Return how many positions of each slot each unit takes: shape (units, slots), nearly all of it zero."""
    rows = np.concatenate(unit_of) if unit_of else np.empty(0, dtype=np.int64)
    columns = np.repeat(np.arange(len(unit_of)), [len(each) for each in unit_of])
    free = rows >= 0
    ones = np.ones(int(free.sum()), dtype=np.int64)
    return csr_matrix((ones, (rows[free], columns[free])), shape=(units, len(unit_of)))


def _row_keys(counts: Any) -> Indices:
    """Return one number a row that is the same for the same rows: sorting numbers is faster than sorting rows."""
    weights = np.random.default_rng(0).integers(1, 2**62, size=counts.shape[1], dtype=np.int64)
    with np.errstate(over="ignore"):
        return counts @ weights


def _group(index: int, counts: Indices, slots: list[Slot]) -> Group:
    cut_slots = tuple(slots[i] for i in np.flatnonzero(counts))
    width = max(int(counts[i]) for i in np.flatnonzero(counts) if slots[i].side != "in")
    return Group(index, cut_slots, width)
