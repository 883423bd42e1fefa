"""How much a network's output depends on each unit, without labels.

A unit c sends the signal x_c to its readers. Were it replaced by its mean m_c, the output would change, to first order,
by ``a_c = sum over positions and readers of g_c (x_c - m_c)`` along a direction with the gradient g. The score is the
mean over samples and directions of ``a_c^2 / 2``: half the Fisher information of a gate on the unit's deviation from
its mean, where the direction is that of the log-probability of a class drawn from the network's own output. It is the
expected KL divergence to the whole network, to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifap.axes.units import Graph
from ifap.data import refuse_test
from ifap.errors import ScoreError
from ifap.forward import Inputs, call, device_of, evaluation_mode, task_tensors, to_device
from ifap.layers import modules_by_name, unit_axis
from ifap.moments import input_means
from ifap.ranking import Floats
from ifap.reading import looking, readers


def unit_fisher(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Inputs],
    *,
    seed: int = 0,
    draws: int = 1,
) -> Floats:
    units = {name: found for name, found in readers(model, graph).items() if (found >= 0).any()}
    means = input_means(model, batches, units)
    signals = _Signals(model, graph, units, means)
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    with evaluation_mode(model), _frozen(model), torch.enable_grad(), looking(model, units, signals.look):
        for batch in batches:
            signals.begin()
            outputs = [o for o in task_tensors(call(model, to_device(batch, device_of(model)))) if o.requires_grad]
            signals.outputs(outputs)
            for draw in range(draws):
                directions = [direction(output, generator) for output in outputs]
                torch.autograd.backward(outputs, directions, retain_graph=draw + 1 < draws)
                signals.end()
    return signals.scores()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient inside the block."""
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)

import os
def direction(output: Tensor, generator: torch.Generator) -> Tensor:
    if os.environ.get("GAUSS"):
        g = torch.randn(output.shape, generator=generator)
        return (g / output.detach().float().std()).to(output.dtype)
    probabilities = output.detach().float().softmax(dim=-1)
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    drawn = torch.multinomial(flat, 1, generator=generator)
    return (flat - torch.zeros_like(flat).scatter_(1, drawn, 1.0)).reshape(output.shape).to(output.dtype)

JOIN = os.environ.get("JOIN", "1") == "1"
RAW = os.environ.get("RAW", "0") == "1"

class _Signals:
    def __init__(self, model, graph, units, means):
        self._modules = modules_by_name(model)
        self._units = {n: torch.from_numpy(u) for n, u in units.items()}
        self._means = means
        self._n = graph.num_units
        self.total = torch.zeros(self._n, dtype=torch.float64)
        self.seen = torch.zeros(self._n, dtype=torch.bool)
        self.samples = 0
        self._range = {}
        for n, u in self._units.items():
            free = u >= 0
            self.seen[u[free]] = True
            first = int(u[free].min()); last=int(u[free].max())
            plain = bool(free.all()) and len(u) == last-first+1 and bool((u == torch.arange(first,last+1)).all())
            self._range[n] = (first, last + 1, plain, free, u[free]-first)

    def begin(self):
        self._buffers = {}
        self._rows = 0

    def outputs(self, outputs):
        first = outputs[0]
        self._batch = first.shape[0]
        self._rows = first.numel() // first.shape[-1]

    def look(self, name, x):
        alias = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        alias.register_hook(partial(self._add, name, x.detach()))
        return alias

    def _add(self, name, x, gradient):
        module = self._modules[name]
        axis = unit_axis(module)
        C = x.shape[axis]
        x = x.movedim(axis, -1).reshape(-1, C).float(); g = gradient.movedim(axis, -1).reshape(-1, C).float()
        p = g * (x if RAW else (x - self._means[name]))
        if p.shape[0] != self._rows:
            p = p.reshape(self._batch, -1, C).sum(1)
        first, last, plain, free, index = self._range[name]
        if not plain:
            q = p.new_zeros(len(p), last - first)
            q.index_add_(1, index, p[:, free])
            p = q
        if JOIN:
            key = len(p)
            if key not in self._buffers:
                self._buffers[key] = torch.zeros(key, self._n)
            self._buffers[key][:, first:last] += p
        else:
            self.total[first:last] += p.square().sum(0).double()
        return None

    def end(self):
        for b in self._buffers.values():
            self.total += b.square().sum(0).double()
        self._buffers = {}
        self.samples += self._batch

    def scores(self):
        s = (self.total / (2 * self.samples)).numpy()
        return np.where(self.seen.numpy(), s, np.nan)
