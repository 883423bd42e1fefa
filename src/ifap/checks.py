"""Check that a network still runs after a cut, and returns outputs of the same shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ifap.axes.units import Graph
from ifap.costs import NetworkError, probe, run_once
from ifap.forward import Inputs

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


def because(pinned: dict[str, str]) -> str:
    """Return the end of a line that says why nothing can be cut."""
    if not pinned:
        return ": it has no convolution, linear layer or attention that the outputs depend on"
    name, reason = next(iter(pinned.items()))
    return f": for example '{name}' stays because {reason}"
