"""Trace one forward: every dimension of every tensor carries an expression of axes.

Operations are seen below autograd, after composed ones have been decomposed. Tensors hold no data at first; a forward
that looks at values is run on the real tensors instead. The network is left unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ifap.axes.dispatch import DispatchMode
from ifap.axes.expressions import Atom, CannotAgreeError, Expression, Reason, atoms_of, pin, resolve, size_of, unify
from ifap.axes.fakes import device_or_call, quick
from ifap.axes.running import Running
from ifap.axes.sizes import Place, Recorder

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


Dims = list[Expression]
Rule = Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any], Any], Any]
"""Takes the tracer, the operation, its arguments and its output; gives the dimensions of the output."""


class Carried:
    """The axes and properties that a trace attaches to a tensor.

    `name` is that of the parameter, buffer or attribute that the tensor is, and `source` that of the one parameter that
    it is made from; both may be empty. `weight` says whether it is made from parameters alone, `softmax` whether it is
    made from probabilities. `deferred_pins` are axes to pin once the values are used, with the reasons.
    """

    __slots__ = ("deferred_pins", "dims", "name", "softmax", "source", "weight")

    def __init__(
        self,
        dims: Dims,
        *,
        name: str = "",
        source: str = "",
        weight: bool = False,
        softmax: bool = False,
        deferred_pins: Sequence[tuple[Expression, Reason]] = (),
    ) -> None:
        self.dims, self.name, self.source = dims, name, source
        self.weight, self.softmax, self.deferred_pins = weight, softmax, deferred_pins


@dataclass(frozen=True)
class Multiplication:
    """One product of a forward: its multiply-accumulates are the product of the sizes."""

    module: str
    sizes: tuple[Expression, ...]


class Attention(NamedTuple):
    """One call that makes attention probabilities.

    Parameters
    ----------
    module : str
        The innermost module whose forward makes it.
    function : str
        ``softmax`` or ``scaled_dot_product_attention``.
    ordinal : int
        How many calls of that name the module makes before it.
    """

    module: str
    function: str
    ordinal: int


@dataclass
class Forward:
    """Observations of a traced forward that do not depend on the widths of the network.

    Parameters
    ----------
    output_shapes : list of tuple of int
        Shape of each output in evaluation.
    training_shapes : list of tuple of int or None
        Shape of each output in training; None where the mode makes no difference, or the network does not run in it.
    samples : list
        Further inputs that reached layers which the example inputs do not reach.
    values : bool
        Whether it looks at values, so that it was run on the real tensors. Output shapes may depend on these.
    has_integer_inputs : bool
        Whether an operation takes integers, which may be indices: only real ones show whether they are in range.
    unknown : dict of str to str
        Operations without a rule, and the module that used each first.
    """

    output_shapes: list[tuple[int, ...]] = field(default_factory=list)
    training_shapes: list[tuple[int, ...]] | None = None
    samples: list[Any] = field(default_factory=list)
    values: bool = False
    has_integer_inputs: bool = False
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass
class Axes:
    """The result of a trace.

    Parameters
    ----------
    forward : Forward
        Observations that do not depend on the widths of the network.
    dims : dict of str to list of Expression
        The dimensions of each parameter, buffer and tensor attribute.
    multiplications : list of Multiplication
        The products of the evaluation pass.
    producers : dict of str to list of int
        Weights that make units, and the dimensions that count them.
    made : dict of str to Expression
        The units that a layer makes with a weight that is computed.
    inputs : dict of str to Expression
        Channels that the grouped convolution with a weight reads.
    ties : list of (Expression, Expression, Reason)
        Pairs of axes that must keep the same number of positions, with the reason for pinning them if they cannot.
    aligned : list of (Expression, int)
        Axes whose number of positions must stay a multiple of a number.
    reached : set of str
        Tensors that some pass used.
    seen : dict of str to list of Expression
        For each module the axes that its own forward handles, if a parameter is not reached.
    recorders : list of Recorder
        The sizes, comparisons and calls of each pass.
    attention : dict of Attention to Expression
        Calls that make attention probabilities, and the axis that may count their heads.
    unsteady : set of Place
        Calls that have other sizes in training.
    """

    forward: Forward = field(default_factory=Forward)
    dims: dict[str, Dims] = field(default_factory=dict)
    multiplications: list[Multiplication] = field(default_factory=list)
    producers: dict[str, list[int]] = field(default_factory=dict)
    made: dict[str, Expression] = field(default_factory=dict)
    inputs: dict[str, Expression] = field(default_factory=dict)
    ties: list[tuple[Expression, Expression, Reason]] = field(default_factory=list)
    aligned: list[tuple[Expression, int]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    seen: dict[str, list[Expression]] = field(default_factory=dict)
    recorders: list[Recorder] = field(default_factory=list)
    attention: dict[Attention, Expression] = field(default_factory=dict)
    unsteady: set[Place] = field(default_factory=set)


def carried(x: Tensor) -> Carried:
    """Return the axes and properties of a tensor; the dimensions of an unknown tensor are fixed."""
    found = x.__dict__.get("_carried")
    if found is None:
        found = x.__dict__["_carried"] = Carried([int(size) for size in x.shape])
    return found


class Tracer(DispatchMode):
    """Carry axes through every operation while it is open; fills `axes`.

    `rules` maps an operation, such as ``aten.view``, to its rule; see `ifap.axes.operations`. `pointwise` is the rule
    of operations that work on each value alone, which need no entry if torch tags them. `products` are the rules of
    products, whose outputs are neither weights nor probabilities.
    """

    def __init__(
        self,
        axes: Axes,
        running: Running,
        rules: Mapping[str, Rule],
        pointwise: Rule,
        products: Collection[Rule],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = axes
        self._rules, self._pointwise, self._products = rules, pointwise, products
        self.running = running
        self.counts_products = True
        self.sees = False  # whether to record the axes that each module handles
        self._known: dict[Any, Rule | None] = {}
        self._operation = ""

    # methods for rules

    def dims(self, x: Tensor) -> Dims:
        """Return the dimensions of a tensor whose values are used now."""
        found = carried(x)
        if found.deferred_pins:
            for axis, reason in found.deferred_pins:
                pin(axis, reason)
            found.deferred_pins = ()
        if found.name:
            self.axes.reached.add(found.name)
        return found.dims

    def sizes(self, out: Any) -> Any:
        """Return fixed dimensions for an output."""
        if isinstance(out, Tensor):
            return [int(size) for size in out.shape]
        return [self.sizes(each) for each in out] if isinstance(out, (tuple, list)) else []

    def reason(self, text: str) -> Reason:
        """Return a reason that names the module at work."""
        return Reason(text, self.running.module)

    def pin(self, axis: Expression, text: str) -> None:
        """Pin an axis."""
        if not isinstance(axis, int):
            pin(axis, self.reason(text))

    def unify(self, a: Expression, b: Expression, func: Any) -> None:
        """Unify two axes."""
        if a is not b and resolve(a) is not resolve(b):
            unify(a, b, self.reason(f"{self.name_of(func)} joins it with an axis that stays or differs"))

    def shape_like(self, out: Tensor, x: Tensor, other: Tensor, function: str) -> None:
        """Give `out`, which was made of `x`, the axes of `other`, whose shape it was given."""
        dims, lead = carried(out).dims, out.dim() - x.dim()
        for place, (mine, its) in enumerate(zip(dims, carried(other).dims, strict=True)):
            if "expand" in function and (place < lead or x.shape[place - lead] == 1):
                dims[place] = its
            else:
                self.unify(mine, its, function)

    def pin_all(self, args: Any, kwargs: Any, text: str) -> Any:
        """Pin every axis of every argument; the outputs are fixed."""
        for x in tensors_in((*args, *kwargs.values())):
            for dim in self.dims(x):
                self.pin(dim, text)
        return None

    def pin_on_use(self, out: Tensor, axis: Expression, text: str) -> None:
        """Pin an axis as soon as the values of `out` are used."""
        if not isinstance(axis, int):
            self._deferred_pins.setdefault(id(out), []).append((axis, self.reason(text)))

    def tie(self, a: Expression, b: Expression) -> None:
        """Let two axes keep the same number of positions."""
        if resolve(a) is not resolve(b):
            self.axes.ties.append((a, b, self.reason("it must keep as many units as an axis that stays")))

    def align(self, axis: Expression, multiple: int) -> None:
        """Let an axis keep a multiple of a number of positions."""
        if multiple > 1:
            self.axes.aligned.append((axis, multiple))

    def multiply(self, *sizes: Expression) -> None:
        """Record the sizes of a product."""
        if self.counts_products:
            self.axes.multiplications.append(Multiplication(self.running.module, sizes))

    def produced(self, weight: Tensor, dim: int, axis: Expression) -> None:
        """Note that a weight makes the units of an axis along one of its dimensions."""
        found = carried(weight)
        if found.name:
            self._note_producer(found.name, dim)
        else:
            self._note_source(found, axis)

    def produced_by(self, x: Tensor, y: Tensor, rows: Expression, columns: Expression) -> None:
        """Record which of two factors is a weight that makes units."""
        for factor_, axis in ((y, columns), (x, rows)):
            if carried(factor_).weight:
                self._note_source(carried(factor_), axis)

    def _note_producer(self, name: str, dim: int) -> None:
        places = self.axes.producers.setdefault(name, [])
        if dim not in places:
            places.append(dim)

    def _note_source(self, weight: Carried, axis: Expression) -> None:
        """Record the parameter behind a weight as the producer of an axis, which is a part or a multiple of its own."""
        atoms = set(atoms_of(axis))
        for place, dim in enumerate(self.axes.dims.get(weight.source, ())):
            if not atoms.isdisjoint(atoms_of(dim)):
                self._note_producer(weight.source, place)
        if not weight.name and atoms:
            self.axes.made.setdefault(self.running.module, axis)

    def read(self, weight: Tensor, channels: Expression) -> None:
        """Record the input channels of a convolution weight."""
        found = carried(weight)
        if found.source:
            self.axes.inputs.setdefault(found.source, channels)

    def is_weight(self, x: Tensor) -> bool:
        """Whether a tensor is made from parameters alone."""
        return carried(x).weight

    def is_softmax(self, x: Tensor) -> bool:
        """Whether a tensor is made from probabilities."""
        return carried(x).softmax

    def mark_softmax(self) -> None:
        """Note that an output holds probabilities."""
        self._softmax = True

    def name_of(self, func: Any) -> str:
        """Return the name of an operation."""
        return func if isinstance(func, str) else str(func._overloadpacket.__name__)

    # operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return device_or_call(func, args, kwargs)
        rule = self._known[func] if func in self._known else self._look_up(func)
        if rule is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            rule = _unknown
            self._known[func] = rule
        out = quick(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        self._carry(rule, func, args, kwargs, out)
        return out

    def _look_up(self, func: Any) -> Rule | None:
        """Return the rule of an operation; None for one that is to be decomposed."""
        name = f"{func.namespace}.{func._overloadpacket.__name__}"
        rule = self._rules.get(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self._pointwise
        if rule is None and name.endswith("_"):
            rule = self._rules.get(name[:-1])
        if rule is None and not func._can_decompose():
            rule = _unknown
        self._known[func] = rule
        return rule

    def _carry(self, rule: Any, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        inputs = tensors_in((*args, *kwargs.values()) if kwargs else args)
        self._deferred_pins: dict[int, list[tuple[Expression, Reason]]] = {}
        self._softmax = False
        try:
            dims = rule(self, func, args, kwargs, out)
        except (ValueError, IndexError, TypeError, AttributeError, KeyError, CannotAgreeError):
            dims = _unknown(self, func, args, kwargs, out)  # called in a way that its rule does not know
        known = [carried(x) for x in inputs]
        if not self.axes.forward.has_integer_inputs:
            self.axes.forward.has_integer_inputs = any(x.dtype in _INTEGERS for x in inputs)
        weight, softmax = False, self._softmax
        if rule not in self._products:
            weight = _is_weight(known)
            softmax = softmax or any(each.softmax for each in known)
        sources = {each.source for each in known if each.source} if weight else ()
        outs = out if isinstance(out, (tuple, list)) else (out,)
        many = dims if isinstance(out, (tuple, list)) and dims is not None else (dims,) * len(outs)
        for each, its in zip(outs, many, strict=False):
            if not isinstance(each, Tensor):
                continue
            if its is None:
                its = self.sizes(each)
            before = each.__dict__.get("_carried")
            each.__dict__["_carried"] = Carried(
                its,
                name=before.name if before is not None and any(each is x for x in inputs) else "",
                source=self._source(sources, its),
                weight=weight,
                softmax=softmax,
                deferred_pins=self._deferred_pins.get(id(each), ()),
            )
            if self.sees:
                self._see(each)

    def _see(self, x: Tensor) -> None:
        """Record that the running module handles the axes of a tensor."""
        seen = self.axes.seen.setdefault(self.running.module, [])
        seen += [dim for dim in carried(x).dims if not isinstance(dim, int)]

    def hand_back(self, module: nn.Module, args: Any, output: Any) -> None:
        """Record that the running module handles the arguments and outputs of a module that it called."""
        for x in tensors_in((*args, output)):
            if "_carried" in x.__dict__:
                self._see(x)

    def _source(self, names: Collection[str], dims: Dims) -> str:
        """Return which source weight has the axes of a tensor; parameters come before masks."""
        if len(names) < 2:
            return next(iter(names), "")
        wanted = [resolve(dim) for dim in dims]
        same = (name for name, own in self.axes.dims.items() if name in names and [*map(resolve, own)] == wanted)
        return next(same, "")


def _is_weight(known: list[Carried]) -> bool:
    """Whether an operation reads only weights, and numbers that scale them."""
    if not any(each.weight for each in known):  # nearly always
        return False
    vectors = [each for each in known if any(size_of(dim) != 1 for dim in each.dims)]
    return all(each.weight for each in vectors or known)


def _unknown(t: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """Pin the axes of all inputs of an operation without a rule."""
    name = f"{func.namespace}.{t.name_of(func)}"
    t.axes.forward.unknown.setdefault(name, t.running.module)
    return t.pin_all(args, kwargs, f"the operation {name} is not followed")


def pin_outputs(outputs: Iterable[Tensor], tracer: Tracer) -> list[tuple[int, ...]]:
    """Pin every axis of the outputs; returns their shapes."""
    shapes = []
    for x in outputs:
        shapes.append(tuple(x.shape))
        for dim in tracer.dims(x):
            pin(dim, Reason("it is an output of the network"))
    return shapes


def start(axes: Axes, tensors: dict[str, Tensor]) -> None:
    """Let every dimension of every named tensor be an axis of its own."""
    for name, tensor in tensors.items():
        dims = axes.dims.get(name)
        if dims is None:
            free = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool  # no index
            dims = [Atom(size) if size > 1 and free else int(size) for size in tensor.shape]
            axes.dims[name] = dims
        tensor.__dict__["_carried"] = Carried(dims, name=name, source=name, weight=True)


def tie_renewed(tensors: dict[str, Tensor], now: Iterable[tuple[str, Tensor]], tracer: Tracer) -> None:
    """Unify a tensor with the one by which the forward replaces it, such as a table for longer inputs."""
    for name, tensor in now:
        before = tensors.get(name)
        if before is None or before is tensor or before.dim() != tensor.dim():
            continue
        tracer.axes.reached.add(name)
        for mine, other in zip(carried(before).dims, carried(tensor).dims, strict=True):
            if size_of(mine) == size_of(other) and resolve(mine) is not resolve(other):
                unify(mine, other, tracer.reason("a tensor that the forward replaces does not follow it"))


def tensors_in(items: Any) -> list[Tensor]:
    """Return the tensors among arguments, lists included."""
    found: list[Tensor] = []
    for item in items:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found.extend(tensors_in(item))
    return found
