"""Check that a network still runs after a cut, and returns outputs of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from ifap.axes.corrections import CannotFollowError
from ifap.axes.cut import cut_units
from ifap.axes.expressions import atoms_of
from ifap.axes.proof import Proof
from ifap.axes.units import Graph, Indices, last_units, trial_counts
from ifap.costs import NetworkError, run_once, shapes_in_training, shapes_without_data
from ifap.errors import GraphError
from ifap.forward import Inputs
from ifap.layers import is_within, modules_by_name

_CHEAP_MACS = 1e8  # of a forward that takes no longer than one without data


class Refusal(Exception):  # noqa: N818
    """A cut that cannot be made, found before anything was changed; holds why each of some axes must stay."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons


class TrainingModeError(NetworkError):
    """A cut network does not run in training."""


class Checks:
    """Check that a cut network runs, in evaluation and in training, with outputs of the same shapes.

    See `ifap.prune` for the arguments.
    """

    def __init__(self, example_inputs: Inputs, outputs: Sequence[str] | None = None) -> None:
        self._inputs, self._outputs = example_inputs, outputs
        self._ran: list[tuple[set[int], Indices]] = []  # axes that were cut, and units left, when it ran in training

    def check(self, model: nn.Module, graph: Graph) -> None:
        """Run a cut network: on real tensors if it takes integers or is cheap, else without data.

        Raises a NetworkError if it fails, or if its outputs have other shapes than those of the traced network.
        """
        structure, forward = graph.structure, graph.structure.forward
        is_cheap = structure.forms.total_macs(graph.units_per_group().astype(float)) < _CHEAP_MACS
        if (forward.has_integer_inputs or is_cheap) and next(model.parameters()).device.type != "meta":
            found = run_once(model, self._inputs, self._outputs)
        else:
            found = self._shapes(model)
        _compare(forward.output_shapes, found, graph)
        if forward.training_shapes is not None:
            self._check_training(model, graph, forward.training_shapes)

    def _shapes(self, model: nn.Module) -> list[tuple[int, ...]]:
        with suppress(NetworkError):  # the forward may look at values
            return shapes_without_data(model, self._inputs, self._outputs)
        return run_once(model, self._inputs, self._outputs)

    def _check_training(self, model: nn.Module, graph: Graph, wanted: list[tuple[int, ...]]) -> None:
        """Run a cut network in training, where a forward may make other calls than the traced one."""
        counts = graph.units_per_group()
        cut = {group for axis, group in graph.structure.atoms.items() if counts[group] < axis.size}
        sizes = {group: axis.size for axis, group in graph.structure.atoms.items()}
        if any(cut <= seen and not _parted(sizes, before, counts) for seen, before in self._ran):
            return
        try:
            _compare(wanted, shapes_in_training(model, self._inputs, self._outputs), graph)
        except NetworkError as error:
            reason = f"without some of it a forward in training fails ({error.reason})"
            raise TrainingModeError(reason, error.module) from error
        self._ran.append((cut, counts))


def _parted(sizes: dict[int, int], before: Indices, now: Indices) -> bool:
    """Whether axes of one size that had the same number of units left before, perhaps by chance, differ now."""
    found: dict[tuple[int, int], int] = {}
    return any(found.setdefault((size, before[group]), now[group]) != now[group] for group, size in sizes.items())


def _compare(wanted: list[tuple[int, ...]], found: list[tuple[int, ...]], graph: Graph) -> None:
    if graph.structure.forward.values:  # shapes depend on values: how many boxes, how long a sound
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
    """Raise an UnprovenError that names the axes at fault if a proof does not hold.

    `proof` is that of cutting the units `removed` of the unpruned network, which `graph` describes. `compare` makes the
    proof for some of these units.
    """
    if proof.holds:
        return

    def holds(groups: set[int]) -> bool:
        return compare(_of_axes(graph, removed, groups)).holds

    found = at_fault(tied_axes(graph, removed), holds)
    raise UnprovenError(proof, found, [graph.groups[group].name for group in sorted(found)])


def _of_axes(graph: Graph, removed: Indices, groups: set[int]) -> Indices:
    """Return the removed units of some axes."""
    return removed[np.isin(graph.group_of[removed], [*groups])]


def tied_axes(graph: Graph, removed: Indices) -> list[set[int]]:
    """Return the axes that lose units; tied axes are grouped."""
    losing = set(graph.group_of[removed].tolist())
    together = [members for each in graph.structure.tied if (members := set(each) & losing)]
    return together + [{group} for group in sorted(losing.difference(*together))]


def at_fault(axes: list[set[int]], holds: Callable[[set[int]], bool]) -> set[int]:
    """Bisect for the axes whose cut makes a check fail; all of them if it fails only when they are cut together.

    The check fails when all `axes` are cut; those of one set are cut together. ``holds(some)`` says whether it holds
    when only some axes are cut.
    """
    everything = set().union(*axes)
    if len(axes) < 2:
        return everything
    halves = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    broken = [half for half in halves if not holds(set().union(*half))]
    return set().union(*(at_fault(half, holds) for half in broken)) if broken else everything


def reasons_to_stay(
    model: nn.Module, graph: Graph, removed: Indices, error: NetworkError, checks: Checks
) -> dict[int, str]:
    """Return the axes that must stay because a network that lost units does not run, and why.

    Where it does not run in training, half of every axis is cut for a trial, so that all such axes are found at once.
    """
    found = dict.fromkeys(axes_at_fault(model, graph, removed, error, checks), error.reason)
    while isinstance(error, TrainingModeError):
        left = trial_counts(graph, 0.5)
        left[[*found]] = graph.units_per_group()[[*found]]
        removed = last_units(graph, left)
        try:
            cut_for_trial(model, graph, removed, checks)
        except NetworkError as other:
            error = other
        except CannotFollowError:  # found again when these units are to go
            break
        else:
            break
        groups = axes_at_fault(model, graph, removed, error, checks)
        if groups <= found.keys():
            break
        found |= dict.fromkeys(groups, error.reason)
    return found


def axes_at_fault(
    model: nn.Module,
    graph: Graph,
    removed: Indices,
    error: NetworkError,
    checks: Checks,
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
        return _runs_without(model, graph, _of_axes(graph, removed, groups), checks)

    return at_fault(together, runs)


def axes_that_cannot_follow(graph: Graph, removed: Indices, error: CannotFollowError) -> set[int]:
    """Return the axes that must stay because a size of the forward cannot follow.

    These are the axes that the error holds. If it holds none, as for a number that is computed from an attribute, some
    axes are tried without the others.
    """
    together = tied_axes(graph, removed)
    atoms = {atom for axis in error.axes for atom in atoms_of(axis)}
    named = {group for atom, group in graph.structure.atoms.items() if atom in atoms} & set().union(*together)
    if named:
        return named

    def follow(groups: set[int]) -> bool:
        try:
            graph.without(_of_axes(graph, removed, groups)).corrections()
        except CannotFollowError:
            return False
        return True

    return at_fault(together, follow)


def _runs_without(model: nn.Module, graph: Graph, removed: Indices, checks: Checks) -> bool:
    try:
        cut_for_trial(model, graph, removed, checks)
    except (CannotFollowError, NetworkError):
        return False
    return True


def cut_for_trial(model: nn.Module, graph: Graph, removed: Indices, checks: Checks) -> None:
    """Cut units, check the network, and put the units back; errors of the cut and of the check are raised."""
    smaller, undo = cut_units(model, graph, removed)
    try:
        checks.check(model, smaller)
    finally:
        undo()


def because(model: nn.Module, graph: Graph) -> str:
    """Return the end of a line that says why nothing of a network can be cut, from its units."""
    if isinstance(model, torch.jit.ScriptModule):
        return ": torch.jit has scripted or traced it, so that nothing can be changed: give the network itself"
    quantized = next((name for name in graph.structure.forward.unknown if name.startswith("quantized.")), None)
    if quantized is not None:
        where = graph.structure.forward.unknown[quantized]
        return f": '{where}' computes in integers ({quantized}): prune the network in floating point, then quantize it"
    if (holder := _unregistered(model)) is not None:
        return f": the layers in '{holder}' are not registered: put them into an nn.ModuleList or nn.ModuleDict"
    if not graph.pinned:
        return ": it has no convolution, linear layer or attention that the outputs depend on"
    name, reason = next(iter(graph.pinned.items()))
    return (
        f": for example '{name}' stays because {reason}; ifap.inspect(model, example_inputs) gives the reason of each"
    )


def _unregistered(model: nn.Module) -> str | None:
    """Return an attribute that holds layers in a plain list, tuple or dict, which torch does not register."""
    registered = set(modules_by_name(model).values())
    for name, module in modules_by_name(model).items():
        for key, value in vars(module).items():
            held = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
            if not key.startswith("_") and any(isinstance(each, nn.Module) and each not in registered for each in held):
                return f"{name}.{key}" if name else key
    return None
