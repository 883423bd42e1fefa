"""Pruned networks in the format of their own library: a configuration and weights, loaded by ``from_pretrained``."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ifap.arguments import MODULE, NEW_FOLDER, checked
from ifap.axes.tensors import named_tensors
from ifap.axes.units import Graph, Indices
from ifap.errors import ExportError, kind_and_line
from ifap.export import TOLERANCE, difference
from ifap.files import beside
from ifap.forward import Inputs, call, device_of, reading, tensors, to_device, unwrapped
from ifap.saving.configuration import Configuration, Difference, configured_parts, is_configured, shapes_of
from ifap.trouble import is_resource_error

_SHARES = (0.25, 0.6)  # of the units of an axis that a trial removes
_MOST_MULTIPLES = 12  # that are tried for an axis
STAYS = "no configuration of the network gives it another width"

_Class = tuple[int, ...]
"""Groups that keep equal counts together."""


class _Part(NamedTuple):
    """A part of a network that holds a configuration."""

    configuration: Configuration
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name in the part, to the first name in the network and the shape."""


def expressible(model: nn.Module, graph: Graph) -> tuple[Graph, list[int]]:
    """Limit units to widths that the network's own configuration can express.

    Each axis is tried by itself, and together with those that were tried before: those that cost least first, so that
    the width of all blocks comes last. An axis may be allowed multiples of a number only, such as the number of heads,
    or the same number of units as another axis.

    Returns the units with the limits of their numbers, and the groups that must keep all units. `graph` has equal
    counts where blocks are to be uniform. Nothing is limited in a network that holds no configuration.
    """
    parts = [_part(model, part) for part in configured_parts(model).values()]
    if not parts:
        return graph, []
    multiples: dict[_Class, int] = {}
    left = []
    for members in _classes(graph):
        multiple = _multiple(parts, graph, members, multiples)
        if multiple is None:
            left.append(members)
        else:
            multiples[members] = multiple
    fixed: list[int] = []
    for members in _joined(graph, left):
        multiple = _multiple(parts, graph, members, multiples)
        if multiple is None:
            fixed += members
        else:
            multiples[members] = multiple
    structure = replace(
        graph.structure,
        tied=[members for members in multiples if len(members) > 1],
        multiples={group: number for members, number in multiples.items() for group in members if number > 1},
    )
    return replace(graph, structure=structure), sorted(fixed)


def _classes(graph: Graph) -> list[_Class]:
    """Return the classes of groups with equal counts, in ascending order of cost."""
    counts = graph.units_per_group().astype(float)

    def macs_of(members: _Class) -> int:
        left = counts.copy()
        left[list(members)] = 0
        return -graph.structure.forms.total_macs(left)

    return sorted(dict.fromkeys(graph.structure.classes()), key=macs_of)


def _joined(graph: Graph, classes: list[_Class]) -> list[_Class]:
    """Join the classes of equal sizes: one number of the configuration may stand for all."""
    sizes = graph.units_per_group()
    found: dict[tuple[int, int], _Class] = {}
    for members in classes:
        size = (int(sizes[members[0]]), graph.groups[members[0]].width)
        found[size] = tuple(sorted((*found.get(size, ()), *members)))
    return list(found.values())


def _multiple(parts: list[_Part], graph: Graph, members: _Class, others: Mapping[_Class, int]) -> int | None:
    """Return the smallest number whose multiples are all valid sizes of a class, or None."""
    size = int(graph.units_per_group()[members[0]])
    needed = math.lcm(*(graph.structure.multiples.get(group, 1) for group in members))
    tried = [number for number in range(needed, size) if size % number == 0 and number % needed == 0]
    for multiple in tried[:_MOST_MULTIPLES]:
        alone = {members: multiple}
        trials = [_trial(graph, chosen, share) for share in _SHARES for chosen in (alone, {**others, **alone})]
        if all(_fits(parts, _resized(graph, counts)) for counts in trials):
            return multiple
    return None


def _trial(graph: Graph, multiples: Mapping[_Class, int], share: float) -> Indices:
    """Return units left for a trial: each class loses about a share, down to a number without further divisors."""
    counts = graph.units_per_group()
    for members, multiple in multiples.items():
        size = int(counts[members[0]])
        most = max(1, min(size // multiple - 1, round((1 - share) * size / multiple)))
        counts[list(members)] = multiple * max(n for n in range(1, most + 1) if math.gcd(n, size) == 1)
    return counts


def _resized(graph: Graph, counts: Indices) -> dict[tuple[str, int], int]:
    """Return the size of each dimension that units cut, when each group has so many left."""
    lost = graph.units_per_group() - counts
    widths = graph.widths() - np.rint(lost @ graph.positions_per_unit()).astype(np.int64)
    return {
        (place.tensor, place.dim): int(width)
        for places, width in zip(graph.structure.places, widths, strict=True)
        for place in places
    }


def _part(model: nn.Module, part: nn.Module) -> _Part:
    """Return a part of a network with the tensors whose shapes follow from its configuration."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    configuration = Configuration(part)
    return _Part(
        configuration,
        {
            key: (names[id(tensor)], tuple(tensor.shape))
            for key, tensor in named_tensors(part).items()
            if configuration.shapes.get(key) == tuple(tensor.shape)
        },
    )


def _fits(parts: list[_Part], resized: Mapping[tuple[str, int], int]) -> bool:
    """Whether every part of a network has a configuration for these sizes."""
    return not any(
        part.configuration.fit(
            {
                key: tuple(resized.get((name, dim), size) for dim, size in enumerate(shape))
                for key, (name, shape) in part.tensors.items()
            }
        ).left
        for part in parts
    )


# --- saving ---------------------------------------------------------------------------------------


@checked(model=MODULE, folder=NEW_FOLDER)
def save_pretrained(model: nn.Module, example_inputs: Inputs, folder: str | Path) -> float:
    """Write a pruned network as a folder that ``from_pretrained`` of its own library loads, without this package.

    The configuration is changed so that it makes the pruned widths. This works where all blocks have the same widths:
    prune with ``uniform=True``. The folder is loaded and compared with the network before it appears.

    Parameters
    ----------
    model : nn.Module
        A pruned network of a library whose networks hold their configuration and save themselves, such as
        ``transformers``. It is not changed.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward, on which the loaded network is compared.
    folder : str or Path
        Where to. It must not exist, or be empty.

    Returns
    -------
    float
        The largest difference of an output, as a share of the largest output: 0 where outputs are equal bit for bit.

    Raises
    ------
    ExportError
        If the network has no configuration, no values of it give the pruned widths (the layer is named), or the loaded
        network computes something else. No folder is written then.

    Examples
    --------
    >>> pruned = ifap.prune(llama, tokens[:1], batches, target=ifap.Target(macs=0.2), uniform=True)
    >>> ifap.save_pretrained(pruned.model, tokens[:1], "small-llama")
    """
    model, folder = unwrapped(model), Path(folder)
    if not is_configured(model):
        raise ExportError(_without_configuration(model))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists already: give a new folder")
    twin = _rebuilt(model)
    with beside(folder, folder=True) as temporary:
        with redirect_stderr(io.StringIO()):  # two progress bars
            twin.save_pretrained(temporary)  # type: ignore[operator]
            found = _compared(model, temporary, example_inputs)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    return found


def _without_configuration(model: nn.Module) -> str:
    kind, inside = type(model).__name__, [name for name in configured_parts(model) if name]
    advice = f": save its part '{inside[0]}'" if inside else "; ifap.save saves any network"
    return f"{kind} holds no configuration that it could be saved with{advice}"


def _rebuilt(model: nn.Module) -> nn.Module:
    """Return a network that a changed configuration makes, with the tensors of the given one."""
    configuration = Configuration(model)
    wanted = shapes_of(model)
    made = configuration.shapes
    for name in sorted(wanted.keys() - made.keys()) if made else ():
        bias = "compensation gave it a bias: " if name.endswith(".bias") else ""
        raise ExportError(f"the configuration makes no tensor '{name}': {bias}prune with uniform=True")
    for name in sorted(made.keys() - wanted.keys()):
        raise ExportError(f"the configuration makes a tensor '{name}', which the network does not have")
    fit = configuration.fit(wanted)
    if fit.left:
        raise ExportError(_misfit(fit.left[0], type(model).__name__))
    with torch.device("meta"):
        twin = configuration.build(fit.values)
    twin.load_state_dict(model.state_dict(), strict=True, assign=True)
    if callable(tie := getattr(twin, "tie_weights", None)):
        tie()
    if hasattr(model, "generation_config"):
        twin.generation_config = copy.deepcopy(model.generation_config)
    return twin


def _misfit(first: Difference, kind: str) -> str:
    return (
        f"no configuration of {kind} fits: layer '{first.tensor.rpartition('.')[0]}' has width {first.wanted} where "
        f"the nearest one has {first.made}; prune with uniform=True"
    )


def _compared(model: nn.Module, folder: Path, example_inputs: Inputs) -> float:
    """Load a folder by `from_pretrained` and return the largest difference of its outputs."""
    try:
        loaded: Any = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    except Exception as error:  # whatever the library raises
        if is_resource_error(error):
            raise
        raise ExportError(f"from_pretrained does not load the network: {kind_and_line(error)}") from error
    theirs: dict[str, Tensor] = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found = theirs.get(name)
        if found is None or found.dtype != tensor.dtype or not torch.equal(found, tensor.cpu()):
            raise ExportError(f"from_pretrained loads another tensor '{name}' than the network has")
    loaded.to(device_of(model))
    inputs = to_device(example_inputs, device_of(model))
    with reading(model), reading(loaded), torch.no_grad():
        wanted, given = (list(tensors(call(network, inputs))) for network in (model, loaded))
    off = difference(wanted, given)
    if not off <= TOLERANCE:
        raise ExportError(f"the loaded network differs by {off:.2g} of its largest output, more than {TOLERANCE:g}")
    return off
