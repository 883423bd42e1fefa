"""The table of the coverage: one row a network, kept in the order of the registry."""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.coverage.registry import PACKAGES, Network
from benchmarks.ratio import RESULTS
from ifap.study.machine.provenance import provenance

PATH = RESULTS / "coverage.csv"
DISTRIBUTIONS = {"smp": "segmentation_models_pytorch"}

# Column to what it holds; the page prints this.
COLUMNS = {
    "key": "package and name",
    "family": "module, family or architecture that the network stands for",
    "state": "reached, partly (as far as the refusal says), refused, traceback, timeout or wrong",
    "achieved": "share of the MACs that is gone",
    "seconds": "of the `ifap.prune` that ended with this state",
    "seconds_all": "of all steps: building, pruning, checks, loading",
    "macs_before": "of one forward over the inputs",
    "macs_after": "the same, pruned",
    "params_before": "parameters",
    "params_after": "the same, pruned",
    "proof_difference": "largest difference that the proof found, as a share; empty if there is no proof",
    "proof_units": "units that the proof looked at",
    "proof_exempt": "units to which it does not apply, by reason",
    "reload": "equal if the network loaded in a new process computes the same, bit by bit",
    "shapes": "same if the outputs keep their shapes",
    "batch": "yes if twice the batch runs; no: not even unpruned; -: makes no sense",
    "trains": "yes if a forward and backward in training mode work; no: not even unpruned",
    "generates": "yes if four tokens are generated greedily; no: not even unpruned; -: no language model",
    "stays": "layers that stay and do most of the work, with their share of it and the reason",
    "reason": "what the refusal, the traceback or the failed check says",
    "frame": "place in the library that a traceback came through last",
    "peer_state": "the same states for Torch-Pruning",
    "peer_achieved": "share of the MACs that is gone",
    "peer_seconds": "of its pruning",
    "peer_reason": "what it raised",
    "version": "of the package",
    "torch": "version",
    "commit": "of this project",
    "dirty": "whether files differed from it",
}
PEER = tuple(name for name in COLUMNS if name.startswith("peer_"))
OURS = tuple(name for name in COLUMNS if name not in PEER)


def read(path: Path = PATH) -> dict[str, dict[str, Any]]:
    """Return the rows of the table by key; none if there is no table."""
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        return {row["key"]: dict(row) for row in csv.DictReader(stream)}


def write(rows: dict[str, dict[str, Any]], path: Path = PATH) -> None:
    """Write the table at once, packages in their order and networks by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(rows.values(), key=lambda row: (PACKAGES.index(row["key"].partition(":")[0]), row["key"].lower()))
    fresh = path.with_suffix(".tmp")
    with fresh.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(COLUMNS), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: row.get(name, "") for name in COLUMNS} for row in order)
    fresh.replace(path)


def about(network: Network) -> dict[str, Any]:
    """Return the columns that say which network and which versions a row is of."""
    found = provenance()
    return {
        "key": network.key,
        "family": network.family,
        "version": importlib.metadata.version(DISTRIBUTIONS.get(network.package, network.package)),
        "torch": importlib.metadata.version("torch"),
        "commit": found["commit"],
        "dirty": found["dirty"],
    }
