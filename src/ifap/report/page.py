"""One page on a saved network, pictures first: what it costs before and after, layer by layer, and how it came to be.

One file, styles and pictures in it, so that it opens offline. All comes from the folder of the network; the unpruned
one is built for its time alone, and for what a folder of an older version does not hold.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ifap.arguments import BUILDER, FOLDER, NEW_FILE, SWITCH, checked, optional
from ifap.costs import count_bytes, macs_by_module, params_by_module
from ifap.errors import GraphError
from ifap.example_inputs import make_inputs
from ifap.files import atomic_write_text
from ifap.forward import Inputs, tensors
from ifap.latency import SideBySide, layer_widths, side_by_side
from ifap.plan import Plan, read_plan
from ifap.report.drawing import Dot, draw_curve, environment, short_count, skyline, three_digits
from ifap.results import layer_costs
from ifap.saving.history import History, Layer, Step, read_history
from ifap.saving.store import WEIGHTS_FILE, build_unpruned, load
from ifap.view import inspect

PAGE_FILE = "report.html"
SHOWN_FIRST = 15
"""Rows of a long table that are seen before it is unfolded."""


@dataclass(frozen=True)
class Change:
    """One quantity before and after, for the summary.

    Parameters
    ----------
    name : str
        What it is.
    before, after : str
        Its values, with a unit.
    share : float or None
        After over before, for the bar; None where less is not better.
    said : str
        The change in words.
    """

    name: str
    before: str
    after: str
    share: float | None
    said: str


@dataclass(frozen=True)
class Timing:
    """Measured times of both networks on this machine."""

    found: SideBySide
    batch: int
    threads: int
    machine: str
    torch: str


@checked(folder=FOLDER, to=optional(NEW_FILE), builder=optional(BUILDER), time=SWITCH)
def write_report(
    folder: str | Path,
    to: str | Path | None = None,
    builder: Callable[[], nn.Module] | None = None,
    *,
    time: bool = True,
) -> Path:
    """Write one page on a saved network that opens offline.

    Parameters
    ----------
    folder : str or Path
        What `ifap.save` wrote.
    to : str or Path, optional
        The page; ``report.html`` in the folder by default.
    builder : callable, optional
        Makes the unpruned network; not needed where the plan names a network that `ifap.build` knows. Without either
        the page has no times.
    time : bool, optional
        Time both networks on this machine.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    PlanError
        If the folder holds no network, or it is damaged.

    Examples
    --------
    >>> ifap.save(pruned, "small/")
    >>> ifap.write_report("small/")
    """
    folder = Path(folder)
    path = folder / PAGE_FILE if to is None else Path(to)
    atomic_write_text(path, render_report(folder, builder, time=time))
    return path


def render_report(folder: Path, builder: Callable[[], nn.Module] | None = None, *, time: bool = True) -> str:
    """Return the page that `write_report` writes."""
    plan = read_plan(folder)
    history = read_history(folder, plan)
    missing, timing = "", None
    if builder is None and plan.builder.id is None:
        missing = "the plan names no public network, and no function that builds it was given"
    elif time or history is None:
        original, model = build_unpruned(folder, builder), load(folder, builder)
        inputs = make_inputs(plan.example_inputs)
        if history is None:
            history = _look(original, model, inputs, plan)
        timing = _timing(model, original, inputs) if time else None
    if timing is None and not missing:
        missing = "timing was switched off"
    size = (folder / WEIGHTS_FILE).stat().st_size
    history = history or History(costs=plan.costs, layers=_kept(plan))
    return _page(folder, plan, history, size, timing, missing)


def _page(folder: Path, plan: Plan, history: History, size: int, timing: Timing | None, missing: str) -> str:
    layers = history.layers
    cut = {n: each for n, each in layers.items() if each.width_after is not None}
    stays = {n: each for n, each in layers.items() if each.stays is not None}
    costly = {n: each for n, each in layers.items() if each.macs_before}
    by_macs = sorted(costly.items(), key=lambda item: -item[1].macs_before)
    rest = [each for each in layers.values() if not each.macs_before and each.params_before]
    both_widths = [(each.width_before, each.width_after) for each in cut.values() if each.width_before]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            name=plan.builder.id or folder.resolve().name,
            folder=folder,
            plan=plan,
            history=history,
            changes=_changes(plan, history, size, timing),
            cut=list(cut.items()),
            skyline=skyline([(float(b), float(a or 0)) for b, a in both_widths]) if both_widths else None,
            stays=sorted(stays.items(), key=lambda item: (-item[1].macs_before, -item[1].params_before, item[0])),
            stays_macs=sum(each.macs_before for each in stays.values()),
            costly=by_macs,
            rest=(len(rest), sum(e.params_before for e in rest), sum(e.params_after for e in rest)),
            curve=_curve(history),
            recovered=any(step.metric_before != step.metric_after for step in history.steps),
            limit=SHOWN_FIRST,
            timing=timing,
            missing=missing,
        )
    )


# --- the summary ----------------------------------------------------------------------------------


def _changes(plan: Plan, history: History, size: int, timing: Timing | None) -> list[Change]:
    costs = plan.costs
    found = [
        _fall("Multiply-accumulates", costs.macs_before, costs.macs_after, short_count),
        _fall("Parameters", costs.params_before, costs.params_after, short_count),
    ]
    if history.bytes_before:
        found.append(_fall("Weights file", history.bytes_before, size, megabytes))
    if timing is not None:
        both = timing.found
        before, after = (f"{three_digits(each)} ms" for each in (both.other_milliseconds, both.milliseconds))
        found.append(Change("Time of a forward", before, after, both.ratio, _less(both.ratio)))
    metrics = [step.metric_after for step in history.steps if step.accepted and step.metric_after is not None]
    if len(metrics) > 1:
        fall = metrics[-1] - metrics[0]
        name = history.metric or "metric"
        found.append(Change(_first_upper(name), f"{metrics[0]:.4g}", f"{metrics[-1]:.4g}", None, f"{fall:+.3g}"))
    return found


def _fall(name: str, before: float, after: float, shown: Callable[[float], str]) -> Change:
    share = after / before if before else 1.0
    return Change(name, shown(before), shown(after), share, _less(share))


def _less(share: float) -> str:
    return f"{100 * abs(1 - share):.1f} % {'less' if share <= 1 else 'more'}"


def megabytes(size: float) -> str:
    """Return a size of a file with a unit."""
    return f"{three_digits(size / 2**20)} MiB" if size >= 2**20 else f"{three_digits(size / 2**10)} KiB"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _curve(history: History) -> str:
    """Draw the metric over the multiply-accumulates, if there are points enough."""
    steps = [step for step in history.steps if step.metric_after is not None]
    if len(steps) < 2:
        return ""
    whole = steps[0].macs or 1
    dots = [Dot(100 * step.macs / whole, float(step.metric_after or 0), _said(step)) for step in steps]
    return draw_curve(dots, "MACs that are left (%)", history.metric or "metric")


def _said(step: Step) -> str:
    undone = "" if step.accepted else " (undone)"
    return f"iteration {step.iteration}{undone}: {short_count(step.macs)} MACs, {step.metric_after:.4g}"


# --- what the folder does not say -----------------------------------------------------------------


def _timing(model: nn.Module, original: nn.Module, inputs: Inputs) -> Timing:
    batch = len(next(tensors(inputs)))
    found = side_by_side(model, original, inputs)
    return Timing(found, batch, torch.get_num_threads(), platform.processor() or platform.machine(), torch.__version__)


def _look(original: nn.Module, model: nn.Module, inputs: Inputs, plan: Plan) -> History:
    """Return a history computed from both networks, for a folder without one."""
    before, after = layer_widths(original), layer_widths(model)
    counts = [macs_by_module(original, inputs), params_by_module(original)]
    counts += [macs_by_module(model, inputs), params_by_module(model)]
    try:
        reasons = {stay.name: stay.reason for stay in inspect(original, inputs).stays}
    except GraphError:
        reasons = {}
    layers = {}
    for name, cost in layer_costs(*counts).items():
        is_cut = name in before and name in after and name not in reasons
        layers[name] = Layer(
            **asdict(cost),
            width_before=int(before[name][0]) if is_cut else None,
            width_after=int(after[name][0]) if is_cut else None,
            stays=reasons.get(name),
        )
    return History(costs=plan.costs, layers=layers, bytes_before=count_bytes(original))


def _kept(plan: Plan) -> dict[str, Layer]:
    """Return the widths that follow from the plan alone."""
    return {name: Layer(width_after=len(sides["out"])) for name, sides in plan.kept.items() if "out" in sides}
