"""The target of a pruning run, its receipts and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Literal

from torch import nn

from ifap.arguments import COUNT, optional, shown
from ifap.axes.proof import Proof
from ifap.costs import Cost
from ifap.errors import TargetError
from ifap.latency import can_compute_on
from ifap.plan import Plan


@dataclass(frozen=True)
class Target:
    """The wanted reduction, as a share of the unpruned network: give exactly one.

    Parameters
    ----------
    macs : float, optional
        Share of the multiply-accumulates to remove, in (0, 1): 0.65 leaves 35 %.
    params : float, optional
        Share of the parameters to remove, in (0, 1).
    latency : float, optional
        Share of the measured time of a forward to save, in (0, 1), with the present number of threads: 0.5 makes it
        twice as fast. Which layers are slow is measured, so that two runs need not choose the same units. Scores of
        units whose multiply-accumulates are slow count for less, to the half at most. Widths are rounded to what the
        device takes at a time (16 with AVX-512, else 8) unless `round_to` says otherwise.
    device : str, optional
        Where that time is measured, such as ``"cuda"``; where the network is by default. Pruning itself goes on there.
    batch : int, optional
        Samples of the forward whose time counts; those of the example inputs by default.

    Raises
    ------
    TargetError
        If not exactly one share is given, if it is not inside (0, 1), if `device` or `batch` come without `latency`,
        or if this machine has no such device.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    device: str | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "params", "latency"):
            share = getattr(self, name)
            if share is not None and (isinstance(share, bool) or not isinstance(share, Real)):
                raise TargetError(f"target: {name} must be a share between 0 and 1, not {shown(share)}")
        if not optional(COUNT).accepts(self.batch):
            raise TargetError(f"target: batch must be {COUNT.words}, not {shown(self.batch)}")
        if sum(share is not None for share in (self.macs, self.params, self.latency)) != 1:
            raise TargetError("target: give exactly one of macs, params and latency")
        if self.batch is not None and self.latency is None:
            raise TargetError(f"target: batch={self.batch} is for a latency alone")
        if self.device is not None and self.latency is None:
            raise TargetError(f"target: device='{self.device}' is for a latency alone")
        if self.device is not None and not can_compute_on(self.device):
            raise TargetError(f"target: device='{self.device}' does not exist on this machine")
        if not 0 < self.share < 1:
            raise TargetError(f"target: {self.kind}={self.share} must lie between 0 and 1 (0.65 removes 65 %)")

    @property
    def kind(self) -> Literal["macs", "params", "latency"]:
        """The name of the cost to reduce."""
        if self.latency is not None:
            return "latency"
        return "macs" if self.macs is not None else "params"

    @property
    def share(self) -> float:
        """The share to remove."""
        value: float | None = getattr(self, self.kind)
        assert value is not None
        return value


@dataclass(frozen=True)
class Receipt:
    """The requested and the actual result of one iteration.

    Parameters
    ----------
    iteration : int
        0 is the network as it was given.
    macs, params : int
        Cost after the iteration.
    units_asked, units_removed : int
        Units of the schedule, and what was cut after rounding.
    macs_asked, params_asked : int
        Cost that the ranking predicted for the units asked for.
    rho : float
        Share of the remaining units that the schedule asked for (rho_k).
    score_low, score_high : float or None
        Range of the scores that were cut.
    widths : dict of str to int
        Output width of every layer that can be cut, after the iteration.
    at_floor : list of str
        First layers of the groups that may not lose more.
    pinned : dict of str to str
        Layers that refuse to be pruned, and why.
    metric_before, metric_after : float or None
        `validate` before and after recovery.
    accepted : bool
        False for an iteration that was rolled back because the metric fell too far.
    seconds : dict of str to float
        Time spent in ``trace``, ``score``, ``prune``, ``recover`` and ``validate``.
    compensated : dict of str to str
        Layers that read what went, and what was done to them: the ridge that their held-out error chose and the share
        of that error that is left, ``means`` where only means were put into the bias, or ``nothing`` where no change
        helped.
    scored : list of str
        If the method fell back: the fallback score and its reason.
    """

    iteration: int
    macs: int
    params: int
    units_asked: int = 0
    units_removed: int = 0
    macs_asked: int = 0
    params_asked: int = 0
    rho: float = 0.0
    score_low: float | None = None
    score_high: float | None = None
    widths: dict[str, int] = field(default_factory=dict)
    at_floor: list[str] = field(default_factory=list)
    pinned: dict[str, str] = field(default_factory=dict)
    metric_before: float | None = None
    metric_after: float | None = None
    accepted: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    compensated: dict[str, str] = field(default_factory=dict)
    scored: list[str] = field(default_factory=list)

    def followed_by(self, more: Receipt) -> Receipt:
        """Return the receipt of an iteration that cuts a second time; costs and widths are those after the second."""
        return replace(
            more,
            units_asked=self.units_asked + more.units_asked,
            units_removed=self.units_removed + more.units_removed,
            rho=self.rho + more.rho,
            score_low=min(self.score_low, more.score_low),  # type: ignore[type-var]
            score_high=max(self.score_high, more.score_high),  # type: ignore[type-var]
            compensated=self.compensated | more.compensated,
            scored=[*dict.fromkeys((*self.scored, *more.scored))],
        )


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer before and after pruning.

    Parameters
    ----------
    macs_before, macs_after : int
        Multiply-accumulates of the layer itself, in one forward of the example inputs.
    params_before, params_after : int
        Elements of its own parameters.
    """

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


def layer_costs(
    macs: Mapping[str, int], params: Mapping[str, int], macs_after: Mapping[str, int], params_after: Mapping[str, int]
) -> dict[str, LayerCost]:
    """Join counts by layer, before and after pruning; a layer that a count leaves out has none."""
    return {
        name: LayerCost(macs.get(name, 0), macs_after.get(name, 0), params.get(name, 0), params_after.get(name, 0))
        for name in dict.fromkeys([*params, *macs])
    }


@dataclass(frozen=True)
class Pruned:
    """A smaller network and how it came to be.

    Parameters
    ----------
    model : nn.Module
        The pruned network, a new object.
    plan : Plan
        What is needed to rebuild it; see `ifap.save`.
    receipts : list of Receipt
        One for the start and one for each iteration.
    before, after : Cost
        MACs and parameters of the network as it was given and as it is.
    proof : Proof or None
        That the cut network computes what the unpruned one computes with the same units masked; None where the proof
        was switched off.
    layers : dict of str to LayerCost
        Costs of every layer that has any.
    method : str
        How units were scored.
    target : Target or None
        What was asked for; None where another plan gave the widths.
    metric : str or None
        Name of what `validate` measures: its attribute ``metric``, or its own name.
    """

    model: nn.Module
    plan: Plan
    receipts: list[Receipt]
    before: Cost
    after: Cost
    proof: Proof | None = None
    layers: dict[str, LayerCost] = field(default_factory=dict)
    method: str = ""
    target: Target | None = None
    metric: str | None = None
