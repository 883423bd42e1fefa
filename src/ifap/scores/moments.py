"""Means and centred second moments of what layers read, in two halves of the calibration samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifap.data import refuse_test
from ifap.errors import ScoreError
from ifap.forward import Inputs, evaluation_mode
from ifap.layers import sides
from ifap.scores.flow import forwards
from ifap.scores.reading import Look, looking, rows_of

TURNS = 4  # batches from which on each goes to one half as a whole: of two, the last may be a small rest
POSITIONS = 400  # of a sample, drawn at random where it has more
MOST_BYTES = 2**31  # of the second moments that are held at a time
WIDEST = math.isqrt(MOST_BYTES // 8)  # channels: those of a layer whose moments take all of it


def input_means(model: nn.Module, batches: Iterable[Inputs], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the mean over samples and positions of each input channel of layers: shape (inputs,), float32."""
    found = averages(model, batches, layers, lambda rows: rows.sum(dim=0, dtype=torch.float64))
    for name, mean in found.items():
        if not torch.isfinite(mean).all():
            raise ScoreError(f"layer '{name}': its inputs are not finite on the calibration data")
    return {name: mean.float() for name, mean in found.items()}


def averages(
    model: nn.Module, batches: Iterable[Inputs], layers: Mapping[str, Any], total: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return for each layer the mean of a function of its input over samples and positions.

    `layers` holds layers, or matrices that are used like one; those that did not run are left out of the result.
    `total` takes rows of shape (positions, inputs), see `reading.rows_of`, and returns the sum over them in float64.
    """
    sums: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        rows = rows_of(layers[name], x)
        sums[name] = sums[name] + total(rows) if name in sums else total(rows)
        numbers[name] = numbers.get(name, 0) + len(rows)

    observe(model, batches, layers, add)
    return {name: found / numbers[name] for name, found in sums.items()}


def observe(
    model: nn.Module,
    batches: Iterable[Inputs],
    layers: Mapping[str, Any],
    look: Look,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Show `look` what layers read of calibration batches, in evaluation mode, and call `after` after each batch.

    See `ifap.scores.reading.looking`.
    """
    with evaluation_mode(model), torch.no_grad(), looking(model, layers, look):
        for _ in forwards(model, batches):
            after()


@dataclass
class Moments:
    """Number of rows, mean (inputs,) and centred second moment (inputs, inputs) of what a layer reads."""

    number: int
    mean: Tensor
    covariance: Tensor

    def of(self, part: slice) -> Moments:
        """Return the moments of a part of the inputs."""
        return Moments(self.number, self.mean[part], self.covariance[part, part])

    def joined(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows together (Chan et al. 1983)."""
        number = self.number + other.number
        share = other.number / max(number, 1)
        shift = other.mean - self.mean
        covariance = torch.lerp(self.covariance, other.covariance, share)
        covariance.addr_(shift, shift, alpha=share * (1 - share))
        return Moments(number, self.mean + share * shift, covariance)


class _Sums:
    """Running sums of rows around a point near their mean, so that little is lost in single precision."""

    def __init__(self, centre: Tensor) -> None:
        width = len(centre)
        self.centre, self.number = centre, 0
        self.first = centre.new_zeros(width, dtype=torch.float64)
        self.second = centre.new_zeros(width, width)

    def add(self, rows: Tensor) -> None:
        rows = rows - self.centre
        self.number += len(rows)
        self.first += rows.sum(dim=0, dtype=torch.float64)
        self.second.addmm_(rows.t(), rows)

    def moments(self) -> Moments:
        number = max(self.number, 1)
        shift = (self.first / number).to(self.centre.dtype)
        covariance = self.second / number
        covariance.addr_(shift, shift, alpha=-1)
        return Moments(self.number, self.centre + shift, covariance)


Halves = tuple[Moments, Moments]


class Halving:
    """Divides calibration samples into two halves: batches go to them in turn.

    Samples that are nearly the same, such as crops of one photograph, belong into one batch: in different halves they
    would tell of each other. Of fewer than `TURNS` batches, each is divided in its middle. The first batches are read
    to count them.
    """

    def __init__(self, batches: Iterable[Inputs]) -> None:
        refuse_test(batches, "scoring")
        self._take_turns = len(list(itertools.islice(batches, TURNS))) == TURNS

    def parts(self, number: int, rows: Tensor) -> list[tuple[int, Tensor]]:
        """Return which half, 0 or 1, gets which rows of a batch."""
        if self._take_turns:
            return [(number % 2, rows)]
        middle = len(rows) // 2
        return [(0, rows[:middle]), (1, rows[middle:])]


def halves(
    model: nn.Module,
    batches: Iterable[Inputs],
    layers: Mapping[str, Any],
    known: Mapping[str, Halves] | None = None,
    halving: Halving | None = None,
) -> Iterator[tuple[str, Halves]]:
    """Yield for each layer the moments of what it reads in each half of the samples; see `Halving`.

    The moments are in float32. `layers` holds layers, or matrices that are used like one; those that did not run are
    left out. `batches` are iterated once for all layers whose moments fit into `MOST_BYTES`, and again for the next
    ones. `known` holds moments of the same network that were measured before; if it has all layers, nothing is run.
    `halving` is that of `batches`, if there is one already.

    Raises a ScoreError if there is no batch, if the network does not take one, or if an input is not finite; it names
    the layer. Raises a SplitError if `batches` is a test split.
    """
    known = known or {}
    yield from ((name, known[name]) for name in layers if name in known)
    for part in _parts(widths_read({name: layer for name, layer in layers.items() if name not in known})):
        halving = halving or Halving(batches)
        adder = _Adder({name: layers[name] for name in part}, halving)
        observe(model, batches, adder.layers, adder.add, adder.next_batch)
        yield from adder.halves()


class _Adder:
    """Adds up what some layers read."""

    def __init__(self, layers: dict[str, Any], halving: Halving) -> None:
        self.layers, self._sums = layers, dict[str, tuple[_Sums, _Sums]]()
        self._halving, self._batch = halving, 0
        self._generator = torch.Generator().manual_seed(0)

    def next_batch(self) -> None:
        """Begin the next batch."""
        self._batch += 1

    def add(self, name: str, x: Tensor) -> None:
        """Add what a layer reads, or positions of it drawn at random."""
        rows = rows_of(self.layers[name], x)
        most = POSITIONS * x.shape[0]
        if len(rows) > 2 * most:
            drawn = torch.randint(len(rows), (most,), generator=self._generator).sort().values
            rows = rows[drawn.to(rows.device)]
        if name not in self._sums:
            centre = rows.mean(dim=0)
            self._sums[name] = _Sums(centre), _Sums(centre)
        for half, part in self._halving.parts(self._batch, rows):
            self._sums[name][half].add(part)

    def halves(self) -> Iterator[tuple[str, Halves]]:
        """Yield the moments of each layer and free its sums."""
        for name in list(self._sums):
            first, second = (half.moments() for half in self._sums.pop(name))
            if not (torch.isfinite(first.covariance).all() and torch.isfinite(second.covariance).all()):
                raise ScoreError(f"layer '{name}': its inputs are not finite on the calibration data")
            yield name, (first, second)


def widths_read(layers: Mapping[str, Any]) -> dict[str, int]:
    """Return how many channels each layer, or what stands for one, reads."""
    return {name: sides(layer).get("in") or layer.weight.shape[1] for name, layer in layers.items()}


def is_too_wide(width: int) -> bool:
    """Whether a layer reads more channels than second moments are taken of."""
    return width > WIDEST


def bytes_of(width: int) -> int:
    """Return the bytes of the second moments of both halves for a layer with this many input channels."""
    return 2 * 4 * width * width


def _parts(widths: dict[str, int]) -> Iterator[list[str]]:
    """Yield the layers in parts whose moments take at most `MOST_BYTES`, or one layer a part."""
    part: list[str] = []
    used = 0
    for name, width in widths.items():
        size = bytes_of(width)
        if part and used + size > MOST_BYTES:
            yield part
            part, used = [], 0
        part.append(name)
        used += size
    if part:
        yield part
