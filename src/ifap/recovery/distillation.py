"""Recovery after a pruning iteration: distil a teacher into the pruned network (Section "Recovery" of the paper).

The loss is the task's own plus the L1 distance between student and teacher features at the first,
middle and last activation, and optionally the KL distance between their outputs. A linear adapter,
thrown away afterwards, maps the features of a narrowed layer to the teacher's width.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ifap.arguments import (
    AMOUNT,
    BATCHES_ONCE,
    COUNT,
    FUNCTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SWITCH,
    checked,
    either,
    instance,
    one_of,
    optional,
)
from ifap.axes.state import kept_state
from ifap.choices import Precision
from ifap.data import Augment, Batches, Split, batches, logits, refuse_test
from ifap.errors import TrainingError
from ifap.forward import call, device_of, evaluation_mode, on_batch, scalar, to_device
from ifap.layers import is_activation
from ifap.recovery.train_step import Engine, explain_memory, open_engine, samples_in
from ifap.seeds import derive_seed, seeded

log = logging.getLogger(__name__)

Loss = Callable[[Any, Any], Tensor]
Losing = Callable[[nn.Module], AbstractContextManager[None]]
Event = tuple[str, int]
"""One call of one module: its name and which call of it this is."""

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross-entropy of class scores; also finds ``.logits`` in a structured output."""
    return F.cross_entropy(logits(outputs), targets)


def as_is(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context that changes nothing: an evaluated network returns what the loss needs."""
    return contextlib.nullcontext()


_DATA = either(instance("a Split", Split), BATCHES_ONCE)


class Distillation:
    """Train a pruned network for a few epochs against its targets and a teacher.

    Pass an instance to `ifap.prune` as ``recover``.

    Parameters
    ----------
    train : Split or iterable of (inputs, targets)
        What to learn from; an iterable such as a `DataLoader` must be iterable again and again.
    validation : Split or iterable of (inputs, targets)
        What learning rate, stopping and the best epoch are decided on.
    epochs : int, optional
        Most epochs a call.
    batch_size : int, optional
        Samples a batch of a `Split`.
    lr, weight_decay : float, optional
        AdamW's. The learning rate is halved after an epoch without a better validation loss.
    feature_weight : float, optional
        Weight of the L1 distance between features, a mean over the (up to three) places.
    logit_weight : float, optional
        Weight of the KL distance between the outputs.
    temperature : float, optional
        Softens both outputs before the KL distance.
    patience : int, optional
        Epochs without a better validation loss before stopping.
    loss : callable, optional
        ``loss(outputs, targets)`` of the task.
    augment : bool or callable, optional
        True for the training split's own augmentation, or ``augment(inputs, generator)``.
    seed : int, optional
        Source of order, augmentation, dropout and adapters, with the pruning step and the epoch.
    precision : {'fp32', 'bf16', 'fp16'}, optional
        Mixed precision of both networks; losses are computed in single precision.
    accumulate : int, optional
        Parts that a batch is split into to save memory.
    channels_last : bool, optional
        Channels last in memory.
    compile : bool, optional
        Compile both networks with `torch.compile`, anew in every call: worth it for long ones only.
    losing : callable, optional
        ``losing(model)`` is a context in which an evaluated network returns what `loss` needs.
    samples : int, optional
        Training samples of an epoch, rounded up to whole batches; all by default. Those of a `Split` are drawn anew
        for each epoch, an iterable's first batches are taken.

    Raises
    ------
    SplitError
        If either split is, or wraps, the test split.
    ConfigError
        If an argument has the wrong type or value, or `loss` returns no single number.
    TrainingError
        On a call: if the network or the loss fails on a batch, the loss is not finite, memory does not suffice, the
        teacher is the student itself, or several processes were started.

    Notes
    -----
    The loss is that of the section "Recovery" of the paper: the task's, plus `feature_weight` times the L1 distance
    between the features of student and teacher at the first, middle and last activation.

    Examples
    --------
    >>> recover = ifap.Distillation(train_batches, validation_batches, epochs=2)
    >>> pruned = ifap.prune(net, images[:1], batches, target=ifap.Target(macs=0.65), recover=recover)
    """

    @checked(
        train=_DATA, validation=_DATA, epochs=NOT_NEGATIVE, batch_size=COUNT, lr=POSITIVE, weight_decay=AMOUNT,
        feature_weight=AMOUNT, logit_weight=AMOUNT, temperature=POSITIVE, patience=COUNT, loss=FUNCTION,
        augment=optional(either(SWITCH, FUNCTION)), seed=SEED, precision=one_of(*get_args(Precision)),
        accumulate=COUNT, channels_last=SWITCH, compile=SWITCH, losing=FUNCTION, samples=optional(COUNT),
    )  # fmt: skip
    def __init__(
        self,
        train: Split | Batches,
        validation: Split | Batches,
        *,
        epochs: int = 1,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        feature_weight: float = 0.5,
        logit_weight: float = 0.0,
        temperature: float = 2.0,
        patience: int = 3,
        loss: Loss = cross_entropy,
        augment: bool | Augment | None = False,
        seed: int = 0,
        precision: Precision = "fp32",
        accumulate: int = 1,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 (the name of the option)
        losing: Losing = as_is,
        samples: int | None = None,
    ) -> None:
        for data, purpose in ((train, "distilling"), (validation, "stopping the distillation")):
            refuse_test(data, purpose)
            if isinstance(data, Iterator):
                raise TrainingError(
                    f"{purpose} needs data that can be iterated repeatedly, such as a list or a DataLoader"
                )
        self.train, self.validation = train, validation
        self.epochs, self.batch_size, self.patience = epochs, batch_size, patience
        self.lr, self.weight_decay = lr, weight_decay
        self.feature_weight, self.logit_weight, self.temperature = feature_weight, logit_weight, temperature
        self.loss, self.augment, self.seed, self.losing = loss, augment, seed, losing
        self.precision, self.accumulate = precision, accumulate
        self.channels_last, self.compile = channels_last, compile
        self.batches = None if samples is None else math.ceil(samples / batch_size)

    def __call__(self, model: nn.Module, teacher: nn.Module, step: int) -> None:
        """Train `model` in place.

        Parameters
        ----------
        model : Module
            The student; its train and eval modes are put back.
        teacher : Module
            What it learns from; neither its weights nor its modes change.
        step : int
            Number of the pruning iteration, part of every seed.
        """
        if teacher is model:
            raise TrainingError(
                "teacher and student are the same network: keep a copy from before pruning as the teacher"
            )
        if self.epochs == 0:
            return
        seed = derive_seed(self.seed, step, "recover")
        with evaluation_mode(model), evaluation_mode(teacher), seeded(seed, device_of(model)):
            self._distil(model, teacher, step)
        model.zero_grad(set_to_none=True)

    def _distil(self, model: nn.Module, teacher: nn.Module, step: int) -> None:
        pairs = self._feature_pairs(model, teacher)
        adapters = nn.ModuleList([pair.adapter for pair in pairs])
        trained = [p for p in (*model.parameters(), *adapters.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        engine = open_engine(
            model, self.precision, accumulate=self.accumulate, channels_last=self.channels_last, compile=self.compile
        )
        if engine.processes > 1:
            raise TrainingError("distillation runs in one process: leave out `accelerate launch` or `torchrun`")
        with contextlib.ExitStack() as stack:
            stack.enter_context(explain_memory(self.batch_size, self.accumulate))
            stack.enter_context(engine.ready(optimizer, teacher))
            lesson = _Lesson(
                engine,
                engine.compiled(teacher),
                pairs,
                stack.enter_context(capture(model, [pair.student for pair in pairs])),
                stack.enter_context(capture(teacher, [pair.teacher for pair in pairs])),
            )
            self._epochs(model, lesson, optimizer, step)

    def _epochs(self, model: nn.Module, lesson: _Lesson, optimizer: torch.optim.Optimizer, step: int) -> None:
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        best_loss, best_weights, waited = math.inf, None, 0
        for epoch in range(1, self.epochs + 1):
            self._epoch(model, lesson, optimizer, step, epoch)
            if self.epochs == 1:
                return
            loss = self._validation_loss(model)
            plateau.step(loss)
            if loss < best_loss:
                best_loss, best_weights, waited = loss, copy.deepcopy(model.state_dict()), 0
            else:
                waited += 1
            if waited == self.patience:
                log.info("step %d: distillation stopped after epoch %d", step, epoch)
                break
        if best_weights is not None:
            model.load_state_dict(best_weights)

    def _epoch(
        self, model: nn.Module, lesson: _Lesson, optimizer: torch.optim.Optimizer, step: int, epoch: int
    ) -> None:
        engine = lesson.engine
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, epoch))
        model.train()
        reading = batches(self.train, self.batch_size, generator, augment=self.augment)
        for number, (inputs, targets) in enumerate(itertools.islice(reading, self.batches), 1):
            optimizer.zero_grad(set_to_none=True)
            for some, expected, share, _ in engine.parts(inputs, targets):
                with on_batch(number, "training", TrainingError):
                    loss = scalar(self._batch_loss(lesson, engine.place(some), engine.place(expected)))
                if not math.isfinite(loss.item()):
                    raise TrainingError(
                        f"distillation loss is {loss.item()} in pruning step {step}, epoch {epoch}, batch {number}: "
                        "lower the learning rate"
                    )
                engine.backward(loss if share == 1 else loss * share)
            engine.unscale(optimizer)
            engine.step(optimizer)
        model.eval()

    def _batch_loss(self, lesson: _Lesson, inputs: Any, targets: Any) -> Tensor:
        outputs = lesson.engine.forward(inputs)
        loss = self.loss(outputs, targets)
        if not lesson.pairs and not self.logit_weight:
            return loss
        with torch.no_grad():
            expected = lesson.engine.run(lesson.teacher, inputs)
        if lesson.pairs:
            # What is captured has the precision of the forward; the distance has single precision.
            distances = [
                F.l1_loss(pair.adapter(lesson.student[pair.student].float()), lesson.wanted[pair.teacher].float())
                for pair in lesson.pairs
            ]
            loss = loss + self.feature_weight * torch.stack(distances).mean()
        if self.logit_weight:
            loss = loss + self.logit_weight * _soft_distance(logits(outputs), logits(expected), self.temperature)
        return loss

    def _feature_pairs(self, model: nn.Module, teacher: nn.Module) -> list[_Pair]:
        """Find where to compare features, on the first batch, in evaluation mode."""
        if not self.feature_weight:
            return []
        first = next(iter(batches(self.train, self.batch_size)), None)
        if first is None:
            raise TrainingError("distilling needs at least one batch of training data")
        inputs = to_device(first[0], device_of(model))
        with on_batch(1, "training", TrainingError):
            shapes, wanted = (feature_shapes(network, inputs) for network in (model, teacher))
        shared = [event for event in shapes if event in wanted]
        mine, theirs = (shared, shared) if shared else (list(shapes), list(wanted))
        chosen = zip(_three(mine), _three(theirs), strict=False)
        return [
            _Pair(student, counterpart, _adapter(shapes[student], wanted[counterpart], student[0]).to(device_of(model)))
            for student, counterpart in chosen
        ]

    def _validation_loss(self, model: nn.Module) -> float:
        total, count, where = 0.0, 0, device_of(model)
        with torch.no_grad(), kept_state(model), self.losing(model):
            for number, (inputs, targets) in enumerate(batches(self.validation, self.batch_size), start=1):
                with on_batch(number, "validation", TrainingError):
                    found = call(model, to_device(inputs, where))
                    value = scalar(self.loss(found, to_device(targets, where)))
                samples = samples_in(targets)
                total += value.item() * samples
                count += samples
        if not count:
            raise TrainingError("stopping the distillation needs at least one batch of validation data")
        return total / count


def feature_shapes(model: nn.Module, inputs: Any) -> dict[Event, torch.Size]:
    """Return the output shape of every activation call, in the order of execution.

    A network without activation modules gives its convolutions and linear layers instead.
    """
    for wanted in (is_activation, lambda module: isinstance(module, _WEIGHTED)):
        names = [name for name, module in model.named_modules() if wanted(module)]
        with torch.no_grad(), kept_state(model), _recorded(model, names, lambda value: value.shape) as shapes:
            call(model, inputs)
        if shapes:
            return shapes
    return {}


def capture(model: nn.Module, events: list[Event]) -> contextlib.AbstractContextManager[dict[Event, Tensor]]:
    """Record the outputs of some module calls inside the block; the hooks are removed at its end."""
    # A copy: MobileNetV3 drops out its last activation in place.
    return _recorded(model, sorted({name for name, _ in events}), lambda value: value.clone())


class Adapter(nn.Module):
    """A linear map along one axis: a 1x1 convolution for channels, a linear layer for token features.

    `axis` changes from `width` to `wanted`.
    """

    def __init__(self, axis: int, width: int, wanted: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(width, wanted, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of any rank."""
        mapped: Tensor = self.linear(features.movedim(self.axis, -1)).movedim(-1, self.axis)
        return mapped


@dataclass(frozen=True)
class _Pair:
    """Two places whose features are compared, and the map from the student's width to the teacher's."""

    student: Event
    teacher: Event
    adapter: nn.Module


@dataclass(frozen=True)
class _Lesson:
    """What the batches of one call share; `student` and `wanted` are the features of the newest forward."""

    engine: Engine
    teacher: Callable[..., Any]
    pairs: list[_Pair]
    student: dict[Event, Tensor]
    wanted: dict[Event, Tensor]


def _adapter(shape: torch.Size, wanted: torch.Size, name: str) -> nn.Module:
    if shape == wanted:
        return nn.Identity()
    axes = [axis for axis, (a, b) in enumerate(zip(shape, wanted, strict=False)) if a != b]
    if len(shape) != len(wanted) or len(axes) != 1 or axes[0] == 0:
        raise TrainingError(
            f"features of '{name}' have shape {tuple(shape)}, the teacher's {tuple(wanted)}: only one axis "
            "may differ; set feature_weight to 0 to distil without features"
        )
    return Adapter(axes[0], shape[axes[0]], wanted[axes[0]])


def _three(events: list[Event]) -> list[Event]:
    """Return the first, the middle and the last; fewer if there are fewer."""
    return list(dict.fromkeys(events[i] for i in (0, len(events) // 2, -1))) if events else []


@contextlib.contextmanager
def _recorded(model: nn.Module, names: list[str], keep: Callable[[Tensor], Any]) -> Iterator[dict[Event, Any]]:
    """Record a function of every output of the named modules in the newest forward.

    The hooks live inside the block only; a network that is compiled inside it has them compiled in.
    """
    record: dict[Event, Any] = {}
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                record[name, calls.get(name, 0)] = keep(output)
            calls[name] = calls.get(name, 0) + 1

        return note

    def restart(module: nn.Module, inputs: Any) -> None:
        record.clear()
        calls.clear()

    with contextlib.ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(restart).remove)
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(hook(name))
            hooks.callback(handle.remove)
        yield record


def _soft_distance(outputs: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Return the KL distance of softened class probabilities, scaled to keep gradients comparable."""
    student = F.log_softmax(outputs / temperature, dim=-1).flatten(0, -2)
    teacher = F.log_softmax(expected / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
