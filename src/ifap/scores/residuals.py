"""Residual of each unit after ridge regression on the other inputs.

Ridge regression lets the inputs that stay stand in for a unit that goes (see `ifap.compensate`). So what goes is not
the unit's whole deviation from its mean but the residual. With the inverse P of the second moments of all inputs, that
of the channels G of a unit is ``(P_GG)^-1 (P (x - m))_G``. It is *cross-fitted*: P comes from the half of the samples
that x is not in. A residual on samples that P was fitted on would be too small, and the smaller, the fewer they are.

A unit seldom goes alone. If those that matter less go first, only the others are left to stand in for it, and its
residual *grows* (`Residuals.growth`). With the lower triangular Cholesky factor L of the moments, in the order in which
units stay longest, that residual is ``L_GG (L^-1 (x - m))_G``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.forward import Inputs
from ifap.scores.moments import MOST_BYTES, Halving, Moments, bytes_of, halves, widths_read
from ifap.scores.reading import Reader

_SHRINKAGE = 0.1  # of the correlations towards none
_WIDEST = 8192  # inputs: the time grows with their third power, and 12544 of a detector's head take two minutes


def fits_into_memory(layers: Mapping[str, Any]) -> bool:
    """Whether the matrices of all layers fit into `ifap.scores.moments.MOST_BYTES` together."""
    return sum(map(bytes_of, widths_read(layers).values())) <= MOST_BYTES


class Residuals:
    """Means, and the matrices that turn deviations into residuals, for each layer and half of the samples.

    `moments` holds those of each layer and half, for compensation to use.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Inputs], read_by: dict[str, Reader]) -> None:
        self.means: dict[str, Tensor] = {}
        self._halving = Halving(batches)
        layers = {name: each.layer for name, each in read_by.items()}
        self.moments = dict(halves(model, batches, layers, halving=self._halving))
        self._units = {name: torch.from_numpy(read_by[name].units) for name in self.moments}
        self._fitted: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        for name, found in self.moments.items():
            self.means[name] = found[0].joined(found[1]).mean
            self._fitted[name] = [(each.mean, _matrix(each, self._units[name])) for each in reversed(found)]

    def of(self, name: str, rows: Tensor, batch: int) -> Tensor:
        """Return the residuals of what a layer reads of a batch; both of shape (samples, positions, channels)."""
        residuals = []
        for half, part in self._halving.parts(batch, rows):
            mean, matrix = self._fitted[name][half]
            residuals.append(part - mean if matrix is None else (part - mean) @ matrix)
        return torch.cat(residuals)

    def growth(self, name: str, scores: Tensor) -> Tensor:
        """Return by how much the residual variance of each unit grows if all units of a lower score have gone.

        Both variances are those on the second half of the samples of what was fitted on the first. `scores` holds the
        scores of all units. The result has the shape (inputs,), is at least one, and is the same for all inputs of a
        unit.
        """
        units, (fitted, held) = self._units[name], self.moments[name]
        keys = torch.where(units >= 0, scores[units], torch.inf)
        order = torch.from_numpy(np.lexsort((units.numpy(), -keys.numpy())))  # what stays longest comes first
        _, among_all = self._fitted[name][1]  # it takes deviations, not shares of their scale
        if among_all is None:
            return torch.ones(len(units), dtype=torch.float64)
        correlations, scale = _correlations(fitted)
        factor = _factor(correlations[order[:, None], order])
        if factor is None:
            return torch.ones(len(units), dtype=torch.float64)
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        among_last = torch.linalg.solve_triangular(factor, identity, upper=False)
        if len(units.unique()) == len(units):
            among_last *= factor.diagonal()[:, None]
        else:  # what inputs of the unit itself say does not count
            own = units[order] == units[order][:, None]
            among_last = (factor * own.to(factor.device)) @ among_last
        variances = (held.covariance / scale).div_(scale[:, None])
        later = torch.empty(len(units), dtype=torch.float64)
        later[order] = _variances(among_last, variances[order[:, None], order])
        alone = _variances(among_all.t() * scale / scale[:, None], variances)
        return (_sums(later, units) / _sums(alone, units).clamp_min(1e-30)).clamp_min(1)


def _matrix(moments: Moments, units: Tensor) -> Tensor | None:
    """Return the matrix from deviations to residuals: (inputs, inputs); None for too many inputs or too few samples."""
    if len(units) > _WIDEST:
        return None
    correlations, scale = _correlations(moments)
    factor = _factor(correlations)
    if factor is None:
        return None
    inverse = torch.cholesky_inverse(factor)
    rows = inverse / inverse.diagonal()[:, None]
    free = units[units >= 0]
    several = free.unique()[free.unique(return_counts=True)[1] > 1]
    for unit in several.tolist():  # a head, or the positions of a channel that a linear layer reads
        own = (units == unit).nonzero().flatten().to(inverse.device)
        rows[own] = torch.linalg.solve(inverse[own][:, own], inverse[own])
    return rows.mul_(scale[:, None]).div_(scale).t().contiguous()


def _factor(correlations: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor; None where so few samples were seen that all of it is rounding."""
    factor, failed = torch.linalg.cholesky_ex(correlations)
    # What is not finite in a row is not finite on its diagonal.
    return None if failed or not bool(torch.isfinite(factor.diagonal()).all()) else factor


def _correlations(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return the shrunk correlations of inputs (inputs, inputs), and their standard deviations; one for zero."""
    scale = moments.covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    correlations = (moments.covariance / scale).div_(scale[:, None]).mul_(1 - _SHRINKAGE)
    correlations.diagonal().add_(_SHRINKAGE)
    correlations.diagonal().clamp_min_(_SHRINKAGE)
    return correlations, scale


def _variances(rows: Tensor, covariance: Tensor) -> Tensor:
    """Return the variance of each row of a linear map."""
    return ((rows @ covariance) * rows).sum(dim=1).double().cpu()


def _sums(values: Tensor, units: Tensor) -> Tensor:
    """Return for each input the sum over the inputs of its unit."""
    _, index = units.unique(return_inverse=True)
    return torch.zeros(len(values), dtype=values.dtype).index_add_(0, index, values)[index]
