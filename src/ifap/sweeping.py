"""How small can a network get? The curve of a metric over the multiply-accumulates, from one run."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from ifap.arguments import BATCHES, FUNCTION, MODULE, NEW_FOLDER, NUMBER, WHOLE, checked, either, every, optional
from ifap.errors import TargetError
from ifap.files import atomic_write_text, write_csv
from ifap.forward import Inputs
from ifap.options import Validate, name_of_metric
from ifap.printing import as_text
from ifap.pruning import prune
from ifap.report.drawing import Dot, draw_curve, short_count
from ifap.results import Pruned, Receipt, Target
from ifap.run_state import Ended, Store

log = logging.getLogger(__name__)

DEEPEST = 0.9
"""Share of the multiply-accumulates that the last point of a sweep is without, if nothing else is asked for."""
CURVE_CSV, CURVE_SVG = "curve.csv", "curve.svg"
_COLUMNS = ("iteration", "macs", "params", "macs_removed", "metric_before", "metric_after", "drop")


@dataclass(frozen=True)
class Sweep:
    """The curve of a metric over the multiply-accumulates.

    Parameters
    ----------
    points : list of Receipt
        The unpruned network, then one point for each iteration.
    metric : str
        Name of the metric.
    max_drop : float or None
        The loss that was allowed.
    smallest : Pruned or None
        The smallest network within it, with its proof; None if no loss was named, or no smaller network is within.
    ended : str
        Why the curve ends before the last target; empty if it does not.
    """

    points: list[Receipt]
    metric: str
    max_drop: float | None
    smallest: Pruned | None
    ended: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as rows of a table."""
        start = self.points[0]
        return [
            {
                "iteration": point.iteration,
                "macs": point.macs,
                "params": point.params,
                "macs_removed": 1.0 - point.macs / start.macs,
                "metric_before": point.metric_before,
                "metric_after": point.metric_after,
                "drop": _metric(start) - _metric(point),
            }
            for point in self.points
        ]

    def __str__(self) -> str:
        table = Table("MACs", "removed", "parameters", self.metric, "loss", "")
        chosen = 0 if self.smallest is None else len(self.smallest.receipts) - 1
        for row in self.rows():
            mark = "smallest within the loss" if chosen and row["iteration"] == chosen else ""
            values = (f"{row[name]:.4g}" for name in ("metric_after", "drop"))
            table.add_row(f"{row['macs']:,}", f"{row['macs_removed']:.1%}", f"{row['params']:,}", *values, mark)
        return as_text(table) + (f"\nthe curve ends here: {self.ended}" if self.ended else "")

    def write_csv(self, path: str | Path) -> None:
        """Write the points as CSV."""
        write_csv(Path(path), self.rows(), _COLUMNS)

    def to_svg(self) -> str:
        """Draw the curve; the smallest network within the allowed loss is marked."""
        chosen = -1 if self.smallest is None else len(self.smallest.receipts) - 1
        dots = [
            Dot(
                100 * point.macs / self.points[0].macs,
                _metric(point),
                f"{short_count(point.macs)} MACs: {_metric(point):.4g}",
                is_chosen=point.iteration == chosen,
            )
            for point in self.points
            if math.isfinite(_metric(point))
        ]
        floor = None if self.max_drop is None else _metric(self.points[0]) - self.max_drop
        return draw_curve(dots, "MACs that are left (%)", self.metric, floor)

    def write_svg(self, path: str | Path) -> None:
        """Write the curve as a picture."""
        atomic_write_text(Path(path), self.to_svg())


@checked(
    model=MODULE,
    batches=BATCHES,
    validate=FUNCTION,
    targets=either(WHOLE, every("shares of the MACs", float, int)),
    max_drop=optional(NUMBER),
    folder=optional(NEW_FOLDER),
)
def sweep(
    model: nn.Module,
    example_inputs: Inputs,
    batches: Iterable[Inputs],
    *,
    validate: Validate,
    targets: int | Iterable[float] = 9,
    max_drop: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Sweep:
    """Find out how small a network can get: one run, in which each iteration is a point of the curve.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not modified.
    example_inputs, batches
        See `ifap.prune`.
    validate : callable
        ``validate(model)`` returns a metric, higher is better, on validation data. Its attribute ``metric`` names it.
    targets : int or sequence of float
        Shares of the multiply-accumulates to remove, rising, such as ``(0.2, 0.4, 0.6)``; or how many, evenly up to
        0.9.
    max_drop : float, optional
        Largest allowed fall of the metric, in its own unit. The smallest network within it is returned; the curve goes
        on beyond it.
    folder : str or Path, optional
        Where the points are kept while they are made, and at the end ``curve.csv`` and ``curve.svg``. After a kill the
        same call goes on there.
    **options
        All others of `ifap.prune`, such as ``recover`` and ``method``, but for ``target``, ``like``, ``steps``,
        ``pace`` and ``resume``.

    Returns
    -------
    Sweep
        The points and the smallest network. Where a target is out of reach the curve ends before it.

    Raises
    ------
    TargetError
        If the targets do not rise between 0 and 1, or even the first cannot be reached.

    Examples
    --------
    >>> found = ifap.sweep(net, images[:1], batches, validate=accuracy, max_drop=1.0)
    >>> found.write_svg("curve.svg")
    >>> ifap.save(found.smallest, "small/")
    """
    shares = tuple(targets) if isinstance(targets, Iterable) else _evenly(int(targets))
    if not shares:
        raise TargetError("targets: give at least one share to remove")
    if max_drop is not None and not max_drop >= 0:
        raise TargetError(f"max_drop must not be negative, got {max_drop}")
    taken = {"target", "like", "steps", "pace", "resume"} & set(options)
    if taken:
        raise TargetError(f"sweep sets {', '.join(sorted(taken))} itself: give targets")
    proves = options.pop("prove", True)

    def run(store: Store, upto: int, *, prove: bool) -> Pruned:
        part = shares[:upto]
        return prune(
            model, example_inputs, batches, target=Target(macs=part[-1]), pace=part, validate=validate,
            resume=store, prove=prove, **options,
        )  # fmt: skip

    with nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory() as place:
        root = Path(place)
        store, ended = Store(root / "state", lambda receipts: smallest_within(receipts, max_drop)), ""
        try:
            points = run(store, len(shares), prove=False).receipts
        except TargetError as error:
            points, ended = store.read()[0] if store.exists() else [], str(error)
            if len(points) < 2:
                raise
            log.warning("the curve ends after %d of %d points: %s", len(points) - 1, len(shares), ended)
        chosen = smallest_within(points, max_drop)
        smallest = None if chosen is None else run(_kept(root / "state", chosen), chosen, prove=proves)
        found = Sweep(points, name_of_metric(validate), max_drop, smallest, ended)
        if folder is not None:
            found.write_csv(root / CURVE_CSV)
            found.write_svg(root / CURVE_SVG)
    return found


def smallest_within(points: Sequence[Receipt], max_drop: float | None) -> int | None:
    """Return the number of the smallest pruned network that loses at most `max_drop`; None if there is none."""
    if max_drop is None:
        return None
    least = _metric(points[0]) - max_drop
    return max((point.iteration for point in points[1:] if _metric(point) >= least), default=None)


def _kept(folder: Path, iteration: int) -> Ended:
    store = Ended(folder, iteration)
    if not store.folder.exists():
        raise TargetError(
            f"{folder}: the network of iteration {iteration} is gone: the sweep was made with another max_drop; "
            "start in a new folder"
        )
    return store


def _metric(point: Receipt) -> float:
    return math.nan if point.metric_after is None else point.metric_after


def _evenly(number: int) -> tuple[float, ...]:
    return tuple(round(DEEPEST * place / number, 6) for place in range(1, number + 1))
