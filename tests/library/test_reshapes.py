"""Reshapes that move channels: followed where the map is right, pinned where it would be silently wrong."""

import numpy as np
import pytest
import torch
from networks import Lambda
from torch import nn
from torch.nn import functional

import ifap
from ifap.axes.cut import cut_units
from ifap.view import trace


def maxout():
    return Lambda(
        lambda m, x: m.head(torch.relu(m.mix(m.pairs(x).unflatten(1, (2, -1)).amax(1)))),
        pairs=nn.Linear(10, 24), mix=nn.Linear(12, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


def functional_shuffle():
    def forward(m, x):
        y = m.first(x)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return m.head(m.second(y))

    return Lambda(forward, first=nn.Conv2d(3, 8, 1), second=nn.Conv2d(8, 8, 1), head=nn.Conv2d(8, 3, 1))


def flattened_tokens():
    return Lambda(
        lambda m, x: m.head(torch.relu(m.mix(torch.relu(m.embed(x)).flatten(1)))),
        embed=nn.Linear(10, 6), mix=nn.Linear(30, 12), head=nn.Linear(12, 3),
    )  # fmt: skip


def handwritten_attention():
    def forward(m, x):
        x = m.embed(x)
        q, k, v = (layer(x).view(*x.shape[:2], 4, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        heads = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 16)
        x = x + m.out(heads)
        return m.head(x + m.down(torch.relu(m.up(x))))

    layers = {name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")}
    return Lambda(
        forward, embed=nn.Linear(10, 16), up=nn.Linear(16, 32), down=nn.Linear(32, 16), head=nn.Linear(16, 3), **layers
    )


def decoder():
    return Lambda(
        lambda m, x: m.head(torch.relu(m.mix(m.seed(x).unflatten(1, (-1, 4, 4))))),
        seed=nn.Linear(10, 8 * 16), mix=nn.Conv2d(8, 12, 3, padding=1), head=nn.Conv2d(12, 3, 1),
    )  # fmt: skip


CASES = {  # the units of each layer whose channels a reshape moves, one number a position
    "maxout": (maxout, (4, 10), {"pairs": [*range(12)] * 2}),
    "functional shuffle": (functional_shuffle, (2, 3, 4, 4), {"first": [0, 1, 2, 3, 0, 1, 2, 3]}),
    "flattened tokens": (flattened_tokens, (2, 5, 10), {"embed": [*range(6)]}),
    "hand-written attention": (
        handwritten_attention,
        (2, 5, 10),
        {name: [h for h in range(4) for _ in range(4)] for name in "qkv"},
    ),
    "decoder": (decoder, (2, 10), {"seed": [c for c in range(8) for _ in range(16)]}),
}


@pytest.mark.parametrize("case", CASES)
def test_reshapes_are_followed_to_the_position(case):
    build, shape, expected = CASES[case]
    graph = trace(build(), torch.zeros(shape))
    assert set(graph.pinned) == {"head"}
    for name, units in expected.items():
        found = graph.unit_of[graph.slot(name, "out")]
        assert (found - found.min()).tolist() == units


@pytest.mark.parametrize("case", CASES)
def test_units_whose_weights_are_zero_go_without_any_change_of_the_output(case):
    build, shape, _ = CASES[case]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    graph = trace(model, x)
    dead = [np.flatnonzero(graph.group_of == group)[0] for group in range(len(graph.groups))]
    modules = dict(model.named_modules())
    with torch.no_grad():
        for slot, units in zip(graph.slots, graph.unit_of, strict=True):
            if slot.side == "in":
                modules[slot.name].weight[:, torch.from_numpy(np.isin(units, dead))] = 0
    expected = model(x)
    cut_units(model, graph, np.array(dead))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_networks_with_reshapes_are_pruned_to_the_target(case):
    build, shape, _ = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(shape)
    pruned = ifap.prune(build(), x, [x], target=ifap.Target(macs=0.5), steps=2, min_units=1)
    assert pruned.after.reduction(pruned.before, "macs") >= 0.5
    assert pruned.proof.units_checked > 0
    assert pruned.proof.difference < 1e-6


def test_attention_whose_weights_are_used_loses_heads():
    def forward(m, x):
        y = m.embed(x)
        result, weights = m.attention(y, y, y)
        return m.head(result), weights.mean()

    model = Lambda(
        forward,
        embed=nn.Linear(10, 16),
        attention=nn.MultiheadAttention(16, 4, batch_first=True),
        head=nn.Linear(16, 3),
    )
    graph = trace(model, torch.zeros(2, 5, 10))
    assert len(set(graph.unit_of[graph.slot("attention.in_proj_weight", "dim0")].tolist())) == 4
    batches = [torch.randn(2, 5, 10)]
    pruned = ifap.prune(model, batches[0], batches, target=ifap.Target(macs=0.4), steps=2)
    assert pruned.model(batches[0])[0].shape == (2, 5, 3)
    assert pruned.proof.difference < 1e-6


@pytest.mark.parametrize("spread", [False, True])
def test_columns_that_are_written_at_looked_up_places_can_be_cut(spread):
    """Features of pillars are scattered to a map: its channels are those of the layer, its places are looked up."""
    places = torch.tensor([[1, 5, 2], [0, 7, 3]])

    def forward(m, x):
        maps = []
        for features, where in zip(m.features(x), places, strict=True):
            canvas = torch.zeros(12, 9)
            canvas[:, where] = features.mean(0).unsqueeze(-1) if spread else features.t()
            maps.append(canvas)
        return m.head(m.read(torch.stack(maps)).mean(-1))

    torch.manual_seed(0)
    model = Lambda(forward, features=nn.Linear(5, 12), read=nn.Conv1d(12, 10, 1), head=nn.Linear(10, 2))
    x = torch.randn(2, 3, 5)
    found = ifap.prune(model, x, [x], target=ifap.Target(macs=0.5), steps=1, min_units=1)
    assert found.model.features.out_features < 12
    assert set(found.receipts[0].pinned) == {"head"}
    assert found.proof.difference < 1e-6


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_on_packed_sequences_of_different_lengths_lose_units(kind):
    """Steps with fewer samples than the first are joined and taken apart again, which leaves the units alone."""

    def forward(m, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        found, _ = nn.utils.rnn.pad_packed_sequence(m.read(packed)[0], batch_first=True)
        return m.head(found.sum(1))

    torch.manual_seed(0)
    model = Lambda(forward, read=kind(5, 14, batch_first=True, bidirectional=True), head=nn.Linear(28, 3)).double()
    x, lengths = torch.randn(3, 7, 5, dtype=torch.float64), torch.tensor([4, 7, 6])
    given = {"target": ifap.Target(macs=0.5), "steps": 1, "method": "ifap"}
    found = ifap.prune(model, (x, lengths), [(x, lengths)], **given)
    assert found.after.reduction(found.before, "macs") >= 0.5
    assert found.proof.units_checked > 0
    assert found.proof.difference < 1e-12
    assert found.model(x[:2, :5], torch.tensor([2, 5])).shape == (2, 3)
