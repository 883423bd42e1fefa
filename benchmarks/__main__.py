"""Run every benchmark that compares with a limit, and print one table of what they found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks.ratio import recorded, show

BENCHMARKS = ("scoring", "surgery", "latency_target", "sparse_step", "workflow", "accuracy_table")

TITLES = {"latency_target": "target in time", "sparse_step": "training step", "accuracy_table": "accuracy"}


def main(
    table: Annotated[bool, typer.Option("--table", help="Only print what is recorded, and measure nothing.")] = False,
) -> None:
    """Measure each in a process of its own and write results/bench; exit with 1 if a limit is not met.

    Accuracies take hours, so that those that benchmarks.accuracy has recorded are compared.
    """
    for name in () if table else BENCHMARKS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    rows = [
        replace(row, quantity=f"{TITLES.get(name, name)}: {row.quantity}")
        for name in BENCHMARKS
        for row in recorded(name)
    ]
    show("Ratios, ours to the peer's or to what is allowed", "peer", rows)
    raise typer.Exit(not all(row.is_met for row in rows))


if __name__ == "__main__":
    typer.run(main)
