"""Small networks of every kind, with non-trivial statistics, and the inputs of one forward of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import ifap
from ifap.axes.passes import plain_kernels
from ifap.axes.tensors import holders


@dataclass(frozen=True)
class Network:
    """How to build a network and what one forward takes."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    mixes_channels: bool = False  # a norm over channels: masking a channel is not the same as removing it
    untouched: set[str] = field(default_factory=set)  # layers whose outputs must stay

    def build(self, seed: int = 0) -> nn.Module:
        """Return the network with random weights, biases and running statistics."""
        torch.manual_seed(seed)
        return randomize(self.make(), seed)


NETWORKS: dict[str, Network] = {}


def randomize(model, seed=0):
    """Give every norm random statistics and affine values, and every bias a random value."""
    generator = torch.Generator().manual_seed(seed + 1)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
            is_norm = "Norm" in type(module).__name__
            if is_norm and isinstance(getattr(module, "weight", None), nn.Parameter):
                uniform(module.weight, 0.5, 1.5)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                uniform(module.bias, -0.3, 0.3)
    return model


def image(batch=2, channels=3, size=8):
    return lambda: torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(3))


def tokens(batch=2, length=5, width=16):
    return lambda: torch.randn(batch, length, width, generator=torch.Generator().manual_seed(3))


def ids(batch=2, length=5, vocabulary=11):
    return lambda: torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(3))


def fixed(make):
    """Return a function that makes the same random inputs at every call."""

    def inputs():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return make()

    return inputs


def network(inputs, **options):
    def add(make):
        NETWORKS[make.__name__] = Network(make, inputs, **options)
        return make

    return add


class Lambda(nn.Module):
    """Layers by name, and a forward that uses them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, *args, **kwargs):
        return self._forward(self, *args, **kwargs)


def conv(a, b, kernel=3, **options):
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **options)


def unit(a, b, kernel=3, **options):
    return nn.Sequential(conv(a, b, kernel, bias=False, **options), nn.BatchNorm2d(b), nn.ReLU())


def head(width, classes=4):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


# --- convolutions ---------------------------------------------------------------------------------


@network(image())
def plain():
    return nn.Sequential(unit(3, 12), unit(12, 16), head(16))


@network(image())
def residual():
    def forward(m, x):
        x = m.stem(x)
        x = functional.relu(x + m.second(m.first(x)))
        return m.head(torch.relu(m.down(x) + m.fourth(m.third(x))))

    return Lambda(
        forward, stem=unit(3, 12), first=unit(12, 8), second=conv(8, 12), third=unit(12, 10), fourth=conv(10, 16),
        down=conv(12, 16, 1), head=head(16),
    )  # fmt: skip


@network(image())
def dense():
    def forward(m, x):
        x = m.stem(x)
        for layer in m.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return m.head(x)

    return Lambda(forward, stem=unit(3, 8), layers=nn.ModuleList(unit(8 + 6 * i, 6) for i in range(3)), head=head(26))


@network(image())
def grouped():
    return nn.Sequential(unit(3, 16), unit(16, 32, groups=4), unit(32, 16), unit(16, 8, groups=4), head(8))


@network(image())
def grouped_of_two():
    return nn.Sequential(unit(3, 16), unit(16, 16, groups=8), unit(16, 12), head(12))


@network(image())
def depthwise():
    return nn.Sequential(unit(3, 12), unit(12, 12, groups=12), unit(12, 16, 1), unit(16, 16, groups=16), head(16))


@network(image())
def depthwise_multiplier():
    return nn.Sequential(unit(3, 12), unit(12, 24, groups=12), unit(24, 16, 1), head(16))


@network(image())
def transposed():
    return nn.Sequential(
        unit(3, 12), nn.ConvTranspose2d(12, 16, 2, stride=2), nn.BatchNorm2d(16), nn.ReLU(), unit(16, 8), head(8)
    )


@network(image())
def transposed_grouped():
    return nn.Sequential(
        unit(3, 16), nn.ConvTranspose2d(16, 24, 2, stride=2, groups=4), nn.ReLU(), unit(24, 8), head(8)
    )


@network(image())
def transposed_depthwise():
    return nn.Sequential(
        unit(3, 12), nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12), nn.ReLU(), unit(12, 8), head(8)
    )


@network(image())
def transposed_multiplier():
    return nn.Sequential(
        unit(3, 12), nn.ConvTranspose2d(12, 24, 2, stride=2, groups=12), nn.ReLU(), unit(24, 8), head(8)
    )


@network(fixed(lambda: torch.randn(2, 3, 16)))
def one_dimension():
    return nn.Sequential(
        nn.Conv1d(3, 12, 3), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 10, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip


@network(fixed(lambda: torch.randn(2, 2, 4, 5, 6)))
def three_dimensions():
    return nn.Sequential(
        nn.Conv3d(2, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


@network(image())
def group_norm():
    return nn.Sequential(conv(3, 16), nn.GroupNorm(4, 16), nn.ReLU(), conv(16, 24), nn.GroupNorm(6, 24), head(24))


@network(image())
def group_norm_one_group():
    return nn.Sequential(conv(3, 16), nn.GroupNorm(16, 16), nn.ReLU(), conv(16, 12), nn.ReLU(), head(12))


@network(image())
def instance_norm():
    return nn.Sequential(
        conv(3, 12), nn.InstanceNorm2d(12, affine=True, track_running_stats=True), nn.ReLU(),
        conv(12, 10), nn.InstanceNorm2d(10), nn.ReLU(), conv(10, 8), head(8),
    )  # fmt: skip


@network(image())
def norms_without_affine():
    return nn.Sequential(
        conv(3, 12), nn.BatchNorm2d(12, affine=False), nn.ReLU(), conv(12, 16), nn.GroupNorm(4, 16, affine=False),
        nn.ReLU(), conv(16, 10), nn.BatchNorm2d(10, affine=False, track_running_stats=False), head(10),
    )  # fmt: skip


@network(image())
def prelu():
    return nn.Sequential(conv(3, 12), nn.PReLU(12), conv(12, 10), nn.PReLU(), head(10))


@network(image())
def flatten():
    return nn.Sequential(
        unit(3, 12), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 16, 10), nn.ReLU(), nn.Linear(10, 4)
    )


@network(image())
def flatten_by_view():
    def forward(m, x):
        x = functional.max_pool2d(m.conv(x), 2)
        x = torch.tanh(m.first(x.view(x.size(0), -1)))
        return m.last(x)

    return Lambda(forward, conv=conv(3, 10), first=nn.Linear(160, 12), last=nn.Linear(12, 4))


@network(image())
def squeeze_excite():
    def forward(m, x):
        x = m.a(x)
        gate = m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return m.head(m.b(x * gate))

    return Lambda(
        forward, a=unit(3, 16), down=nn.Conv2d(16, 6, 1), up=nn.Conv2d(6, 16, 1), b=unit(16, 12), head=head(12)
    )


@network(image())
def squeeze_excite_linear():
    def forward(m, x):
        x = m.a(x)
        gate = torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3))))))
        return m.head(m.b(x * gate[:, :, None, None]))

    return Lambda(forward, a=unit(3, 16), down=nn.Linear(16, 6), up=nn.Linear(6, 16), b=unit(16, 12), head=head(12))


@network(image())
def channel_shuffle():
    return nn.Sequential(unit(3, 12), unit(12, 16), nn.ChannelShuffle(4), unit(16, 12), head(12))


@network(image())
def pixel_shuffle():
    return nn.Sequential(unit(3, 12), unit(12, 16), nn.PixelShuffle(2), unit(4, 12), head(12))


@network(image())
def split_channels():
    def forward(m, x):
        a, b = m.stem(x).chunk(2, dim=1)
        return m.head(m.last(a * torch.sigmoid(b)))

    return Lambda(forward, stem=conv(3, 24), last=unit(12, 10), head=head(10))


@network(image())
def gate_of_two_branches():
    return Lambda(lambda m, x: m.head(m.a(x) * m.b(x)), a=unit(3, 14), b=unit(3, 14), head=head(14))


@network(image(size=16))
def unet():
    def forward(m, x):
        a = m.a(x)
        b = m.b(functional.max_pool2d(a, 2))
        c = functional.interpolate(m.c(b), scale_factor=2.0)
        return m.out(m.d(torch.cat([a, c], dim=1)))

    return Lambda(forward, a=unit(3, 8), b=unit(8, 12), c=unit(12, 8), d=unit(16, 10), out=conv(10, 3, 1))


@network(image())
def reused_layer():
    def forward(m, x):
        x = m.stem(x)
        for _ in range(3):
            x = torch.relu(m.body(x))
        return m.head(x)

    return Lambda(forward, stem=unit(3, 12), body=conv(12, 12), head=head(12))


@network(image())
def shared_weights():
    first, second = nn.Linear(12, 10), nn.Linear(12, 10)
    second.weight = first.weight

    def forward(m, x):
        x = m.body(m.stem(x)).mean((2, 3))
        return m.last(torch.relu(m.middle(m.first(x) + m.second(x.tanh()))))

    return Lambda(
        forward, stem=unit(3, 12), body=unit(12, 12), first=first, second=second, middle=nn.Linear(10, 9),
        last=nn.Linear(9, 4),
    )  # fmt: skip


@network(image(channels=6))
def input_added():
    def forward(m, x):
        y = m.b(torch.relu(m.a(x))) + x
        return m.head(m.c(y))

    return Lambda(forward, a=conv(6, 10), b=conv(10, 6), c=unit(6, 12), head=head(12))


@network(image())
def input_concatenated():
    return Lambda(lambda m, x: m.head(m.b(torch.cat([x, m.a(x)], 1))), a=unit(3, 12), b=unit(15, 10), head=head(10))


@network(image())
def frozen():
    model = plain()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model[2][2].bias.requires_grad_(False)
    return model


@network(image())
def entirely_frozen():
    return plain().requires_grad_(False)


@network(image())
def functional_activations():
    def forward(m, x):
        x = functional.hardswish(m.norm(m.a(x)))
        return m.head(functional.relu(m.b(x), inplace=True))

    return Lambda(forward, a=conv(3, 12), norm=nn.BatchNorm2d(12), b=conv(12, 10), head=head(10))


@network(image())
def layer_scale():
    def forward(m, x):
        x = m.stem(x)
        return m.head(x + m.scale[:, None, None] * m.body(x))

    return Lambda(
        forward, stem=unit(3, 12), body=nn.Sequential(conv(12, 20), nn.GELU(), conv(20, 12)),
        scale=nn.Parameter(torch.rand(12)), head=head(12),
    )  # fmt: skip


@network(image())
def layer_scale_4d():
    def forward(m, x):
        x = m.stem(x)
        return m.head(x + m.scale * m.body(x))

    return Lambda(
        forward, stem=unit(3, 12), body=nn.Sequential(conv(12, 20), nn.GELU(), conv(20, 12)),
        scale=nn.Parameter(torch.rand(1, 12, 1, 1)), head=head(12),
    )  # fmt: skip


@network(image())
def buffer_added():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = unit(3, 12), head(12)
            self.register_buffer("shift", torch.rand(1, 12, 1, 1))
            self.register_buffer("unsaved", torch.rand(1, 12, 1, 1), persistent=False)

        def forward(self, x):
            return self.head(self.stem(x) + self.shift + self.unsaved)

    return Net()


@network(image())
def concatenated_with_itself():
    def forward(m, x):
        x = m.a(x)
        return m.head(m.b(torch.cat([x, torch.tanh(x)], dim=1)))

    return Lambda(forward, a=unit(3, 10), b=unit(20, 8), head=head(8))


# --- inputs and outputs ---------------------------------------------------------------------------


@network(fixed(lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 5))))
def two_inputs():
    def forward(m, x, vector):
        return m.last(torch.relu(m.a(x).mean((2, 3)) + m.b(vector)))

    return Lambda(forward, a=unit(3, 12), b=nn.Linear(5, 12), last=nn.Linear(12, 4))


@network(fixed(lambda: {"picture": torch.randn(2, 3, 8, 8), "word": torch.tensor([3, 0])}))
def dict_inputs():
    def forward(m, word, picture):
        return {"logits": m.last(torch.cat([m.a(picture).mean((2, 3)), m.b(word)], dim=1))}

    return Lambda(forward, a=unit(3, 12), b=nn.Embedding(7, 10), last=nn.Linear(22, 4))


@network(image())
def two_outputs():
    def forward(m, x):
        x = m.stem(x)
        return m.a(x), [m.b(x)]

    return Lambda(forward, stem=unit(3, 14), a=nn.Sequential(unit(14, 8), head(8)), b=head(14, 2))


@network(image(), untouched={"features.0"})
def features_returned():
    def forward(m, x):
        x = m.features(x)
        return m.head(m.middle(x)), x

    return Lambda(forward, features=unit(3, 10), middle=unit(10, 12), head=head(12))


# --- tokens ---------------------------------------------------------------------------------------


@network(tokens(), mixes_channels=True)
def layer_norm():
    def forward(m, x):
        x = m.embed(x)
        x = x + m.fc2(functional.gelu(m.fc1(m.norm(x))))
        return m.head(m.last(x).mean(1))

    return Lambda(
        forward, embed=nn.Linear(16, 12), norm=nn.LayerNorm(12), fc1=nn.Linear(12, 20), fc2=nn.Linear(20, 12),
        last=nn.LayerNorm(12, elementwise_affine=False), head=nn.Linear(12, 4),
    )  # fmt: skip


@network(fixed(lambda: torch.randn(4, 10)))
def perceptron():
    return nn.Sequential(
        nn.Linear(10, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(24, 16),
        nn.GELU(),
        nn.Linear(16, 3),
    )


def self_attention(batch_first):
    def forward(m, x):
        x = m.embed(x)
        x = x + m.attention(x, x, x, need_weights=False)[0]
        return m.head(x.mean(1 if batch_first else 0))

    return Lambda(
        forward,
        embed=nn.Linear(16, 16),
        attention=nn.MultiheadAttention(16, 4, batch_first=batch_first),
        head=nn.Linear(16, 3),
    )


@network(tokens())
def self_attention_batch_first():
    return self_attention(True)


@network(tokens())
def self_attention_tokens_first():
    return self_attention(False)


def cross_attention(batch_first):
    def forward(m, x, memory):
        x = m.embed(x)
        y, _ = m.attention(x, memory, memory)
        return m.head(torch.relu(m.mix(x + y)))

    return Lambda(
        forward, embed=nn.Linear(16, 16), mix=nn.Linear(16, 12), head=nn.Linear(12, 3),
        attention=nn.MultiheadAttention(16, 4, batch_first=batch_first, kdim=10, vdim=10, bias=False),
    )  # fmt: skip


@network(fixed(lambda: (torch.randn(2, 5, 16), torch.randn(2, 7, 10))))
def cross_attention_batch_first():
    return cross_attention(True)


@network(fixed(lambda: (torch.randn(5, 2, 16), torch.randn(7, 2, 10))))
def cross_attention_tokens_first():
    return cross_attention(False)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, **options)
    mean = 1 if options.get("batch_first") else 0
    return Lambda(
        lambda m, x: m.head(m.layers(m.embed(x)).mean(mean)),
        embed=nn.Linear(16, 16), head=nn.Linear(16, 3),
        layers=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    )  # fmt: skip


@network(tokens(), mixes_channels=True)
def encoder_batch_first():
    return encoder(batch_first=True)


@network(tokens(), mixes_channels=True)
def encoder_tokens_first():
    return encoder(norm_first=True, activation="gelu")


@network(fixed(lambda: (torch.randn(2, 4, 16), torch.randn(2, 6, 16))), mixes_channels=True)
def decoder():
    return Lambda(
        lambda m, x, memory: m.head(m.layer(m.embed(x), m.memory(memory))),
        embed=nn.Linear(16, 16), memory=nn.Linear(16, 16), head=nn.Linear(16, 3),
        layer=nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, batch_first=True),
    )  # fmt: skip


class FusedAttention(nn.Module):
    """Query, key and value from one layer, with the attributes that such blocks have."""

    def __init__(self, width=16, heads=4, qk_norm=False):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (self.q_norm(q) * self.scale) @ self.k_norm(k).transpose(-2, -1)
        x = (weights.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
        return self.proj(x)


@network(tokens())
def fused_qkv():
    def forward(m, x):
        x = m.embed(x)
        return m.head(torch.relu(m.mix(x + m.attention(x))).mean(1))

    return Lambda(
        forward, embed=nn.Linear(16, 16), attention=FusedAttention(), mix=nn.Linear(16, 12), head=nn.Linear(12, 3)
    )


@network(tokens(), mixes_channels=True)
def fused_qkv_with_norms():
    def forward(m, x):
        x = m.embed(x)
        return m.head((x + m.attention(m.norm(x))).mean(1))

    return Lambda(
        forward,
        embed=nn.Linear(16, 16),
        norm=nn.LayerNorm(16),
        attention=FusedAttention(qk_norm=True),
        head=nn.Linear(16, 3),
    )


@network(image(), mixes_channels=True)
def vit():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            self.cls = nn.Parameter(torch.rand(1, 1, 16))
            self.position = nn.Parameter(torch.rand(1, 5, 16))
            self.register_buffer("grid", torch.rand(5, 16))
            self.norm1, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)
            self.norm2, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.position + self.grid
            y = self.norm1(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
            return self.head(self.norm(x)[:, 0])

    return Net()


@network(ids())
def embedding():
    def forward(m, word):
        x = m.words(word) + m.places(torch.arange(word.shape[1], device=word.device))
        return m.last(torch.relu(m.first(x)))

    return Lambda(
        forward, words=nn.Embedding(11, 14), places=nn.Embedding(5, 14), first=nn.Linear(14, 10), last=nn.Linear(10, 11)
    )


@network(ids())
def tied_embedding():
    def forward(m, word):
        x = m.words(word)
        return m.out(x + m.second(torch.relu(m.first(x))))

    model = Lambda(
        forward,
        words=nn.Embedding(11, 14),
        first=nn.Linear(14, 20),
        second=nn.Linear(20, 14),
        out=nn.Linear(14, 11, bias=False),
    )
    model.out.weight = model.words.weight
    return model


# --- what the tests do with them ------------------------------------------------------------------


def batches(net, number=2):
    """Return calibration batches: the inputs, a little different each time."""
    generator = torch.Generator().manual_seed(5)

    def shift(tensor):
        if not tensor.is_floating_point():
            return tensor
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)

    return [map_structure(net.inputs(), shift) for _ in range(number)]


def map_structure(tree, function):
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_structure(value, function) for key, value in tree.items()}
    return type(tree)(map_structure(value, function) for value in tree)


def run(model, inputs):
    """Return every output tensor of one forward, in order."""
    if isinstance(inputs, dict):
        return leaves(model(**inputs))
    return leaves(model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs))


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if tree is None:
        return []
    return [leaf for item in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(item)]


def double(inputs):
    return map_structure(inputs, lambda t: t.double() if t.is_floating_point() else t)


def prune(model, inputs, data=None, *, macs=None, params=None, **options):
    """Prune with defaults for tests: the paper's method, two iterations, low floors."""
    target = ifap.Target(macs=0.4) if macs is None and params is None else ifap.Target(macs=macs, params=params)
    options = {"steps": 2, "min_units": 1, "method": "ifap", **options}
    return ifap.prune(model, inputs, [inputs] if data is None else data, target=target, **options)


def masked(model, plan):
    """Return a copy of the unpruned network that ignores every position that the plan does not keep."""
    full = copy.deepcopy(model)
    modules = dict(full.named_modules())
    tensors = {name: tensor for name, tensor, _ in holders(full)}
    with torch.no_grad():
        for name, by_side in plan.kept.items():
            for side, kept in by_side.items():
                if side == "in":
                    width = getattr(modules[name], "in_features", None) or modules[name].in_channels
                    mask_inputs(modules[name], sorted(set(range(width)) - set(kept)))
                elif side == "out":
                    if isinstance(modules[name], nn.Embedding):  # whose weight an output layer may share
                        modules[name].weight[:, sorted(set(range(modules[name].embedding_dim)) - set(kept))] = 0
                else:
                    dim = int(side.removeprefix("dim"))
                    lost = sorted(set(range(tensors[name].shape[dim])) - set(kept))
                    tensors[name].index_fill_(dim, torch.tensor(lost), 0)
    return full


def assert_equivalent(model, pruned, inputs, mixes_channels=False):
    """Check that a pruned network computes what the unpruned one does without the units that went."""
    full, small = masked(model, pruned.plan), copy.deepcopy(pruned.model)
    if mixes_channels:
        without_layer_norm(full)
        without_layer_norm(small)
    with torch.no_grad(), plain_kernels():
        expected, got, whole = run(full.eval(), inputs), run(small.eval(), inputs), run(model.eval(), inputs)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    # The masks removed something that counted, so that the comparison says something.
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(expected, whole, strict=True))


def mask_inputs(layer, lost):
    """Zero the weights that read the input positions `lost`, in place."""
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        layer.weight[lost] = 0
    elif isinstance(layer, nn.Linear) or layer.groups == 1:
        layer.weight[:, lost] = 0
    else:
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for position in lost:
            group = position // inputs
            layer.weight[group * outputs : (group + 1) * outputs, position % inputs] = 0


def without_layer_norm(model):
    """Let every layer norm only scale and shift, which removing a channel and masking it agree on."""

    def affine(module):
        def forward(x):
            if module.weight is None:
                return x
            shape = (-1, 1, 1) if type(module).__name__ == "LayerNorm2d" else (-1,)
            return x * module.weight.reshape(shape) + module.bias.reshape(shape)

        return forward

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = affine(module)
    return model
