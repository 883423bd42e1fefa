"""What `ifap.inspect` says of a network, in numbers and in print."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, conv, head, unit
from torch import nn

import ifap
from ifap.axes.cut import cut_units
from ifap.errors import ConfigError, GraphError
from ifap.printing import as_text
from ifap.view import trace


def view_of(name, **options):
    net = NETWORKS[name]
    return ifap.inspect(net.build(), net.inputs(), **options)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_costs_are_the_counted_ones_and_nothing_is_touched(name):
    net = NETWORKS[name]
    model, inputs = net.build().train(), net.inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    view = ifap.inspect(model, inputs)
    cost = ifap.cost(model, inputs)
    assert (view.macs, view.params) == (cost.macs, cost.params)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert view.unknown == {}
    assert view.axes
    shares = [axis.share for axis in view.axes]
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= share <= 1 for share in shares)
    assert not {axis.name for axis in view.axes} & {stay.name for stay in view.stays}
    assert str(view).startswith(f"{cost.macs:,} multiply-accumulates, {cost.params:,} parameters")


def test_an_axis_names_what_a_unit_takes_along():
    first = next(axis for axis in view_of("residual").axes if axis.name == "stem.0")
    assert first.units == 12
    assert first.layers == {
        "stem.0 out": 1, "stem.1 out": 1, "first.0 in": 1, "second out": 1, "third.0 in": 1, "down in": 1,
    }  # fmt: skip
    heads = next(axis for axis in view_of("fused_qkv").axes if axis.name == "attention.qkv")
    assert heads.units == 4
    assert heads.layers == {"attention.qkv out": 12, "attention.proj in": 4}


@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "flatten", "fused_qkv", "self_attention_batch_first"])
def test_shares_are_what_is_saved_unit_by_unit(name):
    net = NETWORKS[name]
    model, inputs = net.build(), net.inputs()
    graph, view = trace(model, inputs), ifap.inspect(model, inputs)
    by_name = {axis.name: axis for axis in view.axes}
    for group in graph.groups:
        units = (graph.group_of == group.index).nonzero()[0]
        smaller = copy.deepcopy(model)
        cut_units(smaller, graph, units[1:])
        saved = (view.macs - ifap.cost(smaller, inputs).macs) / (len(units) - 1) * len(units)
        assert by_name[group.name].share == pytest.approx(saved / view.macs, rel=1e-6)


def test_what_stays_says_why_and_how_much_it_costs():
    view = view_of("input_added")
    stays = {layer.name: layer for layer in view.stays}
    assert set(stays) == {"b", "head.2"}
    assert stays["head.2"].reason == "it is an output of the network"
    assert stays["b"].reason == "add joins it with an axis that stays or differs"
    assert stays["b"].share == pytest.approx(10 * 6 * 9 * 64 * 2 / view.macs)
    ignored = ifap.inspect(NETWORKS["plain"].build(), NETWORKS["plain"].inputs(), ignore="0")
    assert {layer.name: layer.reason for layer in ignored.stays}["0.0"] == "ignored by the caller"


def test_axes_that_keep_step_are_named():
    view = view_of("split_channels")
    assert all(axis.units <= 12 for axis in view.axes)
    grouped = view_of("grouped_of_two")
    text = str(grouped)
    for axis in grouped.axes:
        for other in axis.equal_to:
            assert other in text
        if axis.multiple_of > 1:
            assert f"a multiple of {axis.multiple_of} stays" in text


def test_sizes_that_follow_a_cut_are_listed_with_their_values():
    assert view_of("fused_qkv").attributes["attention.num_heads"] == 4
    assert view_of("channel_shuffle").attributes == {"2.groups": 4}
    assert view_of("plain").attributes == {}
    assert view_of("plain").calls == []

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = unit(3, 12), unit(12, 10), head(10)

        def forward(self, x):
            return self.head(self.b(self.a(x).view(2, 12, 8, 8)))

    view = ifap.inspect(Written(), torch.randn(2, 3, 8, 8))
    assert len(view.calls) == 1
    assert "view" in view.calls[0]
    assert view.calls[0] in str(view)


def test_print_is_readable_within_120_columns_and_long_lists_are_cut():
    text = str(view_of("encoder_batch_first"))
    assert max(map(len, text.splitlines())) <= 120
    for words in ("can be cut", "stays", "removed with a unit", "it is an output of the network"):
        assert words in text
    deep = nn.Sequential(*(conv(4, 4) for _ in range(60)))
    view = ifap.inspect(deep, torch.randn(1, 4, 4, 4))
    assert len(view.axes) == 59
    assert "... 19 more" in str(view)


def test_operations_that_are_not_followed_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(torch.linalg.inv(self.a(x)))

    view = ifap.inspect(Odd(), torch.randn(6, 6))
    assert view.unknown
    assert all(f"not followed: the operation {name} in" in str(view) for name in view.unknown)
    assert {layer.name for layer in view.stays} >= {"a", "b"}


def test_choices_are_those_of_pruning():
    inner = view_of("grouped", units="inner")
    assert {axis.name: axis.units for axis in inner.axes} != {axis.name: axis.units for axis in view_of("grouped").axes}
    with pytest.raises(ConfigError, match="did you mean 'heads'"):
        view_of("grouped", units="head")
    with pytest.raises(GraphError, match="ignore: the network has no layer 'stm'"):
        view_of("residual", ignore="stm")
    with pytest.raises(GraphError, match="does not run on its example inputs"):
        ifap.inspect(NETWORKS["plain"].build(), torch.randn(2, 5, 8, 8))
    some = view_of("dict_inputs", outputs=["logits"])
    assert some.axes
    with pytest.raises(ConfigError, match="outputs: the network returns no 'logit'"):
        view_of("dict_inputs", outputs=["logit"])


def test_print_is_as_wide_as_the_terminal(monkeypatch):
    view = view_of("encoder_batch_first")
    for columns, most in (("80", 80), ("20", 60), ("500", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        widths = {len(line) for line in str(view).splitlines()}
        assert max(widths) <= most
    assert max(widths) == 120


def test_brackets_and_colons_are_printed_as_they_are():
    assert "[bold]x[/bold] :smile:" in as_text("[bold]x[/bold] :smile:")
