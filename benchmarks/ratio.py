"""Time two ways of doing the same thing in turn, and report the median of their ratios with its spread.

Time is that of the processor, not of the clock on the wall: what else a machine does then falls on neither side.
The benchmarks run on one thread, so that on an idle machine both are the same.
"""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ifap.study.machine.provenance import provenance

RESULTS = Path("results") / "bench"


@dataclass(frozen=True)
class Ratio:
    """Ours against a peer.

    Parameters
    ----------
    quantity : str
        What was timed, and on which network.
    ours, peer : float
        Medians, in `unit`.
    ratio : float
        Median of the pairwise ratios ours / peer.
    low, high : float
        Smallest and largest pairwise ratio.
    limit : float
        The ratio that this project promises to stay below.
    runs : int
        Number of pairs.
    unit : {'s', 'MB', '%'}
        Of `ours` and `peer`; shares, for percent.
    """

    quantity: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    limit: float
    runs: int
    unit: str = "s"

    @classmethod
    def of_pairs(cls, quantity: str, pairs: Sequence[tuple[float, float]], *, limit: float, unit: str = "s") -> Ratio:
        """Sum up what ours and the peer took, pair by pair."""
        ours, peer = zip(*pairs, strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        return cls(
            quantity,
            statistics.median(ours),
            statistics.median(peer),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            limit,
            len(pairs),
            unit,
        )

    @property
    def is_met(self) -> bool:
        """Whether the ratio is at most its limit."""
        return self.ratio <= self.limit


def compare(
    quantity: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    limit: float,
    runs: int = 7,
    unit: str = "s",
) -> Ratio:
    """Run both in turn, after one uncounted pair; each callable returns what it took."""
    ours()
    peer()
    pairs = [(ours(), peer()) if i % 2 else (lambda p, o: (o, p))(peer(), ours()) for i in range(runs)]
    return Ratio.of_pairs(quantity, pairs, limit=limit, unit=unit)


def timed(function: Callable[[], object]) -> float:
    """Return the processor time of one call, in seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def report(name: str, title: str, peer: str, rows: list[Ratio]) -> None:
    """Print the ratios and write them to results/bench with what they were measured on."""
    show(title, peer, rows)
    _write(RESULTS / f"{name}.csv", rows, f"python -m benchmarks.{name}")


def show(title: str, peer: str, rows: list[Ratio]) -> None:
    """Print ratios as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("quantity", "ours", peer, "ratio", "spread", "limit", "met"):
        table.add_column(heading, justify="left" if heading == "quantity" else "right")
    for row in rows:
        table.add_row(
            row.quantity,
            _amount(row.ours, row.unit),
            _amount(row.peer, row.unit),
            f"{row.ratio:.3g}",
            f"{row.low:.3g}-{row.high:.3g}",
            f"{row.limit:.3g}",
            "yes" if row.is_met else "NO",
        )
    Console(width=130).print(table)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a result, as text; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def recorded(name: str) -> list[Ratio]:
    """Read the ratios that a benchmark has written; none if it has not run."""
    return [
        Ratio(
            quantity=row["quantity"],
            **{key: float(row[key]) for key in ("ours", "peer", "ratio", "low", "high", "limit")},
            runs=int(row["runs"]),
            unit=row.get("unit") or "s",
        )
        for row in read_rows(RESULTS / f"{name}.csv")
    ]


def _amount(value: float, unit: str) -> str:
    return {"MB": f"{value:.0f} MB", "%": f"{value:.1%}"}.get(unit, f"{value * 1e3:,.0f} ms")


def machine(command: str) -> dict[str, object]:
    """Return what a row of a result is measured with and on."""
    found = provenance()
    versions = {name: importlib.metadata.version(name) for name in ("torchvision", "torch-pruning", "transformers")}
    return {
        "command": command,
        "torch": torch.__version__,
        **versions,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cpu": found["hardware"]["cpu"],
        "commit": found["commit"],
        "dirty": found["dirty"],
    }


def _write(path: Path, rows: list[Ratio], command: str) -> None:
    where = machine(command)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*asdict(rows[0]), *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **where} for row in rows)
