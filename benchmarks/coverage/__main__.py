"""Prune every public network of the registry by half of its MACs, and write down what came of each.

python -m benchmarks.coverage                        # everything, anew: hours on one core
python -m benchmarks.coverage --resume --peer        # what is missing, with Torch-Pruning beside it
python -m benchmarks.coverage --only 'timm:res*'     # some networks
python -m benchmarks.coverage --small                # twelve of all kinds, in a minute, without writing
python -m benchmarks.coverage --defaults             # the default method, into a table of its own
python -m benchmarks.coverage --check                # only build and run the networks
python -m benchmarks.coverage --page                 # docs/coverage.md from results/bench/coverage.csv
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.coverage import measure, runner, table
from benchmarks.coverage import page as pages
from benchmarks.coverage.registry import PACKAGES, Network, installed, networks

# Twelve networks of all kinds that are quick: what a change of the library is tried on first.
SMALL = (
    *("timm:mobilenetv3_small_050", "timm:levit_128s", "timm:convnext_zepto_rms", "torchvision:shufflenet_v2_x0_5"),
    *("torchvision:squeezenet1_1", "transformers:bert", "transformers:llama", "transformers:t5", "transformers:swin"),
    *("transformers:mixtral", "diffusers:UNet2DModel", "diffusers:DiTTransformer2DModel"),
)


def main(
    only: Annotated[
        str, typer.Option(help="Networks whose key has this in it, or matches it as a pattern with *.")
    ] = "",
    package: Annotated[str, typer.Option(help=f"One of {', '.join(PACKAGES)}.")] = "",
    small: Annotated[bool, typer.Option("--small", help="Twelve networks, printed and not written.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what the table has a row of.")] = False,
    peer: Annotated[bool, typer.Option("--peer", help="Torch-Pruning beside it.")] = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Call the default method; written to coverage_defaults.csv.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only build and run the networks; nothing is written.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="Write the page from the table.")] = False,
    again: Annotated[
        str, typer.Option(help="With --resume: run rows of these states anew, such as wrong,timeout.")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for each step of a network.")] = runner.TIMEOUT,
    memory_gb: Annotated[int, typer.Option(help="Address space of each step of a network.")] = runner.MEMORY_GB,
    out: Annotated[Path | None, typer.Option(help="The table, if not the usual one.")] = None,
) -> None:
    """Run the coverage."""
    out = out or (table.DEFAULTS if defaults else table.PATH)
    if page:
        pages.write(table.read(table.PATH), table.read(table.DEFAULTS))
        return
    step = measure.measure_defaults if defaults else measure.measure
    rows = table.read(out)
    counts: Counter[str] = Counter()
    for name in [package] if package else installed():
        chosen = [network for network in _networks(name, small) if _is_meant(network.key, only)]
        if chosen:
            runner.prepare(name)
        for network in chosen:
            old = rows.get(network.key, {}) if resume else {}
            if old.get("state") in again.split(",") and again:
                old = {}
            if check:
                found = runner.checked(network, timeout, memory_gb)
                counts.update(["networks", *(["build and run"] if not found["stopped"] else [])])
                print(json.dumps({"key": network.key, **found}), flush=True)
                continue
            new = _measured(network, old, peer, partial(runner.ours, step=step), timeout, memory_gb)
            if not new:
                continue
            rows[network.key] = {**rows.get(network.key, {}), **old, **new}
            print(_line(rows[network.key]), flush=True)
            if not small:
                table.write(rows, out)
    if check:
        print(f"{counts['build and run']} of {counts['networks']} networks build and run")


def _networks(package: str, small: bool) -> list[Network]:
    if small and not any(key.startswith(f"{package}:") for key in SMALL):
        return []
    return [network for network in networks(package).values() if not small or network.key in SMALL]


def _is_meant(key: str, pattern: str) -> bool:
    return not pattern or (fnmatch.fnmatch(key, pattern) if re.search(r"[*?\[]", pattern) else pattern in key)


def _measured(
    network: Network,
    old: dict[str, Any],
    peer: bool,
    ours: Callable[[Network, float, int], dict[str, Any]],
    timeout: float,
    memory_gb: int,
) -> dict[str, Any]:
    """Return the columns that are missing of a row."""
    new: dict[str, Any] = {}
    if not old.get("state"):
        empty = dict.fromkeys(table.OURS, "")
        new = {**empty, **table.about(network), **ours(network, timeout, memory_gb)}
    if peer and not old.get("peer_state"):
        new |= {**dict.fromkeys(table.PEER, ""), **runner.theirs(network, timeout, memory_gb)}
    return new


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['key']:45} {row.get('state', ''):10} {row.get('achieved', '')!s:7} {row.get('seconds', '')!s:>7} s"]
    if row.get("peer_state"):
        parts.append(f"peer {row['peer_state']} {row.get('peer_achieved', '')}")
    if row.get("reason"):
        parts.append(str(row["reason"])[:150])
    return "  ".join(parts)


if __name__ == "__main__":
    typer.run(main)
