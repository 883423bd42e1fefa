"""Train a network by a recipe: warm-up, half cosine, resumable after every epoch.

The network of the last epoch is the result: nothing is selected, so validation data are only
watched. An interrupted run continues at the next epoch and ends with the same bytes as an
undisturbed one, because every random draw of an epoch comes from (seed, epoch).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ifap.config import TrainingOptions
from ifap.errors import TrainingError
from ifap.files import atomic_write_bytes
from ifap.runtime import derive_seed, seeded
from ifap.splits import Split, refuse_test
from ifap.tasks.base import Augment, Task, batches, chunks
from ifap.tracing import call, device_of, evaluation_mode, to_device

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"
ExtraLoss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class EpochRow:
    """One epoch of training.

    Parameters
    ----------
    epoch : int
        Counted from 1.
    lr : float
        Learning rate of the last step.
    train_loss : float
        Mean loss of the epoch's samples, extra terms included.
    validation_loss : float
        Loss on the validation split after the epoch, without label smoothing.
    validation_metric : float
        The task's primary metric on the validation split after the epoch.
    """

    epoch: int
    lr: float
    train_loss: float
    validation_loss: float
    validation_metric: float


HISTORY_FIELDS = tuple(field.name for field in dataclasses.fields(EpochRow))


@dataclass(frozen=True)
class Progress:
    """What earlier, interrupted sessions contributed to a training run."""

    resumes: int = 0
    earlier_seconds: float = 0.0


class Controller(Protocol):
    """What a sparse-training method does around the steps of `fit`.

    Steps are optimiser steps, counted from 0 over the whole run. Random draws must come from a
    generator of the controller's own, whose state it returns from `state`: the global ones depend
    on the network's dropout, and differ between processes.
    """

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Prepare, once before the first epoch of a session; a resumed session then calls `restore`.

        The network still has its first weights here, also in a session that goes on with others.
        """
        ...

    def before_step(self, step: int) -> None:
        """Act before the forward of a step."""
        ...

    def after_backward(self, step: int) -> bool:
        """Act on the gradients, averaged and unscaled; False leaves the weights alone in this step."""
        ...

    def after_step(self, step: int) -> None:
        """Act at the end of every step, skipped ones included."""
        ...

    def finish(self) -> None:
        """Act on the network that is returned, after the last step and before it is validated."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs to go on after an epoch."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned; network and optimiser are already those of that moment."""
        ...


def fit(
    model: nn.Module,
    train: Split,
    validation: Split,
    recipe: TrainingOptions,
    task: Task,
    *,
    seed: int,
    augment: bool | Augment = False,
    state: Path | None = None,
    guard: str = "",
    extra_loss: ExtraLoss | None = None,
    controller: Controller | None = None,
) -> list[EpochRow]:
    """Train `model` in place and return its history.

    Parameters
    ----------
    model : Module
        The network; its train and eval modes are put back at the end.
    train, validation : Split
        What to learn from and what to watch; the test split is refused.
    recipe : TrainingOptions
        Epochs, optimiser and schedule.
    task : Task
        Loss and metrics.
    seed : int
        With the number of the epoch, the source of order, augmentation and dropout.
    augment : bool or callable, optional
        True for the training split's own augmentation, or a function that changes a batch of
        inputs; used if the recipe asks for augmentation.
    state : Path, optional
        Folder of the resume state, replaced after every epoch but the last.
    guard : str, optional
        What else the result depends on, such as a hash of the resolved configuration; a state
        with another guard or recipe is discarded.
    extra_loss : callable, optional
        ``extra_loss(inputs, outputs)`` is added to the loss of every batch.
    controller : Controller, optional
        Acts around every step, such as a sparse-training method; its state is part of the resume state.

    Returns
    -------
    list of EpochRow
        All epochs, those of earlier sessions included.

    Raises
    ------
    SplitError
        If either split is the test split.
    TrainingError
        If the loss is not finite.
    """
    refuse_test(train, "training")
    refuse_test(validation, "watching the training")
    if not recipe.augment:
        augment = False
    run = _Run(model, recipe, state, _fingerprint(model, recipe, seed, guard), controller)
    steps = len(chunks(len(train), recipe.batch_size))
    if controller is not None:
        controller.start(model, run.optimizer, steps=recipe.epochs * steps, steps_per_epoch=steps)
    run.resume()
    if controller is not None and recipe.epochs == 0:
        controller.finish()
    with evaluation_mode(model), _bar(recipe.epochs - len(run.rows)) as advance:
        for epoch in range(len(run.rows) + 1, recipe.epochs + 1):
            with seeded(derive_seed(seed, epoch), device_of(model)):
                loss = _epoch(run, train, task, steps, epoch, seed, augment, extra_loss)
            if controller is not None and epoch == recipe.epochs:
                controller.finish()
            measured = task.evaluate(model, validation, recipe.batch_size)
            lr = run.optimizer.param_groups[0]["lr"]
            run.rows.append(EpochRow(epoch, lr, loss, measured["loss"], measured[task.primary]))
            run.save()
            advance()
    model.zero_grad(set_to_none=True)
    return run.rows


def read_progress(state: Path) -> Progress:
    """Return what earlier sessions contributed to the run whose state is in this folder."""
    stored = _read_metadata(state / STATE_FILE)
    return Progress(stored["resumes"], stored["earlier_seconds"]) if stored else Progress()


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate of one step: a linear rise to `peak`, then half a cosine towards zero.

    Parameters
    ----------
    step : int
        Counted from 0.
    steps : int
        Steps of the whole run.
    warmup : int
        Steps of the linear rise.
    peak : float
        Largest learning rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def build_optimizer(model: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW or SGD with Nesterov momentum; biases and norm parameters are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


class _Run:
    """A training run in memory and, after every epoch, on disk."""

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainingOptions,
        state: Path | None,
        fingerprint: str,
        controller: Controller | None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.controller = controller
        self.optimizer = build_optimizer(model, recipe.optimizer, recipe.lr, recipe.weight_decay)
        self.rows: list[EpochRow] = []
        self._file = None if state is None else state / STATE_FILE
        self._fingerprint = fingerprint
        self._resumes = 0
        self._earlier_seconds = 0.0
        self._start = time.monotonic()

    def save(self) -> None:
        """Replace the state on disk: network, optimiser, history.

        Not after the last epoch: the caller writes the result at once.
        """
        if self._file is None or len(self.rows) == self.recipe.epochs:
            return
        stored = {
            "fingerprint": self._fingerprint,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "resumes": self._resumes,
            "earlier_seconds": self._earlier_seconds,
            "seconds": self._earlier_seconds + time.monotonic() - self._start,
        }
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None})
        if self.controller is not None:
            tensors.update({f"controller.{name}": value for name, value in self.controller.state().items()})
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        atomic_write_bytes(self._file, save(copies, {"run": json.dumps(stored)}))

    def resume(self) -> None:
        """Continue where an earlier session of the same run stopped, if there was one."""
        stored = None if self._file is None else _read_metadata(self._file)
        if self._file is None or stored is None:
            return
        if stored["fingerprint"] != self._fingerprint:
            log.info("starting over: the state in %s belongs to another recipe", self._file.parent)
            self._file.unlink()
            return
        with safe_open(self._file, "pt") as stream:
            self._restore({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118 (no mapping)
        self.rows = [EpochRow(**row) for row in stored["rows"]]
        self._resumes = stored["resumes"] + 1
        self._earlier_seconds = stored["seconds"]
        log.info("resuming after epoch %d of %d", len(self.rows), self.recipe.epochs)
        self.save()

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "controller": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        for name, value in parts["optimizer"].items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = value
        self.model.load_state_dict(parts["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if self.controller is not None:
            self.controller.restore(parts["controller"])


def _epoch(
    run: _Run,
    train: Split,
    task: Task,
    steps: int,
    epoch: int,
    seed: int,
    augment: bool | Augment,
    extra_loss: ExtraLoss | None,
) -> float:
    recipe, where = run.recipe, device_of(run.model)
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, "order"))
    run.model.train()
    total = 0.0
    for step, (inputs, targets) in enumerate(batches(train, recipe.batch_size, generator, augment=augment)):
        done = (epoch - 1) * steps + step
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(done, recipe.epochs * steps, recipe.warmup_epochs * steps, recipe.lr)
        if run.controller is not None:
            run.controller.before_step(done)
        inputs = to_device(inputs, where)
        outputs = call(run.model, inputs)
        loss = task.loss(outputs, targets.to(where), label_smoothing=recipe.label_smoothing)
        if extra_loss is not None:
            loss = loss + extra_loss(inputs, outputs)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"loss is {value} in epoch {epoch}, step {step + 1} of {steps}: lower the learning rate"
            )
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.controller is None or run.controller.after_backward(done):
            run.optimizer.step()
        if run.controller is not None:
            run.controller.after_step(done)
        total += value * len(targets)
    return total / len(train)


def _fingerprint(model: nn.Module, recipe: TrainingOptions, seed: int, guard: str) -> str:
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    text = json.dumps([recipe.model_dump(), seed, guard, shapes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_metadata(path: Path) -> dict[str, Any] | None:
    try:
        with safe_open(path, "pt") as stream:
            stored: dict[str, Any] = json.loads((stream.metadata() or {})["run"])
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError, OSError):
        log.warning("starting over: %s is damaged", path)
        path.unlink(missing_ok=True)
        return None
    return stored


@contextlib.contextmanager
def _bar(epochs: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal only; yields the function that advances it."""
    with Bar(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        line = bar.add_task("training", total=epochs)
        yield lambda: bar.advance(line)
