"""Run one step for one network in a process of its own, with bounds on its time and its memory.

Processes are forked from one that has imported a package and run nothing, which saves the seconds of each import. Each
of the steps of a network (pruning, loading, the peer) has its own, so that loading knows nothing of the pruning before.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage import measure, peer
from benchmarks.coverage.check import check, said
from benchmarks.coverage.registry import Network, find

TIMEOUT, MEMORY_GB = 300.0, 16
LOGS = "log.txt"
_ABORT = "ended by signal 6"

Step = Callable[[Network, Path, measure.Note], None]

# What a process loads before it is divided: the parts of a package that every network of it needs.
_PRELOAD = {
    "timm": ("timm",),
    "torchvision": ("torchvision", "torchvision.models"),
    "transformers": (
        "transformers.modeling_utils",
        "transformers.generation",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "transformers.models.clip.modeling_clip",
        "transformers.models.detr.modeling_detr",
    ),
    "diffusers": (
        "diffusers.models.unets",
        "diffusers.models.transformers",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.controlnets",
    ),
    "smp": ("segmentation_models_pytorch",),
    "vit_pytorch": ("vit_pytorch",),
    "x_transformers": ("x_transformers",),
    "monai": ("monai.networks.nets",),
    "ultralytics": ("ultralytics.nn.tasks",),
}


def prepare(package: str) -> None:
    """Import what the networks of a package have in common; one thread each, from here on."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, not even by mistake
    for name in ("ifap", "ifap.pruning", "ifap.plan", *_PRELOAD[package]):
        importlib.import_module(name)


def run(
    network: Network,
    step: Step,
    folder: Path,
    timeout: float = TIMEOUT,
    memory_gb: int = MEMORY_GB,
    start: str = "fork",
) -> dict[str, Any]:
    """Run a step and return the columns it noted, with ``stopped`` where it did not end by itself.

    Parameters
    ----------
    network : Network
        An entry of the registry.
    step : callable
        `benchmarks.coverage.measure.measure`, for example.
    folder : Path
        Where it may write; what it prints goes to a file there.
    timeout : float
        Seconds after which it is ended.
    memory_gb : int
        Address space that it may take.
    start : str
        How its process begins: ``"fork"``, or ``"spawn"`` for a new interpreter.
    """
    notes = folder / f"{step.__module__}.{step.__name__}.jsonl"
    notes.touch()
    context: Any = multiprocessing.get_context(start)
    made = network if start == "fork" else network.key  # what builds a network cannot be sent to a new interpreter
    child = context.Process(target=_child, args=(made, step, folder, notes, memory_gb))
    child.start()
    child.join(timeout)
    stopped = ""
    if child.is_alive():
        child.kill()
        child.join()
        stopped = f"more than {timeout:g} s"
    elif child.exitcode:
        stopped = f"ended by signal {-child.exitcode}" if child.exitcode < 0 else f"exit status {child.exitcode}"
        stopped += _last_words(folder / LOGS)
    found: dict[str, Any] = {}
    for line in notes.read_text().splitlines():
        found.update(json.loads(line))
    return {**found, "stopped": found.get("stopped") or stopped}


def _last_words(log: Path) -> str:
    """Return what a process said of an error that no Python code saw, if it did."""
    text = log.read_text() if log.exists() else ""
    return next((f": {line.strip()}" for line in text.splitlines() if "what():" in line), "")


def _child(made: Network | str, step: Step, folder: Path, notes: Path, memory_gb: int) -> None:
    network = find(made) if isinstance(made, str) else made
    if isinstance(made, str):
        prepare(network.package)
    bound = memory_gb << 30
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    with (folder / LOGS).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())

    def note(columns: dict[str, Any]) -> None:
        with notes.open("a") as stream:
            stream.write(json.dumps(columns) + "\n")

    try:
        step(network, folder, note)
    except Exception as error:
        note({"stopped": f"{said(error)} {measure.frame(error)}".strip()})
        traceback.print_exc()


def ours(
    network: Network, timeout: float = TIMEOUT, memory_gb: int = MEMORY_GB, step: Step = measure.measure
) -> dict[str, Any]:
    """Return what pruning a network and loading the result gave: columns of one row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        row = run(network, step, folder, timeout, memory_gb)
        if row["stopped"].startswith(_ABORT):  # threads do not always survive a fork
            row = run(network, step, folder, timeout, memory_gb, start="spawn")
        if row.get("achieved") and not row["stopped"]:
            row.update(run(network, measure.reload, folder, timeout, memory_gb))
        row["seconds_all"] = round(time.perf_counter() - start, 2)
    return judged(row)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its state, once everything is known.

    ``wrong`` is a network that was returned but does not do what it should; ``timeout`` and ``traceback`` also stand
    for what fails before or after `ifap.prune`.
    """
    found = dict(row)
    stopped = str(found.pop("stopped", ""))
    wrong = [
        f"{column}: {found[column]}"
        for column, fine in (
            ("reload", ("equal",)),
            ("shapes", ("same",)),
            ("batch", ("yes", "no", "-")),
            ("trains", ("yes", "no", "-")),
            ("generates", ("yes", "no", "-")),
        )
        if found.get(column, fine[0]) not in fine
    ]
    if stopped and found.get("state") not in ("refused", "traceback"):
        state = "wrong" if found.get("achieved") else "traceback"  # a network was returned, and does not even run
        found |= {"state": "timeout" if stopped.startswith("more than") else state, "reason": stopped}
    elif wrong:
        found |= {"state": "wrong", "reason": "; ".join(wrong)}
    return found


def theirs(network: Network, timeout: float = TIMEOUT, memory_gb: int = MEMORY_GB) -> dict[str, Any]:
    """Return the columns of the peer for a network."""
    with tempfile.TemporaryDirectory() as name:
        row = run(network, peer.measure, Path(name), timeout, memory_gb)
    stopped = row.pop("stopped")
    if stopped:
        state = "timeout" if str(stopped).startswith("more than") else "traceback"
        row |= {"peer_state": state, "peer_reason": stopped}
    return row


def _check(network: Network, folder: Path, note: measure.Note) -> None:
    note(check(network))


def checked(network: Network, timeout: float = TIMEOUT, memory_gb: int = MEMORY_GB) -> dict[str, Any]:
    """Return what `benchmarks.coverage.check.check` says of a network."""
    with tempfile.TemporaryDirectory() as name:
        return run(network, _check, Path(name), timeout, memory_gb)
