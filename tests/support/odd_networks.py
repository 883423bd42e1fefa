"""Tiny networks whose operations handle widths in unusual ways, one kind each."""

from __future__ import annotations

import random

import numpy as np
import torch
from axes_networks import Net, kind
from networks import fixed, head, image, tokens, unit
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_align


@kind(image())
def recurrent_layers():
    class Recurrent(Net):
        def forward(self, x):
            x = self.body(x).flatten(2).transpose(1, 2)
            states, _ = self.lstm(x)
            both, last = self.gru(self.mix(states))
            return self.head(torch.cat([both[:, -1], last.mean(0)], dim=1))

    return Recurrent(
        body=unit(3, 12),
        lstm=nn.LSTM(12, 14, proj_size=9, num_layers=2, batch_first=True),
        mix=nn.Linear(9, 16),
        gru=nn.GRU(16, 10, bidirectional=True, batch_first=True),
        head=nn.Linear(30, 3),
    )


@kind(tokens())
def recurrent_cells():
    class Cells(Net):
        def forward(self, x):
            state = self.start.expand(x.shape[0], -1)
            for step in x.unbind(1):
                state = self.cell(self.embed(step), state)
            return self.head(state)

    network = Cells(embed=nn.Linear(16, 12), cell=nn.GRUCell(12, 14), head=nn.Linear(14, 3))
    network.start = nn.Parameter(torch.randn(1, 14))
    return network


@kind(image(batch=4))
def shift_of_an_eighth_of_the_channels():
    class Shift(Net):
        def forward(self, x):
            x = self.a(x)
            frames = x.view(2, 2, *x.shape[1:])
            part = x.shape[1] // 8
            moved = torch.zeros_like(frames)
            moved[:, :-1, :part] = frames[:, 1:, :part]
            moved[:, :, part:] = frames[:, :, part:]
            return self.head(self.b(moved.view(x.shape)))

    return Shift(a=unit(3, 24), b=unit(24, 16), head=head(16))


@kind(image())
def norm_over_channels_and_places():
    return nn.Sequential(unit(3, 12), nn.LayerNorm((12, 8, 8)), unit(12, 16), unit(16, 12), head(12))


@kind(tokens())
def one_weight_forth_and_back():
    class Tied(Net):
        def forward(self, x):
            x = torch.relu(functional.linear(x, self.weight, self.up))
            return self.head(torch.relu(functional.linear(self.mix(x), self.weight.t(), self.down)))

    network = Tied(mix=nn.Linear(24, 24), head=nn.Linear(16, 3))
    network.weight = nn.Parameter(torch.randn(24, 16) / 4)
    network.up, network.down = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(16))
    return network


@kind(fixed(lambda: torch.randn(2, 5, 16, dtype=torch.complex64)))
def complex_numbers():
    class Complex(Net):
        def forward(self, x):
            x = self.b(self.a(x) * torch.sigmoid(self.a(x).abs()))
            return self.head(torch.view_as_real(x).square().sum(-1))

    return Complex(
        a=nn.Linear(16, 24, dtype=torch.cfloat), b=nn.Linear(24, 12, dtype=torch.cfloat), head=nn.Linear(12, 3)
    )


@kind(image())
def products_of_frequencies():
    class Frequencies(Net):
        def forward(self, x):
            x = self.a(x)
            found = torch.zeros(*x.shape[:3], 5, dtype=torch.cfloat)
            found[..., :3] = torch.einsum("bihw,io->bohw", torch.fft.rfft2(x)[..., :3], self.weight)
            return self.head(self.b(x + torch.fft.irfft2(found, s=x.shape[-2:])))

    network = Frequencies(a=unit(3, 12), b=unit(12, 10), head=head(10))
    network.weight = nn.Parameter(torch.randn(12, 12, dtype=torch.cfloat) / 4)
    return network


@kind(image())
def gate_by_the_largest_channel():
    class Gate(Net):
        def forward(self, x):
            x = self.a(x)
            largest = torch.cat([x.max(1, keepdim=True).values, x.amin(1, keepdim=True)], dim=1)
            return self.head(self.b(x * torch.sigmoid(self.gate(largest))))

    return Gate(a=unit(3, 16), gate=nn.Conv2d(2, 1, 3, padding=1), b=unit(16, 14), head=head(14))


@kind(image())
def branch_that_the_sample_does_not_take():
    class Branches(Net):
        def forward(self, x):
            x = self.a(x)
            return self.head(self.b(x) if x.mean() > 1e3 else self.c(x))

    return Branches(a=unit(3, 12), b=unit(12, 16), c=unit(12, 16), head=head(16))


@kind(fixed(lambda: (torch.randint(0, 20, (12,)), torch.tensor([0, 5]))))
def bags_of_words():
    class Bags(Net):
        def forward(self, words, starts):
            return self.head(torch.relu(self.mix(self.embed(words, starts))))

    return Bags(embed=nn.EmbeddingBag(20, 24), mix=nn.Linear(24, 16), head=nn.Linear(16, 3))


@kind(tokens())
def bilinear_layer():
    class Pairs(Net):
        def forward(self, x):
            return self.head(torch.relu(self.pairs(torch.relu(self.a(x)), torch.tanh(self.b(x)))))

    return Pairs(a=nn.Linear(16, 10), b=nn.Linear(16, 12), pairs=nn.Bilinear(10, 12, 14), head=nn.Linear(14, 3))


class MaskedLinear(nn.Linear):
    """Keeps some weights away from its outputs, as autoregressive networks do."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.rand(outputs, inputs) < 0.6)

    def forward(self, x):
        return functional.linear(x, self.mask * self.weight, self.bias)


@kind(tokens())
def weights_under_masks_of_truth_values():
    return nn.Sequential(MaskedLinear(16, 32), nn.ReLU(), MaskedLinear(32, 24), nn.ReLU(), MaskedLinear(24, 3))


@kind(tokens(length=8))
def attention_to_relative_places():
    class Relative(Net):
        def forward(self, x):
            samples, length, _ = x.shape
            q, k, v = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1))
            shift = torch.einsum("bhld,hrd->bhlr", q, self.places)
            shift = functional.pad(shift, (0, 1)).reshape(samples, len(self.places), 2 * length * length)
            shift = functional.pad(shift, (0, length - 1)).reshape(samples, -1, length + 1, 2 * length - 1)
            weights = (q @ k.transpose(-1, -2) + shift[:, :, :length, length - 1 :]).softmax(dim=-1)
            return self.head((weights @ v).transpose(1, 2).flatten(2))

    return Relative(qkv=nn.Linear(16, 96), places=nn.Parameter(torch.randn(4, 15, 8)), head=nn.Linear(32, 3))


class Scripted(nn.Module):
    """Compiled by TorchScript, so that nothing inside can be cut."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.mix(x)) + x


@kind(image())
def scripted_part():
    return nn.Sequential(unit(3, 12), torch.jit.script(Scripted()), unit(12, 48), unit(48, 32), head(32))


@kind(tokens())
def mapped_over_the_batch():
    class Mapped(Net):
        def forward(self, x):
            return self.head(torch.vmap(lambda sample: torch.relu(self.b(torch.relu(self.a(sample)))))(x))

    return Mapped(a=nn.Linear(16, 24), b=nn.Linear(24, 20), head=nn.Linear(20, 3))


@kind(lambda: (image()(), torch.tensor([[1.0, 1, 1, 6, 6], [0, 2, 2, 7, 5], [1, 0, 0, 5, 5]])))
def boxes_of_samples():
    class Boxes(Net):
        def forward(self, x, boxes):
            return self.head(torch.relu(self.mix(roi_align(self.a(x), boxes, (2, 2), 1.0, 2).flatten(1))))

    return Boxes(a=unit(3, 12), mix=nn.Linear(48, 16), head=nn.Linear(16, 3))


@kind(fixed(lambda: torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)))
def bytes_as_images():
    class Bytes(Net):
        def forward(self, x):
            return self.head(self.b(self.a(x / 255)))

    return Bytes(a=unit(3, 12), b=unit(12, 16), head=head(16))


@kind(image())
def divided_by_the_number_of_values():
    class Divided(Net):
        def forward(self, x):
            x = self.a(x)
            return self.head(self.b(x * (x.shape[0] / x.numel()) ** 0.5 * 10))

    return Divided(a=unit(3, 24), b=unit(24, 16), head=head(16))


@kind(image())
def pooled_and_unpooled():
    class Unpooled(Net):
        def forward(self, x):
            pooled, places = nn.functional.max_pool2d(self.a(x), 2, return_indices=True)
            return self.head(nn.functional.max_unpool2d(self.b(pooled), places, 2))

    return Unpooled(a=unit(3, 16), b=unit(16, 16), head=head(16))


@kind(tokens())
def attention_over_recurrent_states():
    class Attended(Net):
        def forward(self, x):
            states = self.states(x)[0]
            weights = self.score(torch.tanh(states)).squeeze(-1).softmax(1)
            return self.head(torch.bmm(weights[:, None], states).squeeze(1))

    return Attended(states=nn.GRU(16, 24, batch_first=True), score=nn.Linear(24, 1), head=nn.Linear(24, 3))


@kind(fixed(lambda: torch.randn(6, 8)))
def products_with_a_sparse_matrix():
    class Neighbours(Net):
        def forward(self, x):
            near = (torch.arange(len(x))[:, None] - torch.arange(len(x))).abs().le(1).to(x.dtype).to_sparse()
            return self.head(torch.sparse.mm(near, torch.relu(self.a(x))))

    return Neighbours(a=nn.Linear(8, 24), head=nn.Linear(24, 3))


class OwnAttention(nn.MultiheadAttention):
    """Torch's attention with a method beside its forward."""

    def attend(self, x):
        return self(x, x, x, need_weights=False)[0]


@kind(tokens())
def attention_of_a_class_of_its_own():
    class Attending(Net):
        def forward(self, x):
            x = self.embed(x)
            return self.head((x + self.attention.attend(x)).mean(1))

    return Attending(embed=nn.Linear(16, 24), attention=OwnAttention(24, 4, batch_first=True), head=nn.Linear(24, 3))


class Fusable(nn.Module):
    """A block with a second forward, which some libraries put in place of the first."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 24), nn.Linear(12, 16)

    def forward(self, x):
        raise NotImplementedError

    def forward_fused(self, x):
        return self.b(self.a(x).reshape(*x.shape[:2], 2, 12).sum(2))


@kind(tokens())
def a_forward_set_on_the_instance():
    class Fused(Net):
        def forward(self, x):
            return self.head(self.block(x).mean(1))

    network = Fused(block=Fusable(), head=nn.Linear(16, 3))
    network.block.forward = network.block.forward_fused
    return network


@kind(image())
def layer_norm_over_channels_of_one_place():
    return nn.Sequential(unit(3, 16), nn.AdaptiveAvgPool2d(1), nn.LayerNorm([16, 1, 1]), unit(16, 20, 1), head(20))


@kind(image())
def a_sample_of_a_gaussian():
    class Sampled(Net):
        def forward(self, x):
            x = self.body(x).flatten(1)
            mean, spread = self.mean(x), self.spread(x)
            z = mean + torch.randn_like(spread) * torch.exp(0.5 * spread)
            return self.head(functional.dropout(z, 0.2, training=True))

    body = nn.Sequential(unit(3, 12), nn.AdaptiveAvgPool2d(2))
    return Sampled(body=body, mean=nn.Linear(48, 16), spread=nn.Linear(48, 16), head=nn.Linear(16, 3))


@kind(image())
def noise_from_other_generators():
    class Noisy(Net):
        def forward(self, x):
            x = self.a(x) * (1 + 0.1 * random.random()) + float(np.random.rand())  # noqa: NPY002
            return self.head(self.b(x))

    return Noisy(a=unit(3, 12), b=unit(12, 16), head=head(16))


class AssertingAttention(nn.Module):
    """Attention that asserts its width, and takes it for that of its heads."""

    def __init__(self):
        super().__init__()
        self.embed_dim, self.heads = 24, 4
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x):
        batch, tokens, width = x.shape
        assert width == self.embed_dim
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.embed_dim))


@kind(tokens())
def attention_that_asserts_its_width():
    class Asserting(Net):
        def forward(self, x):
            x = self.embed(x)
            return self.head((x + self.attention(x)).mean(1))

    return Asserting(embed=nn.Linear(16, 24), attention=AssertingAttention(), head=nn.Linear(24, 3))


@kind(fixed(lambda: (torch.randn(2, 5, 16), torch.randn(2, 4, 16))))
def torchs_own_transformer():
    class Translator(Net):
        def forward(self, source, target):
            return self.head(self.transformer(self.source(source), self.target(target)))

    transformer = nn.Transformer(24, 4, 1, 1, 32, batch_first=True)
    return Translator(
        source=nn.Linear(16, 24), target=nn.Linear(16, 24), transformer=transformer, head=nn.Linear(24, 3)
    )


@kind(tokens())
def a_template_that_nothing_runs():
    class Copied(Net):
        def forward(self, x):
            return self.head(self.encoder(self.embed(x)).mean(1))

    template = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(template, 2, enable_nested_tensor=False)
    return Copied(embed=nn.Linear(16, 24), template=template, encoder=encoder, head=nn.Linear(24, 3))
