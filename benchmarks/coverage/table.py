"""The table of the coverage: one row a network, kept in the order of the registry."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.coverage.registry import DISTRIBUTIONS, PACKAGES, Network
from benchmarks.ratio import RESULTS, read_rows
from ifap.files import write_csv
from ifap.study.machine.provenance import provenance

PATH = RESULTS / "coverage.csv"
DEFAULTS = RESULTS / "coverage_defaults.csv"

# Column to what it holds; the page prints this.
COLUMNS = {
    "key": "package and name",
    "family": "module, family or architecture that the network stands for",
    "state": "reached, partly, refused, traceback, timeout or wrong",
    "achieved": "removed share of the MACs",
    "seconds": "time of the call of `ifap.prune` that ended with this state",
    "seconds_all": "time of all steps: building, pruning, checks, loading",
    "macs_before": "MACs of one forward of the unpruned network",
    "macs_after": "MACs of one forward of the pruned network",
    "params_before": "parameters of the unpruned network",
    "params_after": "parameters of the pruned network",
    "proof_difference": "largest difference in the proof, as a share of the largest output; empty without a proof",
    "proof_units": "units that the proof compared",
    "proof_exempt": "units that the proof excludes, by reason",
    "reload": "equal if the network loaded in a new process has equal outputs, bit by bit",
    "shapes": "same if the outputs keep their shapes",
    "batch": "yes if a batch of twice the size runs; no: not even unpruned; -: not defined",
    "trains": "yes if a forward and backward in training mode work; no: not even unpruned",
    "generates": "yes if four tokens are generated greedily; no: not even unpruned; -: no language model",
    "stays": "layers with the most MACs whose outputs are kept, with their share of the MACs and the reason",
    "reason": "text of the library's error, of the traceback or of the failed check",
    "frame": "last place in the library in the traceback",
    "peer_state": "state of Torch-Pruning",
    "peer_achieved": "share of the MACs that Torch-Pruning removed",
    "peer_seconds": "time of pruning with Torch-Pruning",
    "peer_reason": "error of Torch-Pruning",
    "version": "version of the package",
    "torch": "version of torch",
    "commit": "commit of this project",
    "dirty": "whether files differed from the commit",
}
PEER = tuple(name for name in COLUMNS if name.startswith("peer_"))
OURS = tuple(name for name in COLUMNS if name not in PEER)


def read(path: Path = PATH) -> dict[str, dict[str, Any]]:
    """Return the rows of the table by key; none if there is no table."""
    return {row["key"]: dict(row) for row in read_rows(path)}


def write(rows: dict[str, dict[str, Any]], path: Path = PATH) -> None:
    """Write the table at once, packages in their order and networks by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(rows.values(), key=lambda row: (PACKAGES.index(row["key"].partition(":")[0]), row["key"].lower()))
    write_csv(path, ({name: row.get(name, "") for name in COLUMNS} for row in order), COLUMNS)


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
