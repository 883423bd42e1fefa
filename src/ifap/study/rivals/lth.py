"""LTH: iterative magnitude pruning with weight rewinding (Frankle & Carbin 2019; Frankle et al. 2020).

Train, prune the smallest weights of all layers together, go back to the weights of an early epoch,
train again with a new optimiser from that place in the schedule; repeat. Every weight of a
convolution or linear layer takes part, stem and classifier included. Each training has the whole
budget of the other methods, so the whole costs about (levels + 1) times as much.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ifap.errors import ConfigError
from ifap.files import atomic_write_bytes
from ifap.study.config.rivals import LthOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Event, Masks, Outcome, options_of
from ifap.study.rivals.controller import MaskController, all_kept, counted
from ifap.study.rivals.density import Prices, maskable, prices, refuse_empty
from ifap.study.rivals.ranking import affordable, global_top
from ifap.study.rivals.run import train
from ifap.study.training.fit import Progress, read_progress
from ifap.study.training.history import EpochRow

log = logging.getLogger(__name__)

_MASK, _EARLY = "mask.", "early."
_FILE = "levels.safetensors"
_NEARLY = 1e-9


class TicketController(MaskController):
    """Fixed masks; the first training also keeps all of the network as it is after `keep_after` epochs.

    Batch statistics are kept as well. For `masks` and `priced` see `MaskController`.
    """

    def __init__(self, masks: Masks, priced: Prices | None = None, keep_after: int | None = None) -> None:
        super().__init__(masks, priced)
        self._keep_after = keep_after
        self._model: nn.Module | None = None
        self.early: dict[str, Tensor] = {}

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Find the weights, mask them, and keep the untrained network if that is wanted."""
        super().start(model, optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
        self._model = model
        if self._keep_after == 0:
            self._keep()

    def end_epoch(self, step: int) -> None:
        """Keep the network if it is time."""
        if self._keep_after is not None and step + 1 == self._keep_after * self.steps_per_epoch:
            self._keep()

    def state(self) -> dict[str, Tensor]:
        """Return what was kept as well."""
        return {**super().state(), **{_EARLY + name: value for name, value in self.early.items()}}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        super().restore(tensors)
        self.early = {name.removeprefix(_EARLY): t for name, t in tensors.items() if name.startswith(_EARLY)}

    def _keep(self) -> None:
        assert self._model is not None
        self.early = {name: value.detach().clone() for name, value in self._model.state_dict().items()}


@dataclass(frozen=True)
class Level:
    """One training: its epochs, what it kept and what it cost, in theory and with dense kernels."""

    rows: list[EpochRow]
    kept: dict[str, int]
    training_macs: tuple[int, int]


def pruned_further(
    weights: Mapping[str, Tensor], masks: Masks, options: LthOptions, priced: Prices, goal: float, level: int
) -> Masks:
    """Return the masks of the next level, which keep the largest weights of those that are kept.

    `weights` are the trained ones, and `masks` what was kept so far. `priced` is the cost of the target, and `goal` the
    cost to end with; the last level lands on it. `level` is the next one; the first training is level 0.
    """
    magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
    floor = options.layer_floor
    last = affordable(magnitudes, masks, priced, goal, floor)
    if options.levels is not None:
        free = priced.whole - priced.fixed
        left = ((goal - priced.fixed) / free) ** (level / options.levels)
        here = priced.fixed + free * left
        keep = affordable(magnitudes, masks, priced, here, floor) if level < options.levels else last
    else:
        alive = sum(counted(masks).values())
        keep = max(last, alive - math.ceil(options.rate * alive - _NEARLY))
    found = global_top(magnitudes, masks, keep, floor)
    refuse_empty(counted(found))
    return found


@SPARSE.register("lth")
def lth(context: Context) -> Outcome:
    """Iterative magnitude pruning, global, with rewinding.

    Train, prune and rewind until the target is met, and train once more.
    """
    options: LthOptions = options_of(context, LthOptions)
    if options.rewind_epochs >= context.recipe.epochs:
        raise ConfigError(
            f"methods.lth.rewind_epochs {options.rewind_epochs} must be less than the {context.recipe.epochs} "
            "epochs of a training"
        )
    return _Run(context, options).finish()


class _Run:
    """The levels so far, and what the next one starts from."""

    def __init__(self, context: Context, options: LthOptions) -> None:
        self._context, self._options = context, options
        self.model, self._split = context.network()
        weights = maskable(self.model)
        self._priced = prices(self.model, context.example_inputs, context.target.kind, weights)
        self._macs = prices(self.model, context.example_inputs, "macs", weights)
        self._goal = self._priced.goal(context.target)
        self._start = counted(all_kept(weights))
        self.masks, self.early = all_kept(weights), dict[str, Tensor]()
        self.levels: list[Level] = []
        self._since, self._progress = time.monotonic(), Progress()

    def finish(self) -> Outcome:
        """Do the levels that are left."""
        resumed = self._read()
        while True:
            self._train(resumed=resumed)
            resumed = False
            if self._priced.of(counted(self.masks)) <= self._goal + _NEARLY * self._priced.whole:
                return self._outcome()
            trained = dict(self.model.named_parameters())
            weights = {name: trained[name] for name in self.masks}
            self.masks = pruned_further(weights, self.masks, self._options, self._priced, self._goal, len(self.levels))
            self._write()

    def _train(self, *, resumed: bool) -> None:
        level = len(self.levels)
        if level:
            self.model.load_state_dict(self.early)
        keep_after = None if level else self._options.rewind_epochs
        controller = TicketController(self.masks, self._macs, keep_after)
        folder = self._folder(level)
        context = dataclasses.replace(self._context, state=folder, guard=f"{self._context.guard}/level {level}")
        rows = train(context, self.model, controller, done=self._options.rewind_epochs if level else 0)
        if not level:
            self.early = controller.early
        if folder is not None:
            here = read_progress(folder)
            again = max(here.resumes, int(resumed))
            seconds = self._progress.earlier_seconds + here.earlier_seconds
            self._progress = Progress(self._progress.resumes + again, seconds)
        self.masks = controller.masks
        macs = controller.training_macs(len(self._context.train))
        self.levels.append(Level(rows, counted(self.masks), macs))
        log.info("level %d: %d weights kept, validation %.2f", level, sum(self.levels[-1].kept.values()),
                 rows[-1].validation_metric)  # fmt: skip

    def _outcome(self) -> Outcome:
        describe = MaskController(self.masks, self._macs).event
        trained: list[Event] = [describe(i, level.kept, level.rows[-1]) for i, level in enumerate(self.levels, 1)]
        theory, dense = (sum(level.training_macs[i] for level in self.levels) for i in (0, 1))
        return Outcome(
            model=self.model.eval(),
            masks=self.masks,
            split_attention=self._split,
            history=[row for level in self.levels for row in level.rows],
            events=[describe(0, self._start), *trained],
            training_macs=theory,
            dense_training_macs=dense,
            progress=self._progress,
        )

    # the state between two levels

    def _folder(self, level: int) -> Path | None:
        return None if self._context.state is None else self._context.state / f"level-{level}"

    def _write(self) -> None:
        if self._context.state is None:
            return
        seconds = self._progress.earlier_seconds + time.monotonic() - self._since
        stored = {
            "guard": self._guard(),
            "levels": [dataclasses.asdict(level) for level in self.levels],
            "resumes": self._progress.resumes,
            "seconds": seconds,
        }
        tensors = {
            **{_MASK + name: mask for name, mask in self.masks.items()},
            **{_EARLY + name: value for name, value in self.early.items()},
        }
        copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        atomic_write_bytes(self._context.state / _FILE, save(copies, {"run": json.dumps(stored)}))
        shutil.rmtree(self._context.state / f"level-{len(self.levels) - 1}", ignore_errors=True)

    def _read(self) -> bool:
        """Take up the levels of an earlier session, if there are any."""
        if self._context.state is None:
            return False
        file = self._context.state / _FILE
        try:
            with safe_open(file, "pt") as stream:
                stored: dict[str, Any] = json.loads((stream.metadata() or {})["run"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            return False
        except (SafetensorError, KeyError, ValueError, OSError):
            log.warning("starting over: %s is damaged", file)
            return False
        if stored["guard"] != self._guard():
            log.info("starting over: the state in %s belongs to other options", self._context.state)
            file.unlink(missing_ok=True)
            return False
        self.masks = {name: tensors[_MASK + name] for name in self.masks}
        self.early = {name.removeprefix(_EARLY): t for name, t in tensors.items() if name.startswith(_EARLY)}
        self.levels = [
            Level([EpochRow(**row) for row in level["rows"]], level["kept"], tuple(level["training_macs"]))
            for level in stored["levels"]
        ]
        self._progress = Progress(stored["resumes"], stored["seconds"])
        return True

    def _guard(self) -> str:
        context = self._context
        parts = [context.guard, context.recipe.model_dump(), self._options.model_dump(), context.seed]
        return json.dumps([*parts, context.target.kind, context.target.share], sort_keys=True)
