"""Train a network by a recipe: warm-up, then a falling learning rate; resumable after every epoch.

The network of the last epoch is the result: nothing is selected, so validation data are only
watched. An interrupted run continues at the next epoch and ends with the same bytes as an
undisturbed one, because every random draw of an epoch comes from (seed, epoch).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ifap.data import Augment, Split, batches, chunks, refuse_test
from ifap.errors import TrainingError
from ifap.files import atomic_write_bytes
from ifap.forward import evaluation_mode
from ifap.recovery.train_step import Engine, explain_memory, open_engine
from ifap.seeds import derive_seed, seeded
from ifap.study.config.recipes import TrainingOptions
from ifap.study.tasks.base import Task
from ifap.study.training.controller import Controller
from ifap.study.training.history import EpochRow
from ifap.study.training.progress import OnEpoch, Speed, StepBar
from ifap.study.training.schedule import build_optimizer, learning_rate

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"
ExtraLoss = Callable[[Any, Any], Tensor]
_LOSSES_ON_GPU = 50
"""Steps after which a GPU is asked for its losses: asking makes it wait."""


@dataclass(frozen=True)
class Progress:
    """What earlier, interrupted sessions contributed to a training run."""

    resumes: int = 0
    earlier_seconds: float = 0.0


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
    on_epoch: OnEpoch | None = None,
    done: int = 0,
) -> list[EpochRow]:
    """Train `model` in place and return its history.

    Started by ``accelerate launch`` or ``torchrun``, the processes share every batch, average their
    gradients and end with the same network; the first one alone measures, reports and writes.

    All epochs of this training, those of earlier sessions included.

    Parameters
    ----------
    model : Module
        The network, on its device; its train and eval modes are put back at the end.
    train, validation : Split
        What to learn from and what to watch; the test split is refused.
    recipe : TrainingOptions
        Epochs, optimiser, schedule, and how steps are computed.
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
    on_epoch : callable, optional
        ``on_epoch(row, speed)`` is called after every epoch; see `ifap.study.training.progress.tensorboard`.
    done : int, optional
        Epochs of the recipe that the network has behind it: training begins after them, with their
        place in the schedule and in the order of the data, and with a new optimiser.

    Raises
    ------
    SplitError
        If either split is the test split.
    TrainingError
        If the loss is not finite, memory does not suffice, or the batch cannot be shared.
    """
    refuse_test(train, "training")
    refuse_test(validation, "watching the training")
    engine = open_engine(
        model,
        recipe.precision,
        accumulate=recipe.accumulate,
        channels_last=recipe.channels_last,
        compile=recipe.compile,
    )
    _check_shares(recipe, engine)
    reader = _Reader(train, recipe, augment if recipe.augment else False, engine)
    run = _Run(model, recipe, state, _fingerprint(model, recipe, seed, guard, engine, controller), controller, engine)
    if controller is not None:
        steps = recipe.epochs * reader.steps
        controller.start(model, run.optimizer, steps=steps, steps_per_epoch=reader.steps)
    run.resume()
    if recipe.epochs <= done:
        run.finish()
    bar = StepBar(recipe.epochs, reader.steps, shown=engine.is_main)
    memory = explain_memory(recipe.batch_size, recipe.accumulate * engine.processes)
    with evaluation_mode(model), memory, engine.ready(run.optimizer), bar:
        for epoch in range(done + len(run.rows) + 1, recipe.epochs + 1):
            start = time.monotonic()
            # Processes see different samples, so they must drop out different units as well.
            own = (seed, epoch, engine.rank) if engine.rank else (seed, epoch)
            with seeded(derive_seed(*own), engine.where):
                losses = _epoch(run, reader, task, epoch, seed, extra_loss, bar)
            seconds = time.monotonic() - start
            row = run.measured(epoch, losses, task, validation)
            run.save()
            if on_epoch is not None and engine.is_main:
                on_epoch(row, Speed(seconds, losses.samples * engine.processes / seconds))
    model.zero_grad(set_to_none=True)
    return run.rows


def read_progress(state: Path) -> Progress:
    """Return what earlier sessions contributed to the run whose state is in this folder."""
    stored = _read_metadata(state / STATE_FILE)
    return Progress(stored["resumes"], stored["earlier_seconds"]) if stored else Progress()


class _Reader:
    """The training data of `fit`: the only place that reads them."""

    def __init__(self, train: Split, recipe: TrainingOptions, augment: bool | Augment, engine: Engine) -> None:
        self._train = train
        self._batch_size = recipe.batch_size
        self._augment = augment
        self._share = (engine.rank, engine.processes)
        self.steps = len(chunks(len(train), recipe.batch_size, share=self._share))
        if self.steps == 0 and len(train):
            raise TrainingError(f"{len(train)} training samples cannot be shared by {engine.processes} processes")

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Yield this process's part of every batch of an epoch."""
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, "order"))
        return batches(self._train, self._batch_size, generator, augment=self._augment, share=self._share)


class _Losses:
    """The losses of an epoch. A GPU is asked for them now and then only, the CPU after every part of a batch."""

    def __init__(self, where: torch.device) -> None:
        self._block = 1 if where.type == "cpu" else _LOSSES_ON_GPU
        self._waiting: list[tuple[int, int, Tensor]] = []
        self._total = 0.0
        self.samples = 0
        self.newest: float | None = None

    def add(self, step: int, loss: Tensor, samples: int) -> tuple[int, float] | None:
        """Take note of a mean over some samples; returns the first step whose loss was not finite, and the loss."""
        self._waiting.append((step, samples, loss.detach().double()))
        return self.read() if len(self._waiting) >= self._block else None

    def read(self) -> tuple[int, float] | None:
        """Read the losses that are waiting; returns what `add` does."""
        values = torch.stack([loss for _, _, loss in self._waiting]).tolist() if self._waiting else []
        for (step, samples, _), value in zip(self._waiting, values, strict=True):
            if not math.isfinite(value):
                return step, value
            self._total += value * samples
            self.samples += samples
            self.newest = value
        self._waiting.clear()
        return None

    @property
    def mean(self) -> float:
        """The mean over the samples."""
        return self._total / self.samples


class _Average:
    """A moving average of the weights; batch statistics are those of the network itself.

    Early on the average is short, so that the first weights do not stay in it for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(model.named_parameters())
        self.values = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def update(self, step: int) -> None:
        """Add the weights as they are after a step."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.values.values()), list(self._weights.values()), share)

    def swap(self) -> None:
        """Exchange the network's weights and the average."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                held = weight.clone()
                weight.copy_(self.values[name])
                self.values[name].copy_(held)

    def restore(self, values: dict[str, Tensor]) -> None:
        """Take up the average of an earlier session."""
        for name, value in values.items():
            self.values[name].copy_(value)


class _Run:
    """A training run in memory and, after every epoch, on disk."""

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainingOptions,
        state: Path | None,
        fingerprint: str,
        controller: Controller | None,
        engine: Engine,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.controller = controller
        self.engine = engine
        self.optimizer = build_optimizer(model, recipe)
        self.average: _Average | None = None
        self.rows: list[EpochRow] = []
        self._file = None if state is None else state / STATE_FILE
        self._fingerprint = fingerprint
        self._resumes = 0
        self._earlier_seconds = 0.0
        self._start = time.monotonic()

    def step(self, step: int) -> None:
        """Let controller, optimiser and average act on the gradients of one step."""
        usable = self.engine.unscale(self.optimizer)
        if self.controller is not None and usable and not self.controller.after_backward(step):
            self.engine.skip()
        else:
            if self.recipe.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
            self.engine.step(self.optimizer)
        if self.controller is not None:
            self.controller.after_step(step)
        if self.average is not None:
            self.average.update(step)

    def measured(self, epoch: int, losses: _Losses, task: Task, validation: Split) -> EpochRow:
        """Validate the network that would be returned now, note the epoch and return its row."""
        last = epoch == self.recipe.epochs
        self.engine.share_buffers()
        if self.average is not None:
            self.average.swap()
        if last:
            self.finish()
        loss = self.engine.mean(losses.mean)
        found = task.evaluate(self.model, validation, self.recipe.batch_size) if self.engine.is_main else None
        found = self.engine.same(found)
        if self.average is not None and not last:
            self.average.swap()
        lr = self.optimizer.param_groups[0]["lr"]
        self.rows.append(EpochRow(epoch, lr, loss, found["loss"], found[task.primary]))
        return self.rows[-1]

    def finish(self) -> None:
        """Tell the controller that the last step is done."""
        if self.controller is not None:
            self.controller.finish()

    def last_good(self) -> str:
        """Say where the state of the last epoch is."""
        if self._file is None or not self.rows:
            return "no earlier state was kept"
        return f"the state after epoch {self.rows[-1].epoch} is in {self._file.parent}"

    def save(self) -> None:
        """Replace the state on disk: network, optimiser, history.

        Not after the last epoch: the caller writes the result at once.
        """
        if self._file is None or self.rows[-1].epoch == self.recipe.epochs or not self.engine.is_main:
            return
        stored = {
            "fingerprint": self._fingerprint,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "engine": self.engine.state(),
            "resumes": self._resumes,
            "earlier_seconds": self._earlier_seconds,
            "seconds": self._earlier_seconds + time.monotonic() - self._start,
        }
        parts = {"model": self.model.state_dict(), "optimizer": {}}
        for index, slots in self.optimizer.state_dict()["state"].items():
            parts["optimizer"].update({f"{index}.{slot}": value for slot, value in slots.items() if value is not None})
        if self.average is not None:
            parts["average"] = self.average.values
        if self.controller is not None:
            parts["controller"] = self.controller.state()
        copies = {
            f"{part}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part, tensors in parts.items()
            for name, value in tensors.items()
        }
        atomic_write_bytes(self._file, save(copies, {"run": json.dumps(stored)}))

    def resume(self) -> None:
        """Continue where an earlier session of the same run stopped, if there was one."""
        if self.recipe.ema_decay is not None:
            self.average = _Average(self.model, self.recipe.ema_decay)
        stored = None if self._file is None else _read_metadata(self._file)
        if self._file is None or stored is None:
            return
        if stored["fingerprint"] != self._fingerprint:
            log.info("starting over: the state in %s belongs to another recipe", self._file.parent)
            self._file.unlink(missing_ok=True)
            return
        with safe_open(self._file, "pt") as stream:
            self._restore({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118 (no mapping)
        self.engine.restore(stored["engine"])
        self.rows = [EpochRow(**row) for row in stored["rows"]]
        self._resumes = stored["resumes"] + 1
        self._earlier_seconds = stored["seconds"]
        log.info("resuming after epoch %d of %d", self.rows[-1].epoch, self.recipe.epochs)
        self.save()

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "controller": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = value
        self.model.load_state_dict(parts["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if self.average is not None:
            self.average.restore(parts["average"])
        if self.controller is not None:
            self.controller.restore(parts["controller"])


def _epoch(
    run: _Run, reader: _Reader, task: Task, epoch: int, seed: int, extra_loss: ExtraLoss | None, bar: StepBar
) -> _Losses:
    recipe, engine, steps = run.recipe, run.engine, reader.steps
    losses = _Losses(engine.where)
    run.model.train()
    bar.epoch(epoch)
    for step, (inputs, targets) in enumerate(reader.epoch(seed, epoch)):
        done = (epoch - 1) * steps + step
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(done, steps, recipe)
        if run.controller is not None:
            run.controller.before_step(done)
        run.optimizer.zero_grad(set_to_none=True)
        for some, expected, share, last in engine.parts(inputs, targets):
            with engine.gathering(last):
                loss = _loss(engine, task, recipe, some, expected, extra_loss)
                _check(losses.add(step, loss, len(expected)), epoch, steps, run)
                engine.backward(loss if share == 1 else loss * share)
        run.step(done)
        bar.step(len(targets) * engine.processes, losses.newest)
    _check(losses.read(), epoch, steps, run)
    return losses


def _loss(
    engine: Engine, task: Task, recipe: TrainingOptions, inputs: Any, targets: Any, extra_loss: ExtraLoss | None
) -> Tensor:
    placed = engine.place(inputs)
    outputs = engine.forward(placed)
    loss = task.loss(outputs, engine.place(targets), label_smoothing=recipe.label_smoothing)
    return loss if extra_loss is None else loss + extra_loss(placed, outputs)


def _check(bad: tuple[int, float] | None, epoch: int, steps: int, run: _Run) -> None:
    if bad is not None:
        raise TrainingError(
            f"loss is {bad[1]} in epoch {epoch}, step {bad[0] + 1} of {steps}: lower the learning rate "
            f"({run.last_good()})"
        )


def _check_shares(recipe: TrainingOptions, engine: Engine) -> None:
    parts = recipe.accumulate * engine.processes
    if recipe.batch_size % parts:
        raise TrainingError(
            f"batch_size {recipe.batch_size} cannot be shared by {engine.processes} processes in {recipe.accumulate} "
            f"part(s) each: make it a multiple of {parts}"
        )


def _fingerprint(
    model: nn.Module, recipe: TrainingOptions, seed: int, guard: str, engine: Engine, controller: Controller | None
) -> str:
    shapes = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    method = None if controller is None else type(controller).__qualname__
    text = json.dumps([recipe.model_dump(), seed, guard, shapes, engine.processes, method], sort_keys=True)
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
