"""Compute training steps: precision, parts of a batch, memory format, compilation, processes.

The plain engine does nothing but call the network, so that a recipe without any of these options
gives the same bytes as a loop written by hand. Accumulation needs no help: the gradients of the
parts of a batch add up, each weighted by its share of the samples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ifap.choices import Precision
from ifap.errors import TrainingError
from ifap.forward import call, device_of, map_tensors, tensors, to_device
from ifap.trouble import is_out_of_memory

_FOUR_AXES = 4


class Engine:
    """Steps in single precision, in this one process.

    A batch is split into `accumulate` parts. With `channels_last` weights and images have channels last in memory.
    """

    rank = 0
    processes = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        accumulate: int = 1,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 (the name of the option)
    ) -> None:
        self.model = model
        self.where = device_of(model)
        self.accumulate = accumulate
        self._channels_last = channels_last
        self._compile = compile
        self._runner: Callable[..., Any] = model

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @contextlib.contextmanager
    def ready(self, optimizer: torch.optim.Optimizer, *others: nn.Module) -> Iterator[None]:
        """Make the network ready for steps; afterwards it lies in memory as is usual.

        `others` are networks that are only run, such as a teacher; they get the same memory format.
        """
        networks = (self.model, *others)
        if self._channels_last:
            for network in networks:
                network.to(memory_format=torch.channels_last)
        try:
            self._runner = self.compiled(self._wrap(optimizer))
            yield
        finally:
            self._runner = self.model
            if self._channels_last:
                for network in networks:
                    network.to(memory_format=torch.contiguous_format)

    def _wrap(self, optimizer: torch.optim.Optimizer) -> nn.Module:
        return self.model

    def compiled(self, network: nn.Module) -> Callable[..., Any]:
        """Return the network as it is to be called: compiled if that is wanted."""
        return torch.compile(network) if self._compile else network

    def place(self, tree: Any) -> Any:
        """Move a batch to the network's device, in its memory format."""
        placed = to_device(tree, self.where)
        return map_tensors(placed, _channels_last) if self._channels_last else placed

    def forward(self, inputs: Any) -> Any:
        """Run the network; what comes back is in single precision."""
        return call(self._runner, inputs)

    def run(self, network: Callable[..., Any], inputs: Any) -> Any:
        """Run another network, such as a teacher, the way `forward` runs the trained one."""
        return call(network, inputs)

    def parts(self, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any, float, bool]]:
        """Split a batch for accumulation; yields inputs, targets, share of the samples, and whether it is the last."""
        samples = samples_in(targets)
        # A part of one sample would break batch norm, so a small last batch is split into fewer parts.
        count = min(self.accumulate, max(1, samples // 2))
        if count == 1:
            yield inputs, targets, 1.0, True
            return
        for number, rows in enumerate(torch.arange(samples).tensor_split(count), 1):
            first, end = int(rows[0]), int(rows[-1]) + 1
            cut = slice(first, end)
            yield _part(inputs, cut), _part(targets, cut), (end - first) / samples, number == count

    def gathering(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold the exchange of gradients between processes back until the last part of a batch."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the present gradients."""
        loss.backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Make the gradients those of the loss itself; False if half precision overflowed, so that `step` will skip."""
        return True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, or skip where half precision overflowed."""
        optimizer.step()

    def skip(self) -> None:
        """Do not step, although the gradients are there."""

    def mean(self, value: float) -> float:
        """Return the mean over the processes."""
        return value

    def same(self, value: Any) -> Any:
        """Return the value of the main process."""
        return value

    def share_buffers(self) -> None:
        """Give every process the buffers of the main one, such as batch statistics."""

    def state(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Restore a state that `state` returned."""


class Accelerated(Engine):
    """Mixed precision, or several processes that were started by ``accelerate launch`` or ``torchrun``.

    `precision` is that of forward and backward; weights stay in single precision. Raises a TrainingError if half
    precision is asked for without a GPU.
    """

    def __init__(self, model: nn.Module, precision: Precision, **options: Any) -> None:
        super().__init__(model, **options)
        if precision == "fp16" and self.where.type == "cpu":
            raise TrainingError("precision fp16 needs a GPU: set precision to bf16 or fp32")
        # Here and not above: a plain run, and the library without the workflow's packages, must not
        # need it, and a job of seconds need not wait the quarter second that its import takes.
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # The precision is kept for the whole process; the next run may have another one.
        AcceleratorState._reset_state()
        self._precision = precision
        self._accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=self.where.type == "cpu",
            device_placement=False,
        )
        self.rank, self.processes = self._accelerator.process_index, self._accelerator.num_processes
        self._stepper: Any = None

    def forward(self, inputs: Any) -> Any:
        """Run the network under autocast."""
        return self.run(self._runner, inputs)

    def run(self, network: Callable[..., Any], inputs: Any) -> Any:
        """Run a network under autocast."""
        from accelerate.utils import convert_to_fp32

        with self._accelerator.autocast():
            outputs = call(network, inputs)
        return outputs if self._precision == "fp32" else convert_to_fp32(outputs)

    def gathering(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Hold the exchange of gradients back until the last part of a batch."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self._runner)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled in half precision."""
        self._accelerator.backward(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Undo the scaling of half precision."""
        if self._accelerator.scaler is None:
            return True
        self._accelerator.unscale_gradients(self._stepper)
        norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return bool(torch.stack(norms).isfinite().all())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step through the scaler of half precision."""
        self._stepper.step()

    def skip(self) -> None:
        """Do not step; the scaler must know."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()

    def mean(self, value: float) -> float:
        """Return the mean over the processes."""
        if self.processes == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.where)
        return float(self._accelerator.reduce(total, reduction="mean"))

    def same(self, value: Any) -> Any:
        """Return the value of the main process."""
        from accelerate.utils import broadcast_object_list

        if self.processes == 1:
            return value
        held = [value]
        broadcast_object_list(held)
        return held[0]

    def share_buffers(self) -> None:
        """Give every process the buffers of the main one."""
        if self.processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def state(self) -> dict[str, float]:
        """Return the state of the scaler."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def restore(self, state: dict[str, float]) -> None:
        """Take up the state of the scaler."""
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)

    def _wrap(self, optimizer: torch.optim.Optimizer) -> nn.Module:
        self._stepper = self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        if self.processes == 1:
            return self.model
        # Not prepared by the accelerator, which would replace the caller's forward.
        own = [self.where] if self.where.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.model, device_ids=own)


def open_engine(model: nn.Module, precision: Precision, **options: Any) -> Engine:
    """Return an `Engine` if that is enough, else `Accelerated`, which describes the parameters."""
    if precision == "fp32" and processes() == 1:
        return Engine(model, **options)
    return Accelerated(model, precision, **options)


@contextlib.contextmanager
def explain_memory(batch_size: int, accumulate: int) -> Iterator[None]:
    """Turn running out of memory inside the block into an error that says what to set.

    The TrainingError names the batch size, and the next `accumulate` that divides it.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        parts = next((n for n in range(accumulate + 1, batch_size + 1) if batch_size % n == 0), None)
        more = "" if parts is None else f"set accumulate to {parts}, which keeps the recipe, or "
        raise TrainingError(
            f"out of memory with batch_size {batch_size} in parts of {batch_size // accumulate}: {more}lower batch_size"
        ) from error


def samples_in(targets: Any) -> int:
    """Return how many samples the targets of a batch are for; a list of mappings has one item a sample."""
    is_list = isinstance(targets, (list, tuple)) and bool(targets) and isinstance(targets[0], Mapping)
    inside = targets.values() if isinstance(targets, Mapping) else [targets]
    first = None if is_list else next((tensor for each in inside for tensor in tensors(each)), None)
    return len(targets) if first is None else len(first)


def _part(tree: Any, rows: slice) -> Any:
    """Cut some samples out of a batch; a list of mappings has one item a sample, such as its boxes."""
    if isinstance(tree, Tensor):
        return tree[rows]
    if isinstance(tree, Mapping):
        return {name: _part(value, rows) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        each = bool(tree) and isinstance(tree[0], Mapping)
        return tree[rows] if each else [_part(item, rows) for item in tree]
    return map_tensors(tree, lambda tensor: tensor[rows])


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == _FOUR_AXES else tensor


def processes() -> int:
    """Return how many processes train one network together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE") or "1")
