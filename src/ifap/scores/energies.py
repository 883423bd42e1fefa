"""Score units by their share of the energy that layers read, without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Floats, Graph
from ifap.errors import ScoreError
from ifap.forward import Inputs
from ifap.layers import weight_by_group
from ifap.scores.moments import averages
from ifap.scores.reading import readers


def energy_shares(model: nn.Module, graph: Graph, batches: Iterable[Inputs], *, centred: bool = False) -> Floats:
    """Return for each unit its share of the energy that its readers read, summed over these.

    To a layer that reads it, unit c brings ``E[x_c^2] ||W_c||^2``, with W_c the weights that read it. With `centred`
    the variance of x_c counts in place of its mean square, because compensation puts the mean into a bias. The shares
    have the shape (units,), and are NaN where no layer that was seen reads the unit. `batches` are iterated once.

    Raises a ScoreError if there is no batch, or if what a layer reads is not finite; it names the layer.
    """
    read_by = readers(model, graph)
    layers = {name: each.layer for name, each in read_by.items()}
    totals, seen = np.zeros(graph.num_units), np.zeros(graph.num_units, dtype=bool)
    for name, found in averages(model, batches, layers, _sums if centred else _squares).items():
        squares = found[1] - found[0].square() if centred else found
        energy = squares.cpu() * reading_norms(layers[name]).cpu()
        if not torch.isfinite(energy).all():
            raise ScoreError(f"layer '{name}': its inputs are not finite on the calibration data")
        share = (energy / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)).numpy()
        units = read_by[name].units
        can_go = units >= 0
        np.add.at(totals, units[can_go], share[can_go])
        seen[units[can_go]] = True
    return np.where(seen, totals, np.nan)


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=0).double()


def _sums(rows: Tensor) -> Tensor:
    rows = rows.double()
    return torch.stack([rows.sum(dim=0), rows.square().sum(dim=0)])


def reading_norms(module: Any) -> Tensor:
    """Return the squared L2 norm of the weights that read each input channel of a layer: shape (inputs,), float64."""
    return weight_by_group(module).double().square().sum(dim=(1, 3)).flatten()
