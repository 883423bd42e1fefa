"""The flattened graph after a cut is the graph of the network that was cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import NETWORKS, FusedAttention, Lambda, conv, head, randomize, run, unit
from torch import nn

from ifap.axes.cut import cut_units
from ifap.errors import GraphError
from ifap.view import trace

EVERY = sorted(NETWORKS)


class Spare(nn.Module):
    """Has a weight that no sample reaches, between two axes, one of which no other parameter beside it has."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 7), nn.Linear(7, 3)
        self.spare = nn.Parameter(torch.randn(12, 7))

    def forward(self, x):
        x = self.first(x)
        return self.last(x @ self.spare if x.sum() == torch.inf else self.second(x))


def prepared(name):
    net = NETWORKS[name]
    model = net.build()
    return model, net.inputs()


def structure(graph):
    """Slots, and which of their positions go together, however the units are numbered."""
    members = {}
    for slot, units in zip(graph.slots, graph.unit_of, strict=True):
        for position, number in enumerate(units.tolist()):
            if number >= 0:
                members.setdefault(number, set()).add((slot, position))
    widths = {slot: len(units) for slot, units in zip(graph.slots, graph.unit_of, strict=True)}
    return widths, {frozenset(unit) for unit in members.values()}


def some_units(graph, seed=0):
    """A few units of every group, never all of one."""
    generator = np.random.default_rng(seed)
    chosen = []
    for group in range(len(graph.groups)):
        units = np.flatnonzero(graph.group_of == group)
        chosen.append(generator.choice(units, size=len(units) // 3, replace=False))
    return np.sort(np.concatenate(chosen))


@pytest.mark.parametrize("name", EVERY)
def test_graph_without_units_is_the_graph_of_the_cut_network(name):
    model, inputs = prepared(name)
    graph = trace(model, inputs)
    for seed in (0, 1):  # two rounds, each on what the last one left
        removed = some_units(graph, seed)
        assert len(removed) > 0
        graph, _ = cut_units(model, graph, removed)
        # What is left of a product may be traced with its other factor as the units.
        fresh = [structure(trace(model, inputs, units=units)) for units in ("auto", "inner")]
        assert structure(graph) in fresh
        assert all(t.isfinite().all() for t in run(model, inputs))


@pytest.mark.parametrize("name", EVERY)
def test_tracing_leaves_the_network_alone_and_is_repeatable(name):
    model, inputs = prepared(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    versions = {n: (id(t), t._version) for n, t in model.state_dict(keep_vars=True).items()}
    flags = [p.requires_grad for p in model.parameters()]
    model.train()
    first, second = trace(model, inputs), trace(copy.deepcopy(model), inputs)
    assert structure(first) == structure(second)
    assert first.slots == second.slots
    assert np.array_equal(first.group_of, second.group_of)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert versions == {n: (id(t), t._version) for n, t in model.state_dict(keep_vars=True).items()}
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", EVERY)
def test_units_of_a_group_cut_the_same_slots(name):
    graph = trace(*prepared(name))
    for group in graph.groups:
        for number in np.flatnonzero(graph.group_of == group.index):
            cuts = {s for s, units in zip(graph.slots, graph.unit_of, strict=True) if (units == number).any()}
            assert cuts == set(group.slots)


def units_of(graph, name, side="out"):
    return graph.unit_of[graph.slot(name, side)]


def test_residual_layers_share_their_units():
    graph = trace(*prepared("residual"))
    assert np.array_equal(units_of(graph, "stem.0"), units_of(graph, "second"))
    assert np.array_equal(units_of(graph, "stem.0"), units_of(graph, "down", "in"))
    assert len(set(units_of(graph, "stem.0")) & set(units_of(graph, "first.0"))) == 0


def test_concatenated_layers_keep_their_own_units():
    graph = trace(*prepared("dense"))
    expected = np.concatenate([units_of(graph, f) for f in ("stem.0", "layers.0.0", "layers.1.0")])
    assert np.array_equal(units_of(graph, "layers.2.0", "in"), expected)


def test_flattened_channels_take_their_positions_along():
    graph = trace(*prepared("flatten"))
    assert np.array_equal(units_of(graph, "3", "in"), np.repeat(units_of(graph, "0.0"), 16))


def test_groups_of_a_convolution_go_as_a_whole():
    graph = trace(*prepared("grouped"))
    units = units_of(graph, "1.0")
    assert len(set(units)) == 4
    assert np.array_equal(units, np.repeat(units[::8], 8))
    assert np.array_equal(units_of(graph, "0.0"), np.repeat(units[::8], 4))


def test_heads_go_as_a_whole():
    graph = trace(*prepared("self_attention_batch_first"))
    units = units_of(graph, "attention.out_proj", "in")
    assert len(set(units)) == 4
    assert np.array_equal(units, np.repeat(units[::4], 4))
    for tensor in ("in_proj_weight", "in_proj_bias"):
        assert np.array_equal(units_of(graph, f"attention.{tensor}", "dim0"), np.tile(units, 3))
    assert np.array_equal(graph.heads[0], units[::4])


def test_fused_heads_take_query_key_and_value():
    graph = trace(*prepared("fused_qkv"))
    units = units_of(graph, "attention.qkv")
    inner = units_of(graph, "attention.proj", "in")
    assert np.array_equal(units, np.tile(inner, 3))
    assert len(set(inner)) == 4


def test_fused_block_whose_head_width_is_a_number_of_its_forward_loses_heads():
    block = FusedAttention()
    model = Lambda(
        lambda m, x: m.head(m.block(m.embed(x))), embed=nn.Linear(16, 16), block=block, head=nn.Linear(16, 3)
    )
    forward = FusedAttention.forward

    class Other(FusedAttention):
        def forward(self, x):
            self.head_dim = 4
            try:
                return forward(self, x)
            finally:
                del self.head_dim

    block.__class__ = Other
    del block.head_dim
    x = torch.randn(2, 5, 16)
    graph = trace(model, x)
    units = units_of(graph, "block.qkv")
    assert len(set(units)) == 4
    assert np.array_equal(units, np.tile(units_of(graph, "block.proj", "in"), 3))
    cut_units(model, graph, units[:4:4])
    assert block.qkv.weight.shape == (36, 16)
    assert block.num_heads == 3
    assert run(model, x)[0].shape == (2, 5, 3)


def test_pinned_layers_say_why():
    assert trace(*prepared("plain")).pinned == {"2.2": "it is an output of the network"}
    assert trace(*prepared("input_added")).pinned["b"] == "add joins it with an axis that stays or differs"
    ignored = trace(*prepared("plain"), ignore="1")
    assert ignored.pinned["1.0"] == "ignored by the caller"


def test_channels_that_a_shuffle_moves_go_together():
    graph = trace(*prepared("channel_shuffle"))
    units = units_of(graph, "1.0").reshape(4, 4)
    assert (units == units[:, :1]).all()
    assert np.array_equal(units_of(graph, "3.0", "in"), units.T.reshape(-1))


def test_layers_that_share_a_weight_share_their_units():
    graph = trace(*prepared("shared_weights"))
    first = units_of(graph, "first")
    assert (first >= 0).all()
    assert np.array_equal(units_of(graph, "second"), first)  # each has its own bias
    assert np.array_equal(units_of(graph, "first", "in"), units_of(graph, "body.0"))


def test_an_embedding_that_is_the_output_layer_as_well_is_cut_once():
    model, inputs = prepared("tied_embedding")
    graph = trace(model, inputs)
    words = units_of(graph, "words")
    assert (words >= 0).all()
    assert np.array_equal(units_of(graph, "second"), words)
    assert graph.slot("out", "in") is None
    cut_units(model, graph, words[:3])
    assert model.out.weight is model.words.weight
    assert model.out.weight.shape == (11, 11)
    assert model.out.in_features == 11


def parametrized(kind):
    layer = randomize(getattr(nn.utils.parametrizations, kind)(conv(12, 10)))
    return nn.Sequential(unit(3, 12), layer, nn.ReLU(), unit(10, 8), head(8))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_tensors_behind_a_parametrized_weight_are_cut(kind):
    model, x = parametrized(kind), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    original = "original1" if kind == "weight_norm" else "original"
    inputs = units_of(graph, f"1.parametrizations.weight.{original}", "dim1")
    assert np.array_equal(inputs, units_of(graph, "0.0"))
    outputs = units_of(graph, f"1.parametrizations.weight.{original}", "dim0")
    assert (outputs >= 0).all()
    assert np.array_equal(outputs, units_of(graph, "3.0", "in"))
    cut_units(model, graph, np.concatenate([inputs[:3], outputs[:4]]))
    assert model[1].weight.shape == (6, 9, 3, 3)
    assert run(model, x)[0].shape == (2, 4)


def test_attention_that_reads_its_widths_by_itself_stays():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    attention = Own(16, 4, batch_first=True)
    model = Lambda(
        lambda m, x: m.head(torch.relu(m.mix(m.attention(*[m.embed(x)] * 3)[0]))),
        embed=nn.Linear(16, 16), attention=attention, mix=nn.Linear(16, 12), head=nn.Linear(12, 3),
    )  # fmt: skip
    graph = trace(model, torch.randn(2, 5, 16))
    reason = "multi_head_attention_forward reads its widths by itself (in 'attention')"
    assert graph.pinned["embed"] == graph.pinned["attention.in_proj_weight"] == reason
    assert graph.pinned["attention.out_proj"] == reason
    assert (units_of(graph, "mix") >= 0).all()


def test_network_that_does_not_run_is_an_error():
    with pytest.raises((GraphError, RuntimeError)):
        trace(nn.Linear(3, 4), torch.randn(2, 5))


# --- layers that only training runs ---------------------------------------------------------------


def with_auxiliary_head(in_training):
    def forward(m, x):
        x = m.body(m.stem(x))
        return (m.head(m.last(x)), *in_training(m, x)) if m.training else m.head(m.last(x))

    return Lambda(
        forward, stem=unit(3, 12), body=unit(12, 10), last=unit(10, 8), head=head(8), auxiliary=nn.Sequential(
            unit(10, 6), nn.Dropout(0.5), head(6)
        ),
    )  # fmt: skip


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_an_auxiliary_head_that_only_training_runs_follows_what_it_reads():
    model = with_auxiliary_head(lambda m, x: [m.auxiliary(x)])
    graph = trace(model, X)
    body, reader = graph.slot("body.0", "out"), graph.slot("auxiliary.0.0", "in")
    assert np.array_equal(graph.unit_of[body], graph.unit_of[reader])
    assert graph.pinned["auxiliary.2.2"] == "it is an output of the network"
    cut_units(model, graph, graph.unit_of[body][:3])
    assert [output.shape for output in run(model.train(), X)] == [(2, 4), (2, 4)]


def test_what_a_network_may_read_in_a_training_that_it_cannot_run_stays():
    def wants_targets(m, x):
        raise AssertionError("targets should not be none when in training mode")

    graph = trace(with_auxiliary_head(wants_targets), X)
    assert_stays(graph, "auxiliary.0.0")
    assert (graph.unit_of[graph.slot("body.0", "out")] == -1).all()
    assert "the sample does not reach 'auxiliary'" in graph.pinned["body.0"]
    assert (graph.unit_of[graph.slot("stem.0", "out")] >= 0).all()


def test_a_layer_that_nothing_runs_is_left_out():
    graph = trace(with_auxiliary_head(lambda m, x: []), X)
    assert_stays(graph, "auxiliary.0.0")
    assert (graph.unit_of[graph.slot("stem.0", "out")] >= 0).all()


def assert_stays(graph, name):
    for side in ("in", "out"):
        assert (units_of(graph, name, side) == -1).all()


# --- the rule on 1x1 convolutions -----------------------------------------------------------------


def bottleneck():
    def forward(m, x):
        x = m.stem(x)
        return m.head(x + m.widen(m.spatial(m.narrow(x))))

    return Lambda(
        forward, stem=unit(3, 12, 1), narrow=unit(12, 8, 1), spatial=unit(8, 9), widen=conv(9, 12, 1),
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)),
    )  # fmt: skip


def test_only_units_of_larger_convolutions_go_if_asked():
    assert {group.name for group in trace(bottleneck(), X).groups} == {"stem.0", "narrow.0", "spatial.0", "head.2"}
    graph = trace(bottleneck(), X, spatial_only=True)
    assert [group.name for group in graph.groups] == ["spatial.0"]
    assert graph.num_units == 9
    reason = "spatial_only: no convolution larger than 1x1 produces it"
    assert {name for name, why in graph.pinned.items() if why == reason} == {"stem.0", "narrow.0", "widen", "head.2"}


def test_1x1_convolutions_follow_a_larger_one():
    model = bottleneck()
    model.stem = unit(3, 12)
    graph = trace(model, X, spatial_only=True)
    widths = {group.name: {slot.name for slot in group.slots if slot.side == "out"} for group in graph.groups}
    assert {"stem.0", "widen"} <= widths["stem.0"]
    assert set(widths) == {"stem.0", "spatial.0"}


def test_what_may_share_a_parameter_that_the_sample_does_not_reach_stays():
    graph = trace(Spare(), torch.randn(4, 6))
    assert graph.pinned["first"] == graph.pinned["second"]
    assert "the sample does not reach 'spare', which may read or make it" in graph.pinned["second"]
    assert not any(slot.name == "spare" for group in graph.groups for slot in group.slots)
