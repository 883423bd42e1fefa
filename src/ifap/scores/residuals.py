"""What is left of a unit's signal once the other inputs of a layer have said of it what they can.

Ridge regression lets the inputs that stay stand in for a unit that goes (see `ifap.compensate`). So what goes is not
the unit's whole deviation from its mean but the residual. With the inverse P of the second moments of all inputs, that
of the channels G of a unit is ``(P_GG)^-1 (P (x - m))_G``. It is *cross-fitted*: P comes from the half of the samples
that x is not in. A residual on samples that P was fitted on would be too small, and the smaller, the fewer they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ifap.axes.units import Indices
from ifap.forward import Inputs
from ifap.scores.moments import MOST_BYTES, Moments, bytes_of, halves, widths_read

_SHRINKAGE = 0.1  # of the correlations towards none


def fits_into_memory(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether the matrices of all layers fit into `ifap.scores.moments.MOST_BYTES` together."""
    return sum(map(bytes_of, widths_read(model, names).values())) <= MOST_BYTES


class Residuals:
    """Means, and what turns deviations into residuals, for each layer and each half of the samples.

    Parameters
    ----------
    model : nn.Module
        The network.
    batches : iterable
        Calibration inputs without labels; the halves are those of each batch.
    units : dict of str to integer array
        The unit of each input channel of the layers; see `ifap.scores.reading.readers`.

    Attributes
    ----------
    moments : dict of str to (Moments, Moments)
        What was measured, for compensation to use.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Inputs], units: dict[str, Indices]) -> None:
        self.means: dict[str, Tensor] = {}
        self.moments = dict(halves(model, batches, units))
        self._fitted: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, found in self.moments.items():
            self.means[name] = found[0].joined(found[1]).mean
            self._fitted[name] = [(each.mean, _matrix(each, torch.from_numpy(units[name]))) for each in reversed(found)]

    def of(self, name: str, rows: Tensor) -> Tensor:
        """Return the residuals of what a layer reads; both of shape (samples, positions, channels)."""
        middle = len(rows) // 2
        parts = zip((rows[:middle], rows[middle:]), self._fitted[name], strict=True)
        return torch.cat([(part - mean) @ matrix for part, (mean, matrix) in parts])


def _matrix(moments: Moments, units: Tensor) -> Tensor:
    """Return what deviations are multiplied by to become residuals: shape (inputs, inputs)."""
    scale = moments.covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    correlations = moments.covariance / scale / scale[:, None] * (1 - _SHRINKAGE)
    correlations.diagonal().add_(_SHRINKAGE)
    correlations.diagonal().clamp_min_(_SHRINKAGE)
    factor, failed = torch.linalg.cholesky_ex(correlations)
    if failed or not bool(torch.isfinite(factor).all()):  # so few samples that all of it is rounding: nothing is said
        return torch.eye(len(units), dtype=factor.dtype, device=factor.device)
    inverse = torch.cholesky_inverse(factor)
    rows = inverse / inverse.diagonal()[:, None]
    free = units[units >= 0]
    several = free.unique()[free.unique(return_counts=True)[1] > 1]
    for unit in several.tolist():  # a head, or the positions of a channel that a linear layer reads
        own = (units == unit).nonzero().flatten().to(inverse.device)
        rows[own] = torch.linalg.solve(inverse[own][:, own], inverse[own])
    return (rows * scale[:, None] / scale).t().contiguous()
