"""One graph for all iterations: keeping it gives the network that tracing anew in every iteration gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from networks import NETWORKS

import ifap
from ifap import iterations, pruning
from ifap.axes.units import Graph
from ifap.view import trace


class TracedAnew(iterations.Run):
    """A run that forgets its graph after every cut and traces the smaller network, as if it were a new one."""

    def _cut(self, *args):
        kept = self._graph
        receipt = super()._cut(*args)
        left = self._graph
        fresh = next(  # what is left of a product may be traced with its other factor as the units
            graph
            for units in ("auto", "inner")
            for graph in [trace(self.model, self._inputs, units=units)]
            if sorted(graph.units_per_group()) == sorted(n for n in left.units_per_group() if n > 1)
        )
        assert fresh.slots == left.slots
        assert [len(units) for units in fresh.unit_of] == [len(units) for units in left.unit_of]
        assert _cost(fresh) == _cost(left)
        self._graph = Graph(fresh.structure, fresh.unit_of, fresh.group_of, fresh.heads, left.kept)
        groups = [group.slots for group in kept.groups]
        order = [groups.index(group.slots) for group in fresh.groups]
        self._original_sizes = self._original_sizes[order]  # groups that are gone cannot lose more
        return receipt


def _cost(graph):
    forms, counts = graph.structure.forms, graph.units_per_group()
    return forms.total_macs(counts), forms.params(counts)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_kept_graph_gives_what_a_new_trace_in_every_iteration_gives(name, monkeypatch):
    net = NETWORKS[name]
    model, inputs, steps = net.build(), net.inputs(), 3
    options = {"target": ifap.Target(params=0.2), "steps": steps, "min_units": 1, "method": "magnitude"}
    found = {}
    for kind in (iterations.Run, TracedAnew):
        monkeypatch.setattr(pruning, "Run", kind)
        states = []
        pruned = ifap.prune(model, inputs, [inputs], on_step=lambda m, _, s=states: s.append(_weights(m)), **options)
        assert len(states) == len(pruned.receipts) >= 2
        assert all(any(a[k].shape != b[k].shape for k in a) for a, b in pairwise(states))
        found[kind.__name__] = states
    for kept, anew in zip(*found.values(), strict=True):
        assert kept.keys() == anew.keys()
        assert all(torch.equal(kept[key], anew[key]) for key in kept)


def _weights(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}
