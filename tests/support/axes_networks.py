"""Tiny networks that do unusual things with their widths, one kind each."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from networks import Network, conv, fixed, head, image, tokens, unit
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

KINDS: dict[str, Network] = {}


def kind(inputs):
    def add(make):
        KINDS[make.__name__] = Network(make, inputs)
        return make

    return add


class Net(nn.Module):
    """Layers by name; the forward is that of the kind."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


@kind(image())
def halves_of_a_chunk():
    class Half(Net):
        def forward(self, x):
            a, b = self.a(x).chunk(2, dim=1)
            return self.head(torch.cat([self.b(a), b], dim=1))

    return Half(a=unit(3, 24), b=unit(12, 12), head=head(24))


@kind(image())
def groups_inside_groups():
    return nn.Sequential(
        unit(3, 16), unit(16, 32, groups=4), unit(32, 32, groups=8), nn.ChannelShuffle(2), unit(32, 16, groups=2),
        head(16),
    )  # fmt: skip


@kind(image())
def squares():
    """The same axis twice in one product: the channels of each sample with each other."""

    class Gram(Net):
        def forward(self, x):
            x = self.a(x).flatten(2)
            return self.last(torch.relu(self.gram(x @ x.transpose(1, 2)).mean(1)))

    return Gram(a=unit(3, 10), gram=nn.Linear(10, 16), last=nn.Linear(16, 4))


@kind(tokens())
def attention_reshaped_to_the_width_of_its_input():
    class Block(Net):
        def forward(self, x):
            batch, length, width = x.shape
            q, k, v = self.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
            p = (q @ k.transpose(-2, -1) * (width // 4) ** -0.5).softmax(-1)
            return self.proj((p @ v).transpose(1, 2).reshape(batch, length, width))

    class Whole(Net):
        def forward(self, x):
            return self.head(self.mix(x + self.block(x)).relu().mean(1))

    return Whole(
        block=Block(qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16)), mix=nn.Linear(16, 24), head=nn.Linear(24, 3)
    )


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    aside: dict


@kind(image())
def dataclass_outputs():
    class Answers(Net):
        def forward(self, x):
            x = self.b(self.a(x))
            return Answer(self.head(x), {"mean": self.aside(x.mean((2, 3)))})

    return Answers(a=unit(3, 16), b=unit(16, 12), head=head(12), aside=nn.Linear(12, 2))


@kind(image())
def tensor_in_a_plain_attribute():
    class Scaled(Net):
        def __init__(self, **layers):
            super().__init__(**layers)
            self.shift = torch.linspace(-1, 1, 12).reshape(1, 12, 1, 1)
            self.tables = [torch.linspace(0.5, 1.5, 12)]

        def forward(self, x):
            return self.head(self.b((self.a(x) + self.shift) * self.tables[0][:, None, None]))

    return Scaled(a=unit(3, 12), b=unit(12, 10), head=head(10))


@kind(image())
def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(conv(12, 16))
    return nn.Sequential(unit(3, 12), layer, nn.ReLU(), unit(16, 10), head(10))


@kind(image())
def weights_with_bounded_norms():
    class Bounded(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, torch.renorm(self.weight, 2, 0, 1.0), self.bias)

    depthwise = Bounded(12, 24, 3, padding=1, groups=12, bias=False)
    return nn.Sequential(unit(3, 12), depthwise, nn.BatchNorm2d(24), unit(24, 10), head(10))


@kind(image())
def masked_by_torchs_own_pruning():
    layer = conv(12, 16)
    prune.random_unstructured(layer, "weight", 0.3)
    return nn.Sequential(unit(3, 12), layer, nn.ReLU(), unit(16, 10), head(10))


@kind(fixed(lambda: torch.randn(3, 8).abs()))
def experts_that_the_sample_does_not_reach():
    class Experts(Net):
        def forward(self, x):
            x = self.embed(x)
            best = int(self.router(x).mean(0).argmax())
            return self.head(x + self.experts[best](x))

    return Experts(
        embed=nn.Linear(8, 12),
        router=nn.Linear(12, 3),
        experts=nn.ModuleList(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)) for _ in range(3)),
        head=nn.Linear(12, 4),
    )


@kind(tokens())
def attention_by_the_function():
    class Direct(Net):
        def __init__(self):
            super().__init__(embed=nn.Linear(16, 16), mix=nn.Linear(16, 128), head=nn.Linear(128, 3))
            self.weight, self.bias = nn.Parameter(torch.randn(48, 16) / 4), nn.Parameter(torch.zeros(48))
            self.out = nn.Linear(16, 16)

        def forward(self, x):
            x = self.embed(x).transpose(0, 1)
            y, _ = functional.multi_head_attention_forward(
                x, x, x, 16, 4, self.weight, self.bias, None, None, False, 0.0, self.out.weight, self.out.bias,
                need_weights=False,
            )  # fmt: skip
            return self.head(torch.relu(self.mix(x + y)).transpose(0, 1))

    return Direct()


@kind(image())
def loads_its_state_by_itself():
    class Renamed(Net):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "old"] = destination.pop(prefix + "scale")

        def _load_from_state_dict(self, state, prefix, *args):
            if prefix + "old" in state:
                state[prefix + "scale"] = state.pop(prefix + "old").reshape(1, 12, 1, 1)
            super()._load_from_state_dict(state, prefix, *args)

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    part = Renamed(a=unit(3, 12), b=unit(12, 10))
    part.scale = nn.Parameter(torch.rand(1, 12, 1, 1) + 0.5)
    return nn.Sequential(part, head(10))


@kind(lambda: (image()(), 2, True))
def integers_and_flags_among_the_arguments():
    class Repeated(Net):
        def forward(self, x, times, doubled):
            x = self.a(x)
            for _ in range(times):
                x = x + self.b(x)
            return self.head(x * 2 if doubled else x)

    return Repeated(a=unit(3, 12), b=unit(12, 12), head=head(12))


@kind(image())
def width_written_into_the_forward():
    class Written(Net):
        def forward(self, x):
            x = self.a(x).view(-1, 3, 4, 8, 8).sum(1)
            return self.head(self.b(x))

    return Written(a=unit(3, 12), b=unit(4, 10), head=head(10))


@kind(tokens())
def bare_weights():
    class Bare(Net):
        def __init__(self):
            super().__init__(head=nn.Linear(16, 3))
            self.up, self.down = nn.Parameter(torch.randn(16, 24) / 4), nn.Parameter(torch.randn(16, 24) / 4)
            self.scale = nn.Parameter(torch.rand(24) + 0.5)

        def forward(self, x):
            x = x + functional.linear(torch.relu(x @ self.up) * self.scale, self.down)
            return self.head(x.mean(1))

    return Bare()
