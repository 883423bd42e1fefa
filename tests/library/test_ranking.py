"""Aggregation, global order, floors and predicted budgets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import NETWORKS
from torch import nn

import ifap
from ifap.axes.cut import cut_units
from ifap.costs import macs_by_module
from ifap.errors import ScoreError
from ifap.forward import tensors
from ifap.methods import METHODS
from ifap.methods.base import score
from ifap.ranking import Budget, Ranking, floors, unit_costs, unit_scores
from ifap.scores.heads import replace_heads
from ifap.view import trace


def setting(name):
    net = NETWORKS[name]
    model = net.build()
    graph = trace(model, net.inputs())
    return model, net.inputs(), graph, Budget(graph)


def test_coupled_layers_are_aggregated():
    _, _, graph, _ = setting("residual")
    scores = {"stem.0": torch.arange(12.0), "second": torch.full((12,), 4.0)}
    units = graph.unit_of[graph.slot("stem.0", "out")]
    for aggregate, expected in (
        ("mean", (np.arange(12) + 4) / 2),
        ("sum", np.arange(12) + 4),
        ("max", np.maximum(np.arange(12), 4)),
    ):
        values = unit_scores(graph, scores, aggregate)
        assert np.allclose(values[units], expected)
        assert np.isnan(values[graph.unit_of[graph.slot("first.0", "out")]]).all()


def test_positions_inside_one_unit_are_averaged():
    _, _, graph, _ = setting("grouped")
    values = unit_scores(graph, {"1.0": torch.arange(32.0)})
    assert np.allclose(values[graph.unit_of[graph.slot("1.0", "out")]][::8], [3.5, 11.5, 19.5, 27.5])


@pytest.mark.parametrize(
    ("name", "weight", "slot"),
    [
        ("self_attention_batch_first", "attention.in_proj_weight", ("attention.in_proj_weight", "dim0")),
        ("fused_qkv", "attention.qkv", ("attention.qkv", "out")),
    ],
)
def test_head_scores_reach_the_units_of_heads(name, weight, slot):
    _, _, graph, _ = setting(name)
    heads = torch.tensor([3.0, 1.0, 4.0, 2.0])
    scores = replace_heads(graph, {weight: torch.ones(48)}, [heads])
    assert torch.equal(scores[weight], heads.repeat_interleave(4).repeat(3))
    values = unit_scores(graph, scores)
    assert np.allclose(values[graph.unit_of[graph.slot(*slot)]], scores[weight])
    out = graph.unit_of[graph.slot("attention.out_proj" if name.startswith("self") else "attention.proj", "in")]
    assert np.allclose(values[out][::4], heads)


def test_wrong_number_of_scores_is_an_error():
    _, _, graph, _ = setting("plain")
    with pytest.raises(ScoreError, match=r"'0.0'"):
        unit_scores(graph, {"0.0": torch.ones(5)})


# One network of each kind for every method, and every network for the one of the paper.
KINDS = ("plain", "residual", "grouped", "flatten", "fused_qkv", "self_attention_batch_first", "embedding", "vit")


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "ifap") for name in sorted(NETWORKS)), *itertools.product(KINDS, sorted({*METHODS.names()} - {"ifap"}))],
)
def test_every_method_scores_every_unit(name, method):
    model, inputs, graph, _ = setting(name)
    scores = score(
        METHODS.get(method),
        model,
        [inputs],
        normalize="layer",
        site="output",
        seed=0,
        labelled=[(inputs, None)],
        loss=lambda outputs, _: sum(t.square().sum() for t in tensors(outputs) if t.is_floating_point()),
        graph=graph,
        macs=macs_by_module(model, inputs),
    )
    values = unit_scores(graph, scores) if isinstance(scores, dict) else scores
    produced = ~np.isnan(values)
    # embeddings alone have no flow of their own
    assert produced.all() or name in ("embedding", "dict_inputs")
    assert (values[produced] >= 0).all()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_predicted_cost_is_the_cost_after_the_cut(name):
    model, inputs, graph, budget = setting(name)
    scores = np.random.default_rng(0).random(graph.num_units)
    ranking = Ranking(graph, scores, np.ones(len(graph.groups), dtype=int), budget)
    assert ranking.cost(0) == ifap.cost(model, inputs)
    count = ranking.num_candidates // 2
    predicted = ranking.cost(count)
    removed = ranking.units(ranking.removed_per_group(count))
    cut_units(model, graph, removed)
    measured = ifap.cost(model, inputs)
    assert predicted.params == pytest.approx(measured.params, abs=1)
    assert predicted.macs == pytest.approx(measured.macs, rel=1e-6)


def test_exactly_as_many_go_as_asked_for_even_when_all_scores_are_equal():
    _, _, graph, budget = setting("plain")
    ranking = Ranking(graph, np.zeros(graph.num_units), np.ones(len(graph.groups), dtype=int), budget)
    for count in (1, 5, 17):
        assert len(ranking.units(ranking.removed_per_group(count))) == count


def test_units_go_by_what_they_lose_for_what_they_save_at_the_widths_then_present():
    model = nn.Sequential(nn.Linear(8, 900), nn.ReLU(), nn.Linear(900, 600), nn.ReLU(), nn.Linear(600, 3))
    graph = trace(model, torch.zeros(1, 8))
    scores = np.random.default_rng(0).random(graph.num_units) * np.where(graph.group_of == 0, 1, 4)
    ranking = Ranking(graph, scores, np.ones(2, dtype=int), Budget(graph), per_cost=True)
    lowest = [np.sort(scores[graph.group_of == group]) for group in (0, 1)]
    for count in range(900):
        lost = ranking.removed_per_group(count)
        first, second = 900 - lost[0], 600 - lost[1]
        worth = lowest[0][lost[0]] / (8 + second), lowest[1][lost[1]] / (first + 3)
        (chosen,) = np.flatnonzero(ranking.removed_per_group(count + 1) - lost)
        assert worth[chosen] <= 1.02 * min(worth)


def test_smallest_count_is_the_smallest():
    _, _, graph, budget = setting("plain")
    scores = np.random.default_rng(1).random(graph.num_units)
    ranking = Ranking(graph, scores, np.ones(len(graph.groups), dtype=int), budget)
    for share in (0.9, 0.5, 0.2):
        goal = ranking.cost(0).macs * share
        count = ranking.smallest_count("macs", goal)
        assert ranking.cost(count).macs <= goal < ranking.cost(count - 1).macs
    assert ranking.smallest_count("macs", 0) is None


def test_floors_in_channels_and_shares():
    _, _, graph, _ = setting("grouped")
    sizes = graph.units_per_group()
    widths = np.array([group.width for group in graph.groups])
    kept = floors(graph, sizes, min_units=10, max_layer_ratio=1.0)
    assert np.array_equal(kept, np.maximum(1, -(-10 // widths)))
    assert np.array_equal(floors(graph, sizes, 1, 0.5), np.maximum(1, np.ceil(sizes / 2)))


def test_rounding_keeps_multiples_of_channels():
    _, _, graph, budget = setting("plain")
    scores = np.random.default_rng(2).random(graph.num_units)
    ranking = Ranking(graph, scores, np.ones(len(graph.groups), dtype=int), budget, round_to=4)
    sizes = graph.units_per_group()
    for count in range(0, ranking.num_candidates, 3):
        lost = ranking.removed_per_group(count)
        assert all(n == 0 or (size - n) % 4 == 0 for n, size in zip(lost, sizes, strict=True))
        assert ((sizes - lost) >= 1).all()


@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "fused_qkv"])
def test_macs_of_a_unit_are_what_its_cut_saves(name):
    model, inputs, graph, budget = setting(name)
    lost = unit_costs(graph, budget)
    before = ifap.cost(model, inputs).macs
    unit = graph.num_units // 2
    cut_units(model, graph, np.array([unit]))
    assert before - ifap.cost(model, inputs).macs == pytest.approx(lost[unit], abs=1)
