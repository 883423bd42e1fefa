"""Find prunable units, the positions they occupy, and pinned axes with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import Tensor, nn

from ifap.arguments import BATCHES_ONCE, INPUTS, LAYERS, MODULE, NAMES, checked, one_of, optional
from ifap.axes.grouping import find_units
from ifap.axes.passes import trace_axes
from ifap.axes.units import UNITS, Graph
from ifap.errors import ConfigError, GraphError, nearest
from ifap.forward import (
    Inputs,
    call,
    dense_outputs,
    device_of,
    refuse_unmade,
    task_tensors,
    tensors,
    to_device,
    unwrapped,
)
from ifap.layers import modules_by_name, parameters_by_name
from ifap.printing import as_text

_MOST_LINES = 40


@checked(model=MODULE, example_inputs=INPUTS, ignore=LAYERS, units=one_of(*UNITS), outputs=optional(NAMES))
def trace(
    model: nn.Module,
    example_inputs: Inputs,
    ignore: Iterable[str | nn.Module] = (),
    *,
    spatial_only: bool = False,
    units: str = "auto",
    outputs: Sequence[str] | None = None,
    keep_embeddings: bool = False,
    uniform: bool = False,
    samples: Iterable[Inputs] = (),
) -> Graph:
    """Trace a network and find its units.

    Parameters
    ----------
    model : nn.Module
        The network; it is left as it was.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward.
    ignore : iterable of str or nn.Module
        Layers, or parts of the network with all their layers, whose outputs must stay.
    spatial_only, units, outputs, keep_embeddings, uniform
        See `ifap.prune`.
    samples : iterable
        Further inputs on the device of the network, for layers that the example inputs do not reach.

    Returns
    -------
    Graph
        Units, groups, and what is pinned and why.

    Raises
    ------
    GraphError
        If the network does not run on its example inputs, or `ignore` names something that it does not have.
    """
    refuse_unmade(model)
    if any(tensor.is_nested for tensor in tensors(example_inputs)):
        raise ConfigError("example inputs hold a nested tensor: give samples of one length, with a mask of the padding")
    ignored = _ignored(model, ignore)
    with dense_outputs(model):
        axes, attributes = trace_axes(
            model, example_inputs, call, lambda found: task_tensors(model, found, outputs), samples
        )
    return find_units(
        model,
        axes,
        attributes,
        ignored=ignored,
        spatial_only=spatial_only,
        units=units,
        keep_embeddings=keep_embeddings,
        uniform=uniform,
    )


def _ignored(model: nn.Module, ignore: Iterable[str | nn.Module]) -> set[str]:
    """Return the names of everything inside the parts of a network that are to stay."""
    ignore = [ignore] if isinstance(ignore, (str, nn.Module)) else list(ignore)
    if not ignore:
        return set()
    modules = modules_by_name(model)
    names = {module: name for name, module in modules.items()}
    parameters = parameters_by_name(model)
    ignored: set[str] = set()
    for item in ignore:
        name = item if isinstance(item, str) else names.get(item)
        if name in parameters:
            ignored.add(name)
            continue
        if name is None or name not in modules:
            shown = item if isinstance(item, str) else type(item).__name__
            raise GraphError(f"ignore: the network has no layer '{shown}': {nearest(str(shown), modules)}")
        ignored.update(f"{name}.{inner}".strip(".") for inner in modules_by_name(modules[name]))
    return ignored


@dataclass(frozen=True)
class AxisView:
    """One axis that can be cut.

    Parameters
    ----------
    name : str
        The first layer that makes it.
    units : int
        How many units it has.
    layers : dict of str to int
        Positions removed with a unit: layer and side to their number.
    share : float
        Share of the network's multiply-accumulates that fall if the whole axis went.
    equal_to : list of str
        Axes that must keep the same number of units.
    multiple_of : int
        What the number of units must stay a multiple of.
    """

    name: str
    units: int
    layers: dict[str, int]
    share: float
    equal_to: list[str]
    multiple_of: int


@dataclass(frozen=True)
class StayView:
    """One layer whose outputs stay.

    Parameters
    ----------
    name : str
        The layer.
    reason : str
        Why.
    share : float
        Its share of the network's multiply-accumulates.
    """

    name: str
    reason: str
    share: float


@dataclass(frozen=True)
class View:
    """The prunable units and pinned layers of a network; print it to read it.

    Parameters
    ----------
    macs, params : int
        Cost of the network as it is.
    axes : list of AxisView
        What can be cut, the most expensive first.
    stays : list of StayView
        What stays and why, the most expensive first.
    attributes : dict of str to int
        Sizes that the forward reads from attributes, which follow a cut, with their present values.
    calls : list of str
        Calls whose size arguments are corrected after a cut.
    unknown : dict of str to str
        Operations that are not followed, and the module that uses each.
    """

    macs: int
    params: int
    axes: list[AxisView]
    stays: list[StayView]
    attributes: dict[str, int]
    calls: list[str]
    unknown: dict[str, str]

    def __str__(self) -> str:
        parts: list[str | Table] = [f"{self.macs:,} multiply-accumulates, {self.params:,} parameters"]
        parts.append(self._axes_table())
        if self.stays:
            parts.append(self._stays_table())
        if self.attributes:
            parts.append(f"attributes that follow a cut: {_listed([f'{k}={v}' for k, v in self.attributes.items()])}")
        if self.calls:
            parts.append(f"calls that are corrected after a cut: {_listed(self.calls)}")
        parts += [f"not followed: the operation {name} in '{module}'" for name, module in self.unknown.items()]
        return as_text(*parts)

    def _axes_table(self) -> Table:
        table = Table("axis", "units", "MACs", "removed with a unit", title="can be cut", title_justify="left")
        for axis in self.axes[:_MOST_LINES]:
            parts = [f"{layer} {number}" if number > 1 else layer for layer, number in axis.layers.items()]
            text = _listed(parts, 6)
            if axis.equal_to:
                text += f"; as many as {_listed(axis.equal_to, 3)}"
            if axis.multiple_of > 1:
                text += f"; a multiple of {axis.multiple_of} stays"
            table.add_row(axis.name, str(axis.units), f"{axis.share:.1%}", text)
        if len(self.axes) > _MOST_LINES:
            table.add_row(f"... {len(self.axes) - _MOST_LINES} more", "", "", "")
        return table

    def _stays_table(self) -> Table:
        table = Table("layer", "MACs", "why", title="stays", title_justify="left")
        for layer in self.stays[:_MOST_LINES]:
            table.add_row(layer.name, f"{layer.share:.1%}", layer.reason)
        if len(self.stays) > _MOST_LINES:
            table.add_row(f"... {len(self.stays) - _MOST_LINES} more", "", "")
        return table


def _listed(items: Sequence[str], most: int = 8) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > most else ""
    return ", ".join(items[:most]) + more


@checked(
    model=MODULE, example_inputs=INPUTS, ignore=LAYERS, units=one_of(*UNITS), batches=BATCHES_ONCE,
    outputs=optional(NAMES),
)  # fmt: skip
def inspect(
    model: nn.Module,
    example_inputs: Inputs,
    ignore: Iterable[str | nn.Module] = (),
    *,
    units: str = "auto",
    outputs: Sequence[str] | None = None,
    batches: Iterable[Inputs] = (),
) -> View:
    """Find prunable units, the positions they occupy, and pinned axes with reasons; no weight is changed.

    Parameters
    ----------
    model : nn.Module
        Any network; it is left as it was.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward. Only shapes and types matter, unless the forward looks at values.
    ignore, units, outputs
        See `ifap.prune`.
    batches : iterable, optional
        Calibration inputs, as `ifap.prune` takes them: some may reach layers that the example inputs do not.

    Returns
    -------
    View
        The axes, what stays, and the sizes that will be corrected; readable when printed.

    Raises
    ------
    GraphError
        If the network does not run on its example inputs.

    Examples
    --------
    >>> print(ifap.inspect(net, images[:1]))
    """
    model = unwrapped(model)
    samples = (to_device(batch, device_of(model)) for batch in batches)
    graph = trace(model, example_inputs, ignore, units=units, outputs=outputs, samples=samples)
    return view_of(graph)


def view_of(graph: Graph) -> View:
    """Return the readable view of units that were traced."""
    structure, counts = graph.structure, graph.units_per_group().astype(float)
    forms = structure.forms
    macs = forms.total_macs(counts)
    by_module = forms.macs_by_module(counts)
    names = [group.name for group in graph.groups]
    positions = graph.positions_per_unit().astype(int).tolist()
    axes = []
    for group, members in zip(graph.groups, structure.classes(), strict=True):
        gone = counts.copy()
        gone[group.index] = 0
        axes.append(
            AxisView(
                name=names[group.index],
                units=int(counts[group.index]),
                layers={
                    f"{slot.name} {slot.side}": n
                    for slot, n in zip(graph.slots, positions[group.index], strict=True)
                    if n
                },
                share=(macs - forms.total_macs(gone)) / max(macs, 1),
                equal_to=[names[other] for other in members if other != group.index],
                multiple_of=structure.multiples.get(group.index, 1),
            )
        )
    stays = [StayView(name, reason, _share(by_module, name) / max(macs, 1)) for name, reason in graph.pinned.items()]
    attributes, calls = structure.sizes.may_change()
    return View(
        macs=macs,
        params=forms.params(counts),
        axes=sorted(axes, key=lambda axis: -axis.share),
        stays=sorted(stays, key=lambda layer: -layer.share),
        attributes={".".join(map(str, key)).lstrip("."): value for key, value in attributes.items()},
        calls=calls,
        unknown=structure.forward.unknown,
    )


def _share(by_module: dict[str, int], name: str) -> int:
    return by_module.get(name, by_module.get(name.rpartition(".")[0], 0))


def output_tensors(model: nn.Module, inputs: Inputs, outputs: Sequence[str] | None = None) -> list[Tensor]:
    """Run a network and return the outputs whose shape must stay."""
    with dense_outputs(model):
        return list(task_tensors(model, call(model, inputs), outputs))
