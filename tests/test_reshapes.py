"""Reshapes that move channels: followed where the map is right, pinned where it would be silently wrong."""

import pytest
import torch
from networks import Lambda
from torch import nn
from torch.nn import functional

import ifap
from ifap.attention import split_attention
from ifap.graph import trace

RESHAPE = "its channels cannot be followed through a reshape"


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


CASES = {
    "maxout": (maxout, (4, 10), {"pairs"}),
    "functional shuffle": (functional_shuffle, (2, 3, 4, 4), {"first"}),
    "flattened tokens": (flattened_tokens, (2, 5, 10), {"embed"}),
    "hand-written attention": (handwritten_attention, (2, 5, 10), {"q", "k", "v"}),
    "decoder": (decoder, (2, 10), set()),
}


@pytest.mark.parametrize("case", CASES)
def test_reshapes_pin_what_cannot_be_followed_and_nothing_else(case):
    build, shape, pinned = CASES[case]
    graph = trace(build(), torch.zeros(shape))
    assert {name for name, reason in graph.pinned.items() if reason == RESHAPE} == pinned
    assert set(graph.pinned) == pinned | {"head"}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_cut_without_changing_what_stays(case):
    """A unit whose weights are all zero may go without any change of the output."""
    build, shape, _ = CASES[case]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    graph = trace(model, x)
    modules = dict(model.named_modules())
    dead = [int(graph.unit_of[i][graph.unit_of[i] >= 0].min()) for i, s in enumerate(graph.slots) if s.side == "in"
            and (graph.unit_of[i] >= 0).any()]  # fmt: skip
    with torch.no_grad():
        for slot, units in zip(graph.slots, graph.unit_of, strict=True):
            if slot.side == "in":
                hit = torch.from_numpy((units[:, None] == torch.tensor(dead).numpy()).any(1))
                modules[slot.name].weight[:, hit] = 0
    expected = model(x)
    graph.apply(model, torch.tensor(sorted(set(dead))).numpy())
    torch.testing.assert_close(model(x), expected)


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
    split_attention(model)
    graph = trace(model, torch.zeros(2, 5, 10))
    assert "attention.q" in {group.name for group in graph.groups}
    batches = [torch.randn(2, 5, 10)]
    pruned = ifap.prune(model, batches[0], batches, target=ifap.Target(macs=0.4), steps=2)
    assert pruned.model(batches[0])[0].shape == (2, 5, 3)
