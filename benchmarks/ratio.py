"""Time two ways of doing the same thing in turn, and report the ratio of their medians with its spread."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ifap.runtime import provenance

RESULTS = Path("results") / "bench"


@dataclass(frozen=True)
class Ratio:
    """Ours against a peer.

    Parameters
    ----------
    quantity : str
        What was timed, and on which network.
    ours, peer : float
        Medians in seconds.
    ratio : float
        Median of the pairwise ratios ours / peer.
    low, high : float
        Smallest and largest pairwise ratio.
    limit : float
        The ratio that this project promises to stay below.
    runs : int
        Number of pairs.
    """

    quantity: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    limit: float
    runs: int


def compare(
    quantity: str, ours: Callable[[], float], peer: Callable[[], float], *, limit: float, runs: int = 7
) -> Ratio:
    """Run both in turn, after one uncounted pair; each callable returns the seconds it took."""
    ours()
    peer()
    pairs = [(ours(), peer()) if i % 2 else (lambda p, o: (o, p))(peer(), ours()) for i in range(runs)]
    ratios = [mine / theirs for mine, theirs in pairs]
    return Ratio(
        quantity,
        statistics.median(mine for mine, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        limit,
        runs,
    )


def timed(function: Callable[[], object]) -> float:
    """Return the wall time of one call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(name: str, title: str, peer: str, rows: list[Ratio]) -> None:
    """Print the ratios and write them to results/bench with what they were measured on."""
    table = Table(title=title, title_justify="left")
    for heading in ("quantity", "ours", peer, "ratio", "spread", "limit", "met"):
        table.add_column(heading, justify="left" if heading == "quantity" else "right")
    for row in rows:
        table.add_row(
            row.quantity,
            f"{row.ours * 1e3:.0f} ms",
            f"{row.peer * 1e3:.0f} ms",
            f"{row.ratio:.2f}",
            f"{row.low:.2f}-{row.high:.2f}",
            f"{row.limit:.2f}",
            "yes" if row.ratio <= row.limit else "NO",
        )
    Console(width=120).print(table)
    _write(RESULTS / f"{name}.csv", rows)


def _write(path: Path, rows: list[Ratio]) -> None:
    found = provenance()
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cpu": found["hardware"]["cpu"],
        "commit": found["commit"],
        "dirty": found["dirty"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*asdict(rows[0]), *machine], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **machine} for row in rows)
