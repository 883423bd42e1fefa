"""The state of a pruning run on disk, and the units of the network that a plan describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.errors import ConfigError, PlanError
from ifap.files import atomic_write_text
from ifap.options import Options
from ifap.plan import Plan, read_plan
from ifap.results import Receipt
from ifap.saving.store import write_network

_NETWORK, _IGNORED = "network", "ignore"


def described(options: Options, model: nn.Module, ignored: Sequence[str]) -> dict[str, str]:
    """Return the identity of a run: its options and the SHA-256 of its initial weights."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_meta:
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    said = {field.name: getattr(options, field.name) for field in fields(options) if field.name != "prove"}
    if options.like is not None:
        said["like"] = hashlib.sha256(options.like.model_dump_json().encode()).hexdigest()
    said[_IGNORED] = ", ".join(ignored)
    return {_NETWORK: weights.hexdigest(), **{key: str(value) for key, value in said.items()}}


class Store:
    """The state of a run after its last iteration: a saved network and its receipts.

    `folder` is made if it does not exist. ``keeps(receipts)`` returns the number of an earlier iteration whose network
    stays too, or None.
    """

    def __init__(self, folder: Path, keeps: Callable[[list[Receipt]], int | None] | None = None) -> None:
        self._root, self._keeps = folder, keeps
        self._receipts = folder / "receipts.json"
        self._run: dict[str, str] = {}

    def claim(self, run: dict[str, str]) -> None:
        """Set the run that the state belongs to; see `described`.

        Raises a ConfigError if there is the state of another run: it would be returned as if it were this one's.
        """
        found = json.loads(self._receipts.read_text()).get("run", run) if self.exists() else run
        other = next((key for key, value in run.items() if found.get(key, "") != value), None)
        if other is not None:
            what = "of other weights" if other == _NETWORK else f"with {other}={found.get(other)}, not {run[other]}"
            raise ConfigError(
                f"resume: '{self._root}' holds a run {what}: give another folder, or remove this one to begin again"
            )
        self._run = run

    @property
    def folder(self) -> Path:
        """The saved network that the receipts belong to."""
        return self._root / str(json.loads(self._receipts.read_text())["network"])

    def exists(self) -> bool:
        """Whether a state is stored."""
        return self._receipts.exists()

    def write(self, model: nn.Module, plan: Plan, receipts: list[Receipt]) -> None:
        """Save the network, then refer to it; a kill in between keeps the previous state."""
        name = f"iteration-{len(receipts) - 1}"
        write_network(model, plan, self._root / name)
        content = {"network": name, "run": self._run, "receipts": [asdict(receipt) for receipt in receipts]}
        atomic_write_text(self._receipts, json.dumps(content))
        kept = None if self._keeps is None else self._keeps(receipts)
        for old in self._root.glob("iteration-*"):
            if old.name not in (name, f"iteration-{kept}"):
                for file in old.iterdir():
                    file.unlink()
                old.rmdir()

    def read(self) -> tuple[list[Receipt], Plan]:
        """Return the receipts so far and the plan of the saved network."""
        content = json.loads(self._receipts.read_text())
        plan = read_plan(self.folder)
        return [Receipt(**receipt) for receipt in content["receipts"]], plan


class Ended(Store):
    """The state after an earlier iteration, whose network was kept: a run that goes on from it has nothing to do.

    `folder` is that of the store that kept it.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__(folder)
        self._iteration = iteration

    def claim(self, run: dict[str, str]) -> None:
        """Accept any run: the run that kept this state may have more iterations."""

    @property
    def folder(self) -> Path:
        """The network of that iteration."""
        return self._root / f"iteration-{self._iteration}"

    def write(self, model: nn.Module, plan: Plan, receipts: list[Receipt]) -> None:
        """Write nothing."""

    def read(self) -> tuple[list[Receipt], Plan]:
        """Return the receipts up to that iteration and its plan."""
        receipts, plan = super().read()
        return receipts[: self._iteration + 1], plan


def replay(graph: Graph, plan: Plan) -> Graph:
    """Return the graph of the network that `plan` describes, from that of the unpruned one."""
    whole = {slot: range(len(units)) for slot, units in zip(graph.slots, graph.unit_of, strict=True)}
    kept = [plan.kept.get(slot.name, {}).get(slot.side, every) for slot, every in whole.items()]
    return graph.without(graph.lost(kept))


def follow(graph: Graph, plan: Plan) -> Graph:
    """Check that the plan describes this network, then `replay` it."""
    for name, by_side in plan.kept.items():
        for side, left in by_side.items():
            slot = graph.slot(name, side)
            if slot is None or left[-1] >= len(graph.unit_of[slot]):
                raise PlanError(f"like: '{name}' {side} of the plan does not exist: it belongs to another network")
            if (np.delete(graph.unit_of[slot], left) < 0).any():
                reason = graph.pinned.get(name, "it cannot be pruned")
                raise PlanError(f"like: the plan cuts '{name}', which stays here: {reason}")
    return replay(graph, plan)


def restore_modes(original: nn.Module, model: nn.Module) -> None:
    """Give the modules of a loaded network the modes that those of the original have."""
    modes = {name: module.training for name, module in original.named_modules()}
    for name, module in model.named_modules():
        module.training = modes.get(name, modes.get(name.rpartition(".")[0], original.training))
