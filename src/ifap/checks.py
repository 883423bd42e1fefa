"""Check that a network still runs after a cut, and returns outputs of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from ifap.axes.corrections import CannotFollowError
from ifap.axes.cut import cut_units
from ifap.axes.proof import Proof
from ifap.axes.units import Graph, Indices
from ifap.costs import NetworkError, probe, run_once
from ifap.errors import GraphError
from ifap.forward import Inputs
from ifap.layers import is_within

_CHEAP_MACS = 3e8  # of a forward that takes no longer than one without data


class Refusal(Exception):  # noqa: N818
    """A cut that cannot be made, found before anything was changed."""

    def __init__(self, groups: set[int], reason: str) -> None:
        super().__init__(reason)
        self.groups, self.reason = groups, reason


def check_outputs(model: nn.Module, graph: Graph, example_inputs: Inputs, outputs: Sequence[str] | None = None) -> None:
    """Run a cut network on its example: for real where only that shows whether it works, or is as quick as data-free.

    Raises
    ------
    NetworkError
        If it fails, or its outputs have other shapes than those of the network that was traced.
    """
    structure = graph.structure
    is_cheap = structure.forms.total_macs(graph.units_per_group().astype(float)) < _CHEAP_MACS
    if (structure.looks_up or is_cheap) and next(model.parameters()).device.type != "meta":
        found = run_once(model, example_inputs, outputs)
    else:
        found = probe(model, example_inputs, outputs).output_shapes
    wanted = structure.output_shapes
    if structure.values:  # shapes depend on what the network computes: how many boxes, how long a sound
        wanted, found = [(len(shape),) for shape in wanted], [(len(shape),) for shape in found]
    if wanted != found:
        raise NetworkError("the shape of the outputs would change", "")


class UnprovenError(GraphError):
    """The cut network does not compute what the masked one does; holds the axes that make it differ."""

    def __init__(self, proof: Proof, groups: set[int], names: Sequence[str]) -> None:
        layers = ", ".join(f"'{name}'" for name in names)
        super().__init__(
            f"the proof fails where {layers} is cut: the cut network differs from the masked one by "
            f"{proof.difference:.2g} of its largest output, so that no network is returned; "
            f"ignore {layers}, or switch the proof off with prove=False"
        )
        self.groups = groups


def require(proof: Proof, graph: Graph, removed: Indices, compare: Callable[[Indices], Proof]) -> None:
    """See that a proof holds.

    Parameters
    ----------
    proof : Proof
        Of cutting the units `removed`.
    graph : Graph
        The units of the unpruned network.
    removed : integer array
        The units that pruning removed.
    compare : callable
        Makes the proof for some of them.

    Raises
    ------
    UnprovenError
        If it does not hold.
    """
    if proof.holds:
        return

    def holds(groups: set[int]) -> bool:
        return compare(_of_axes(graph, removed, groups)).holds

    found = at_fault(tied_axes(graph, removed), holds)
    raise UnprovenError(proof, found, [graph.groups[group].name for group in sorted(found)])


def _of_axes(graph: Graph, removed: Indices, groups: set[int]) -> Indices:
    """Return the removed units that are of some axes."""
    return removed[np.isin(graph.group_of[removed], [*groups])]


def tied_axes(graph: Graph, removed: Indices) -> list[set[int]]:
    """Return the axes that lose units; those that must lose as many are together."""
    losing = set(graph.group_of[removed].tolist())
    together = [members for each in graph.structure.tied if (members := set(each) & losing)]
    return together + [{group} for group in sorted(losing.difference(*together))]


def at_fault(axes: list[set[int]], holds: Callable[[set[int]], bool]) -> set[int]:
    """Bisect for the axes that break something; all of them if they break it only together.

    Parameters
    ----------
    axes : list of set of int
        Axes that break it when all are cut; those of one set are cut together.
    holds : callable
        Whether nothing breaks if some axes alone are cut.
    """
    everything = set().union(*axes)
    if len(axes) < 2:
        return everything
    halves = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    broken = [half for half in halves if not holds(set().union(*half))]
    return set().union(*(at_fault(half, holds) for half in broken)) if broken else everything


def axes_at_fault(
    model: nn.Module,
    graph: Graph,
    removed: Indices,
    error: NetworkError,
    example_inputs: Inputs,
    outputs: Sequence[str] | None = None,
) -> set[int]:
    """Return the axes that must stay because a network that lost units does not run.

    These are the axes of the layer that failed. If it is not known, some axes are cut without the others.
    """
    together = tied_axes(graph, removed)
    near = {
        group.index for group in graph.groups if any(is_within(slot.name, error.module) for slot in group.slots)
    } & set().union(*together)
    if near:
        return near

    def runs(groups: set[int]) -> bool:
        return _runs_without(model, graph, _of_axes(graph, removed, groups), example_inputs, outputs)

    return at_fault(together, runs)


def _runs_without(
    model: nn.Module, graph: Graph, removed: Indices, example_inputs: Inputs, outputs: Sequence[str] | None
) -> bool:
    try:
        smaller, undo = cut_units(model, graph, removed)
    except CannotFollowError:
        return False
    try:
        check_outputs(model, smaller, example_inputs, outputs)
    except NetworkError:
        return False
    finally:
        undo()
    return True


def because(pinned: dict[str, str]) -> str:
    """Return the end of a line that says why nothing can be cut."""
    if not pinned:
        return ": it has no convolution, linear layer or attention that the outputs depend on"
    name, reason = next(iter(pinned.items()))
    return f": for example '{name}' stays because {reason}"
