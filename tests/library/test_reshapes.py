"""Reshapes that move channels: followed where the map is right, pinned where it would be silently wrong."""

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from networks import Lambda
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def test_matrices_of_a_batch_are_turned_in_inference_mode_as_well():
    """In inference mode torch hands on operations that it takes apart elsewhere."""

    def forward(m, x):
        with torch.inference_mode():
            turned = m.first(x).mT.transpose(1, 2)
        return m.head(turned.clone())

    torch.manual_seed(0)
    model, x = Lambda(forward, first=nn.Linear(6, 12), head=nn.Linear(12, 2)), torch.randn(3, 4, 6)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.5), method="magnitude")
    assert set(pruned.receipts[-1].pinned) == {"head"}
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


@functools.lru_cache(64)
def _shape_of_heads(shape, heads):
    """Compute a shape as einops does: results are cached by sizes, whatever these count."""
    *places, width = shape
    if width % heads:
        raise ValueError(f"{width} channels are no multiple of {heads} heads")
    return (*places, heads, width // heads)


class CachedShapes(nn.Module):
    """Two blocks of attention of the same widths, whose shapes a cached function computes."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.head, self.heads = nn.Linear(6, width), nn.Linear(width, 3), 4
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (
                part.reshape(_shape_of_heads(tuple(part.shape), self.heads)).transpose(1, 2)
                for part in qkv(x).chunk(3, dim=-1)
            )
            x = x + out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(x)


def test_a_cache_does_not_answer_for_another_axis_of_the_same_size():
    torch.manual_seed(0)
    network, x = CachedShapes().eval(), torch.randn(2, 5, 6)
    network(x)  # the cache knows these sizes as plain numbers
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=1, method="magnitude")
    assert pruned.after.macs < 0.52 * pruned.before.macs
    assert pruned.proof.difference < 1e-6
    assert set(pruned.receipts[-1].pinned) == {"head"}
    assert pruned.model(torch.randn(3, 7, 6)).shape == (3, 7, 3)


class Rearranged(nn.Module):
    """A reshape that refuses other widths, whose number of heads stands in a private tuple of pairs."""

    def __init__(self, **sizes):
        super().__init__()
        self._sizes = tuple(sizes.items())

    def forward(self, x):
        parts, heads = (size for _, size in self._sizes)
        if x.shape[-1] % (parts * heads) != 0:
            raise ValueError(f"{x.shape[-1]} channels are no multiple of {parts} x {heads}")
        return x.reshape(*x.shape[:2], parts, heads, x.shape[-1] // (parts * heads)).permute(2, 0, 3, 1, 4)


class WithPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out, self.head = (
            nn.Linear(8, 24),
            nn.Linear(24, 72),
            nn.Linear(24, 24),
            nn.Linear(24, 3),
        )
        self.apart = Rearranged(parts=3, heads=4)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.apart(self.qkv(x))
        x = x + self.out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(x)


def test_a_size_in_a_private_tuple_of_pairs_follows_and_is_loaded(tmp_path):
    torch.manual_seed(0)
    network, x = WithPairs().eval(), torch.randn(2, 5, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.6), steps=1, method="magnitude")
    assert dict(pruned.model.apart._sizes)["heads"] < 4
    assert dict(network.apart._sizes) == {"parts": 3, "heads": 4}
    assert pruned.proof.difference < 1e-6
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, WithPairs)(x), pruned.model(x))


class OwnKernel(nn.Module):
    """Attention that chooses a fused kernel itself."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_go_where_a_forward_chooses_the_kernel_of_its_attention():
    torch.manual_seed(0)
    network, x = OwnKernel().eval(), torch.randn(2, 5, 24)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=1, method="magnitude")
    assert pruned.model.qkv.out_features == 36
    assert pruned.proof.difference < 1e-6


class ShapedLike(nn.Module):
    """A result that takes the shape of another one."""

    def __init__(self, function):
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 3)
        self.scale, self.table, self.function = nn.Parameter(torch.ones(1)), torch.linspace(1, 2, 24), function

    def forward(self, x):
        seen, gate = torch.relu(self.first(x)), torch.sigmoid(self.gate(x))
        if self.function == "expand_as":
            seen = seen * self.scale.view(1, 1, 1).expand_as(gate) * self.table.expand_as(gate)
        else:
            seen = getattr(seen.flatten(0, 1), self.function)(gate)
        return self.head(seen) * gate.mean(-1, keepdim=True)


@pytest.mark.parametrize("function", ["expand_as", "reshape_as", "view_as"])
def test_a_result_of_the_shape_of_another_loses_what_that_loses(function):
    torch.manual_seed(0)
    network, x = ShapedLike(function).eval(), torch.randn(2, 5, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=1, method="magnitude")
    assert pruned.model.first.out_features == pruned.model.gate.out_features < 13
    assert set(pruned.receipts[-1].pinned) == {"head"}
    assert pruned.model(torch.randn(3, 7, 8)).shape == (3, 7, 3)


class Halves(nn.Module):
    """Local and global heads, of which there may be none of one kind: reshapes of empty tensors."""

    def __init__(self, local):
        super().__init__()
        self.keys, self.head, self.local = nn.Linear(8, 32), nn.Linear(32, 3), local

    def forward(self, x):
        samples, tokens, _ = x.shape
        split = self.keys(x).view(samples, tokens, 4, 8).transpose(1, 2)
        parts = [
            part.reshape(-1, tokens, 8).reshape(samples, -1, tokens, 8)
            if part.numel()
            else part.reshape(0, tokens, 8).reshape(samples, 0, tokens, 8)
            for part in (split[:, : self.local], split[:, self.local :])
        ]
        return self.head(torch.relu(torch.cat(parts, dim=1)).transpose(1, 2).reshape(samples, tokens, -1))


def test_empty_tensors_are_reshaped():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    pruned = ifap.prune(Halves(0).eval(), x, [x], target=ifap.Target(macs=0.4), steps=1, method="magnitude")
    assert pruned.model.keys.out_features < 32
    assert pruned.proof.difference < 1e-6


class Scaled(nn.Module):
    """Products summed over the channels of each head, divided by the root of an attribute."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 32) for _ in range(3))
        self.head, self.heads, self.channels = nn.Linear(32, 3), 4, 8

    def forward(self, x):
        q, k, v = (part(x).view(-1, self.heads, self.channels) for part in (self.query, self.key, self.value))
        weight = torch.sigmoid((q * k).sum(-1) / math.sqrt(self.channels))
        return self.head((v * weight.unsqueeze(-1)).view(-1, self.heads * self.channels))


def test_a_number_in_an_attribute_stays_where_the_forward_computes_with_it():
    torch.manual_seed(0)
    network, x = Scaled().eval(), torch.randn(5, 16)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=1, method="magnitude")
    assert pruned.model.channels == 8
    assert set(pruned.receipts[-1].pinned) == {"head"}
    assert pruned.proof.difference < 1e-6
    assert pruned.model(torch.randn(2, 16)).shape == (2, 3)


class WrittenSizes(nn.Module):
    """A forward whose sizes are numbers in its code once `torch.fx` has written it."""

    def __init__(self):
        super().__init__()
        self.up, self.mix, self.head = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.mix(self.up(x).reshape(-1, 4, 8).relu().reshape(-1, 32))
        return self.head(x.relu())


def test_what_a_copy_of_generated_code_would_bring_back_stays():
    network, x = torch.fx.symbolic_trace(WrittenSizes()), torch.randn(4, 8)
    pruned = ifap.prune(network, x, [x], target=ifap.Target(macs=0.5), steps=2, min_units=1, method="magnitude")
    assert (pruned.model.up.out_features, pruned.model.mix.out_features < 24) == (32, True)
    for again in (copy.deepcopy(pruned.model), pickle.loads(pickle.dumps(pruned.model))):
        assert torch.equal(again(x), pruned.model(x))


def test_code_that_wraps_a_function_of_c_is_read():
    @functools.wraps(torch.relu)
    def activation(x):
        return torch.relu(x)

    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head, self.activation = nn.Linear(8, 32), nn.Linear(32, 4), activation

        @functools.wraps(torch.Tensor.softmax)
        def probabilities(self, x):
            return x.softmax(-1)

        def forward(self, x):
            return self.probabilities(self.head(self.activation(self.up(x))))

    x = torch.randn(4, 8)
    pruned = ifap.prune(Wrapping(), x, [x], target=ifap.Target(macs=0.5), steps=2, method="magnitude")
    assert pruned.after.reduction(pruned.before, "macs") >= 0.5
