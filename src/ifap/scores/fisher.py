"""How much a network's output depends on each unit, without labels.

A unit c sends the signal x_c to the layers that read it. If its mean m_c took its place, the output would change, to
first order, by ``a_c = sum over positions of u_c (x_c - m_c)`` in a direction whose gradient with respect to what a
reader reads is u. The score of the unit is the mean of ``a_c^2 / 2`` over samples and `directions`,
added up over its readers: the KL divergence to the whole network that removing the unit is expected to cost, to second
order. Where compensation is to follow, ``x_c - m_c`` is replaced by what the other inputs of the reader cannot say of
it (`residuals`) if that makes the score smaller: chance correlations of few samples may make it larger. The others are
those that go later.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Floats, Graph, Indices
from ifap.data import refuse_test
from ifap.errors import ScoreError, first_line
from ifap.forward import (
    Inputs,
    dense_outputs,
    device_of,
    placed,
    reading,
    refuse_empty,
    run_batch,
    scalar,
    task_tensors,
)
from ifap.scores.directions import class_axis, direction
from ifap.scores.flow import NO_DATA
from ifap.scores.matrices import Contraction, contractions, matrices
from ifap.scores.moments import Halves, input_means
from ifap.scores.reading import Reader, looking, readers, rows_of
from ifap.scores.residuals import Residuals, fits_into_memory
from ifap.scores.weights import rows_along
from ifap.trouble import is_resource_error

_NO_VALUES = "the outputs hold no values on the calibration data, as where nothing is detected"
_MEAN_STRIDE = 4  # means need no more than every fourth batch


def unit_fisher(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Inputs],
    *,
    seed: int = 0,
    centred: bool = True,
    outputs: Iterable[str] | None = None,
    loss: Callable[[Any, Inputs], Tensor] | None = None,
    moments: dict[str, Halves] | None = None,
) -> Floats:
    """Return the damage that removing each unit alone is expected to do.

    The damage has the shape (units,) and is in nats a sample. It is NaN where nothing that was seen reads the unit.

    Raises a NoGradientError if no output depends by a gradient on a unit, a ScoreError if there is no batch or a signal
    is not finite, and a SplitError if the data are a test split.

    Parameters
    ----------
    model : nn.Module
        The network that `graph` describes; it is run in evaluation mode. Its weights get no gradients.
    graph : Graph
        Its units.
    batches : iterable
        Calibration inputs without labels; iterated twice, and once more where weights read units in products that no
        rule looks at.
    seed : int
        Of the directions that are drawn.
    centred : bool
        Whether compensation is to follow: then the mean of a unit takes its place, else zero does.
    outputs : iterable of str, optional
        Which of the named outputs count; all by default.
    loss : callable, optional
        ``loss(outputs, inputs)`` returns a scalar whose gradient is the direction; by default directions are drawn, see
        `ifap.scores.directions`.
    moments : dict, optional
        Is given the second moments that were measured, so that compensation need not measure them again.
    """
    refuse_test(batches, "scoring")
    found = matrices(model, graph, batches)
    read_by = readers(model, graph, found.by_name)
    read_by = {name: each for name, each in read_by.items() if each.reads_any}
    forwards = partial(_forwards, model, batches, seed, outputs, loss, [])
    stopped = None
    try:
        scores = _by_inputs(model, batches, forwards, read_by, graph.num_units, centred=centred, moments=moments)
    except NoGradientError as error:
        scores, stopped = np.full(graph.num_units, np.nan), error
    weights = _weights_that_read(model, graph, np.flatnonzero(np.isnan(scores)), found.others)
    try:
        scores = _by_weights(model, scores, weights, forwards) if weights else scores
    except NoGradientError as error:
        stopped = stopped or error
    if stopped is not None and np.isnan(scores).all():
        raise stopped
    return scores


def _by_inputs(
    model: nn.Module,
    batches: Iterable[Inputs],
    forwards: _Forwards,
    read_by: dict[str, Reader],
    number: int,
    *,
    centred: bool,
    moments: dict[str, Halves] | None,
) -> Floats:
    """Return the scores of the units that layers, or matrices beside them, were seen to read; NaN for all others."""
    refitted = {name: each for name, each in read_by.items() if each.can_change} if centred else {}
    layers = {name: each.layer for name, each in refitted.items()}
    residuals = Residuals(model, batches, refitted) if refitted and fits_into_memory(layers) else None
    if residuals is not None:
        means = residuals.means
        if moments is not None:
            moments.update(residuals.moments)
    else:
        means = input_means(model, itertools.islice(batches, 0, None, _MEAN_STRIDE), layers) if refitted else {}
    for keeps_copies in (False, True):
        signals = _Signals(number, read_by, means, residuals, keeps_copies=keeps_copies)
        try:
            with _asking(model, []), looking(model, signals.layers, signals.look):
                for each in forwards():
                    signals.backward(each)
            break
        except _OverwrittenError:  # copies of all that is read take memory: only where views are not enough
            continue
    return signals.scores()


def _weights_that_read(model: nn.Module, graph: Graph, unknown: Indices, others: set[str]) -> list[Contraction]:
    """Return the weights to score by: those of `others` for all units, and any for units without a score."""
    found = []
    for each in contractions(model, graph):
        is_wanted = each.name in others or np.isin(each.units, unknown)
        units = np.where(is_wanted, each.units, -1)
        if (units >= 0).any():
            found.append(each._replace(units=units))
    return found


def _by_weights(model: nn.Module, scores: Floats, weights: list[Contraction], forwards: _Forwards) -> Floats:
    """Add to the scores of units, or fill in missing ones, by the gradients of the weights that read them.

    What a unit sends is the sum of weight times gradient over the weights that read it. Directions of different samples
    are independent, so the square of the sum over a batch estimates the sum of the squares of its samples.
    """
    squares, samples, known = np.zeros_like(scores), 0, np.zeros(len(scores), dtype=bool)
    with _asking(model, [each.tensor for each in weights]):
        for each in forwards():
            samples += each.samples
            gradients = _go_back(each, [each.tensor for each in weights])
            for (_, weight, dim, units), gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                rows = rows_along(weight.detach() * gradient, dim)
                sent = rows.sum(dim=1).double().cpu().numpy()
                by_unit = np.zeros_like(scores)
                np.add.at(by_unit, units[units >= 0], sent[units >= 0])
                squares += by_unit**2
                known[units[units >= 0]] = True
    if not samples:
        raise NoGradientError(_NO_VALUES)
    return np.where(known, np.nan_to_num(scores) + squares / (2 * samples), scores)


# --- forwards and backwards -----------------------------------------------------------------------


class _Forward(NamedTuple):
    """The outputs of one batch, the tensors that a gradient starts from, and its directions there."""

    outputs: list[Tensor]
    starts: list[Tensor]
    directions: list[Tensor] | None

    @property
    def samples(self) -> int:
        """Samples of the batch: of a detector, the boxes of the first image that has any, or none."""
        return next((len(output) if output.dim() else 1 for output in self.outputs if output.numel()), 0)


_Forwards = Callable[[], Iterator[_Forward]]


def _forwards(
    model: nn.Module,
    batches: Iterable[Inputs],
    seed: int,
    names: Iterable[str] | None,
    loss: Callable[[Any, Inputs], Tensor] | None,
    axes: list[int | None],
) -> Iterator[_Forward]:
    """Run the batches, and draw a direction of the outputs of each; `axes` remembers which of these are logits."""
    refuse_empty(model)
    where, generator = device_of(model), torch.Generator(device_of(model)).manual_seed(seed)
    with dense_outputs(model), reading(model) as state, torch.enable_grad():
        for number, batch in enumerate(batches, start=1):
            state.restore()  # no gradient goes back into another batch
            inputs = placed(batch, where, number)
            found = _found(model, inputs, number)
            outputs = _learning(model, found, names)
            if loss is not None:
                yield _Forward(outputs, [scalar(loss(found, inputs))], None)
                continue
            if len(axes) != len(outputs):  # what asks for a gradient decides what can be seen of the last product
                axes[:] = map(class_axis, outputs)
            drawn = [direction(output, axis, generator) for output, axis in zip(outputs, axes, strict=True)]
            yield _Forward(outputs, outputs, drawn)


def _found(model: nn.Module, inputs: Inputs, number: int) -> Any:
    """Run a batch of which gradients are wanted."""
    try:
        return run_batch(model, inputs, number)
    except ScoreError as error:
        if isinstance(error.__cause__, NotImplementedError):  # of a kernel that has no backward here
            raise NoGradientError(first_line(error.__cause__)) from error
        raise


def _go_back(forward: _Forward, weights: list[nn.Parameter] | None = None) -> tuple[Tensor | None, ...]:
    """Send a direction back from the outputs; return the gradients of weights, if any are given."""
    try:
        if weights is not None:
            return torch.autograd.grad(forward.starts, weights, forward.directions, allow_unused=True)
        torch.autograd.backward(forward.starts, forward.directions)
    except RuntimeError as error:  # in training it would fail just so, as where a network overwrites what it needs
        if is_resource_error(error):
            raise
        raise NoGradientError(f"the network cannot go backward ({first_line(error)})") from error
    return ()


def _learning(model: nn.Module, found: Any, names: Iterable[str] | None) -> list[Tensor]:
    """Return the outputs that a gradient can start from."""
    outputs = [
        tensor for tensor in task_tensors(model, found, None if names is None else tuple(names)) if tensor.requires_grad
    ]
    if not outputs:
        raise NoGradientError("no output of the network depends by a gradient on a layer that could be pruned")
    return outputs


@contextmanager
def _asking(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Require gradients of these weights, and of no others, inside the block."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    asking = {id(weight) for weight in weights}
    for weight in before:
        weight.requires_grad_(id(weight) in asking)
    try:
        yield
    finally:
        for weight, asked in before.items():
            weight.requires_grad_(asked)


class NoGradientError(ScoreError):
    """No gradient arrives at any unit."""


class _OverwrittenError(Exception):
    """The network has overwritten, in place, what a layer had read."""


class _Signals:
    """Sums of squares of the signal of each unit: its activation times the gradient that its readers send back."""

    def __init__(
        self,
        number: int,
        read_by: dict[str, Reader],
        means: dict[str, Tensor],
        residuals: Residuals | None,
        *,
        keeps_copies: bool,
    ) -> None:
        self.layers = {name: each.layer for name, each in read_by.items()}
        self._means, self._residuals = means, residuals
        self._columns = {name: _Columns(torch.from_numpy(each.units)) for name, each in read_by.items()}
        self._squares = torch.zeros(number, dtype=torch.float64)
        self._left = {name: torch.zeros(len(each.units), dtype=torch.float64) for name, each in self._columns.items()}
        self._seen = torch.zeros(number, dtype=torch.bool)
        self._batches, self._samples, self._keeps_copies, self._is_receiving = 0, 0, keeps_copies, False
        self._rows: set[int] | None = None  # numbers of rows of the outputs, while their direction goes back

    def look(self, name: str, x: Tensor) -> Tensor:
        """Let the layer read a view of its own, so that the gradient which arrives there is of this layer alone."""
        if torch.is_inference_mode_enabled():  # the network lets no gradient through here
            return x
        own = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        seen = x.detach().clone() if self._keeps_copies else x.detach()
        own.register_hook(partial(self._receive, name, seen, seen._version))
        return own

    def backward(self, forward: _Forward) -> None:
        """Send a direction back through the network and add up what arrives."""
        self._batch = max(1, forward.samples)
        shapes = [output.shape for output in forward.outputs if output.dim() > 1]
        self._rows = {shape.numel() // max(1, width) for shape in shapes for width in (shape[1], shape[-1])}
        try:
            _go_back(forward)
        except NoGradientError as error:
            if self._is_receiving and error.__cause__ is not None:  # not the network's fault
                raise error.__cause__ from None
            raise
        finally:
            self._rows = None
        self._samples += forward.samples
        self._batches += 1

    def _receive(self, name: str, x: Tensor, version: int, gradient: Tensor | None) -> None:
        # A layer behind it lets no gradient through, such as one that rounds; or the forward asks for one by itself.
        if gradient is None or self._rows is None:
            return
        if x._version != version and not self._keeps_copies:
            raise _OverwrittenError(name)
        self._is_receiving = True
        columns, layer = self._columns[name], self.layers[name]
        read, back = (self._by_sample(rows_of(layer, tensor)) for tensor in (x, gradient))
        signals = (read * back).sum(dim=1)
        if name in self._means:
            signals -= self._means[name] * back.sum(dim=1)
        self._squares[columns.units] += columns.by_unit(signals).square().sum(dim=0).double().cpu()
        if self._residuals is not None:
            left = (self._residuals.of(name, read, self._batches) * back).sum(dim=1) if name in self._means else signals
            self._left[name] += columns.by_unit(left).square().sum(dim=0).double().cpu()
        self._seen[columns.units] = True
        self._is_receiving = False

    def _by_sample(self, rows: Tensor) -> Tensor:
        """Return rows as (samples, positions of each, channels).

        The direction is drawn for each row of the output. Where each position has a row of its own, nearly all that
        comes back to a position comes from there: every position is a sample. Else all positions of a sample speak of
        the same rows, and their signals are added up before they are squared.
        """
        is_alone = len(rows) in (self._rows or ()) or len(rows) % self._batch
        return rows.unsqueeze(1) if is_alone else rows.unflatten(0, (self._batch, -1))

    def scores(self) -> Floats:
        """Return half the mean square of the signal of each unit; NaN where none was seen."""
        if not self._batches:
            raise ScoreError(NO_DATA)
        if not self._samples:
            raise NoGradientError(_NO_VALUES)
        squares = self._squares if self._residuals is None else self._with_residuals(self._residuals)
        if not self._seen.any():
            raise NoGradientError(
                "no gradient of the outputs arrives at a layer that could be pruned (quantised layers and no_grad stop "
                "them)"
            )
        scores = np.where(self._seen.numpy(), squares.numpy() / (2 * self._samples), np.nan)
        for name, columns in self._columns.items():
            if np.isinf(scores[columns.units]).any() or (torch.isnan(self._squares[columns.units])).any():
                raise ScoreError(f"layer '{name}': its gradients are not finite on the calibration data")
        return scores

    def _with_residuals(self, residuals: Residuals) -> Tensor:
        """Return the smaller sum of squares of each unit: of its whole signal, or of the signal of its residual."""

        def smaller(grown: dict[str, Tensor]) -> Tensor:
            left = torch.zeros_like(self._squares)
            for name, each in self._left.items():
                left[self._columns[name].units] += each * grown.get(name, 1)
            return torch.minimum(self._squares, left)

        alone = smaller({})
        return smaller({name: self._columns[name].mean(residuals.growth(name, alone)) for name in residuals.moments})


class _Columns:
    """The units of the input channels of a layer."""

    def __init__(self, units: Tensor) -> None:
        self._free = units >= 0
        self.units, self._index = units[self._free].unique(return_inverse=True)
        self._is_plain = bool(self._free.all()) and torch.equal(self._index, torch.arange(len(units)))

    def by_unit(self, rows: Tensor) -> Tensor:
        """Add the columns of each unit up: shape (samples, units)."""
        if self._is_plain:
            return rows
        free, index = self._free.to(rows.device), self._index.to(rows.device)
        return rows.new_zeros(len(rows), len(self.units)).index_add_(1, index, rows[:, free])

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the columns of each unit: shape (units,)."""
        return self.by_unit(values[None])[0] / torch.bincount(self._index, minlength=len(self.units))
