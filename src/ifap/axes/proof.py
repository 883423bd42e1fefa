"""Prove that a cut network computes the same as the unpruned one in which the same units are masked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.averages import CutAverages, MaskedAverages
from ifap.axes.cut import cut_units, lost_positions, scale_positions
from ifap.axes.dispatch import DispatchMode
from ifap.axes.double import kept_double, to_double
from ifap.axes.draws import SteadyDraws, same_draws
from ifap.axes.expressions import PADDED
from ifap.axes.state import kept_state, unchanged
from ifap.axes.tensors import as_real, holders, map_tensors
from ifap.axes.units import Graph, Indices
from ifap.trouble import is_resource_error

_Forward = Callable[[nn.Module, Any], Iterable[Tensor]]
_Mode = Callable[[], AbstractContextManager[Any]]

_LIMIT = 1e-6
_ALMOST_ZERO = 1e-30  # not zero: a zero weight that is divided by its norm would be NaN


@dataclass(frozen=True)
class Proof:
    """Result of the comparison of the cut network with the masked one.

    Parameters
    ----------
    difference : float or None
        Largest difference of the outputs, as a share of the largest output; None if nothing could be compared.
    units_checked : int
        Removed units that were compared.
    does_not_apply : dict of str to int
        Reason to the number of removed units to which it applies, such as those that a layer norm averages over.
    seconds : float
        Time that the comparison took.
    averaged : dict of str to int
        Operation to the number of compared units that it averages over. In the pruned network such an average runs over
        fewer units. In the comparison it counts zeros for them in both networks.
    """

    difference: float | None
    units_checked: int = 0
    does_not_apply: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    averaged: dict[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the networks compute the same: at most 1e-6 apart in double precision."""
        return self.difference is None or self.difference <= _LIMIT


def prove(
    copy: nn.Module,
    graph: Graph,
    removed: Indices,
    example_inputs: Any,
    forward: _Forward,
) -> Proof:
    """Compare a cut network with the unpruned one in which the same units are masked, in double precision.

    `copy` is a copy of the unpruned network, and `graph` holds the units of that network. `forward` runs a network and
    yields its output tensors.

    Vectors and statistics of `copy` are drawn at random first: zero biases would make a wrong cut look right. Averages
    of the two networks are made to agree; see `ifap.axes.averages`. If they do not, because a masked unit is not zero,
    the units that an operation averages over are left in both networks.
    """
    began = time.perf_counter()
    if any(tensor.is_meta for tensor in copy.parameters()):
        return Proof(None, 0, {"the network has no data": len(removed)}, time.perf_counter() - began)
    copy.eval()._apply(to_double)
    _draw_vectors(copy)
    inputs = map_tensors(example_inputs, to_double)

    averaged = _averaged(graph)
    reasons = [averaged.get(group) for group in graph.group_of[removed].tolist()]

    def compared(units: Indices, excluded: dict[str, int], averages: Mapping[str, int]) -> tuple[Proof, bool]:
        found = _compare(copy, graph, units, inputs, forward) if len(units) else _Comparison()
        excluded = {**excluded, found.reason: len(units)} if found.reason else excluded
        checked = 0 if found.reason else len(units)
        seconds, averages = time.perf_counter() - began, {} if found.reason else dict(averages)
        return Proof(found.difference, checked, excluded, seconds, averages), found.averages_agree

    proof, averages_agree = compared(removed, {}, Counter(filter(None, reasons)))
    applies = np.array([reason is None for reason in reasons], dtype=bool)
    if applies.all() or (proof.difference is not None and proof.holds):
        return proof
    if proof.difference is not None and averages_agree and PADDED.issuperset(filter(None, reasons)):
        return proof  # averages are not the cause of the difference
    return compared(removed[applies], Counter(f"{reason} averages over it" for reason in reasons if reason), {})[0]


class _Comparison(NamedTuple):
    difference: float | None = None
    reason: str = ""  # why nothing was compared
    averages_agree: bool = False


def _compare(model: nn.Module, graph: Graph, units: Indices, inputs: Any, forward: _Forward) -> _Comparison:
    """Compare masking some units with cutting them; the network stays as it was."""
    averages = MaskedAverages()
    masked = _mask(model, graph, units)
    reference = _first_that_runs(forward, model, inputs, averages)
    _restore(masked)
    if reference is None:
        return _Comparison(None, "the forward does not run in double precision")
    wanted, precision = reference
    if not wanted:
        return _Comparison(None, "the network returns no tensor")
    undo = None
    of_cut = CutAverages(averages.seen)
    try:
        _, undo = cut_units(model, graph, units)
        found = _outputs(forward, model, inputs, precision, of_cut)
    except Exception as error:  # any error of a forward whose sizes do not fit
        if is_resource_error(error):
            raise
        return _Comparison(float("inf"))
    finally:
        if undo is not None:
            undo()
    if graph.structure.forward.values and [x.shape for x in wanted] != [x.shape for x in found]:
        return _Comparison(None, "how many values come out depends on what is computed")
    difference = _difference(wanted, found)
    reason = "the outputs are not finite with random vectors" if difference is None else ""
    return _Comparison(difference, reason, of_cut.agree)


def _averaged(graph: Graph) -> dict[int, str]:
    """Return the groups that an operation averages over and the groups tied to them, each with the operation."""
    found = dict(graph.structure.averaged)
    for members in graph.structure.tied:
        reason = next((found[group] for group in members if group in found), None)
        if reason is not None:
            found.update(dict.fromkeys(members, reason))
    return found


def _first_that_runs(
    forward: _Forward, model: nn.Module, inputs: Any, averages: MaskedAverages
) -> tuple[list[Tensor], _Mode] | None:
    """Return the outputs and their mode: all casts kept double, else the casts of the network; None if both fail."""
    for precision in (kept_double, nullcontext):
        averages.seen.clear()
        try:
            return _outputs(forward, model, inputs, precision, averages), precision
        except Exception as error:  # any error of a forward that fixes its precision
            if is_resource_error(error):
                raise
    return None


def _outputs(
    forward: _Forward, model: nn.Module, inputs: Any, precision: _Mode, averages: DispatchMode
) -> list[Tensor]:
    """Return the outputs of a network, with the same random state and buffers each time."""
    with (
        torch.no_grad(), same_draws(), precision(), unchanged(model), kept_state(model),
        SteadyDraws(), averages,  # type: ignore[no-untyped-call]
    ):  # fmt: skip
        found = [as_real(x) for x in forward(model, inputs)]
        values = [x for x in found if x.is_floating_point()] or found  # a network may return integers alone
        return [x.detach().double().clone() for x in values]


def _difference(wanted: list[Tensor], found: list[Tensor]) -> float | None:
    largest = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        both = torch.isfinite(a) & torch.isfinite(b)
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return float("inf")
        if not both.any():
            return None
        scale = float(a[both].abs().max()) or 1.0
        largest = max(largest, float((a[both] - b[both]).abs().max()) / scale)
    return largest


def _draw_vectors(model: nn.Module) -> None:
    """Draw vectors, statistics and zero weights at random, in place; variances stay positive."""
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()
    with torch.no_grad():
        for name, tensor, _ in holders(model):
            if id(tensor) in done or not tensor.is_floating_point() or not tensor.numel():
                continue
            done.add(id(tensor))
            is_vector = tensor.dim() > 0 and tensor.numel() == max(tensor.shape)
            if not is_vector and (tensor.dim() < 2 or bool(tensor.any())):
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            if name.endswith("running_var") or bool((tensor > 0.1).all()):
                tensor.copy_(tensor * (0.75 + 0.5 * noise))
            else:
                width = 1 if is_vector else tensor[0].numel()
                tensor.add_(((noise - 0.5) * (0.5 / width**0.5)).to(tensor.dtype))


def _mask(model: nn.Module, graph: Graph, removed: Indices) -> list[tuple[Tensor, Tensor]]:
    """Set every value of the removed units to almost zero, in place; returns the tensors and their old values."""
    lost = lost_positions(graph, removed)
    done: set[int] = set()
    saved: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for name, tensor, _ in holders(model):
            # Whole numbers, such as the zero points of quantised weights, only shift what is masked.
            if name in lost and id(tensor) not in done and (tensor.is_floating_point() or tensor.is_complex()):
                done.add(id(tensor))
                saved.append((tensor, tensor.detach().clone()))
                for dim, gone in lost[name]:
                    scale_positions(tensor, dim, gone, _ALMOST_ZERO)
    return saved


def _restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, before in saved:
            tensor.copy_(before)
