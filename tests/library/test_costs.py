"""Counted multiply-accumulates against formulas written down by hand, and published base values."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, FusedAttention, head, unit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ifap
from ifap.axes.attention import adopt
from ifap.axes.fakes import quick
from ifap.axes.passes import data_free
from ifap.costs import NetworkError, cost, macs_by_module, nonzero_macs, shapes_without_data
from ifap.forward import call


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("stride", "padding", "groups", "dilation"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 1, 4, 1), (2, 2, 4, 2), (1, 1, 12, 1)],
)
def test_convolution(stride, padding, groups, dilation, bias):
    layer = nn.Conv2d(12, 24, (3, 5), stride, padding, dilation, groups, bias=bias)
    x = torch.randn(2, 12, 16, 20)
    height = (16 + 2 * padding - dilation * 2 - 1) // stride + 1
    width = (20 + 2 * padding - dilation * 4 - 1) // stride + 1
    cost = ifap.cost(layer, x)
    assert cost.macs == 2 * 24 * height * width * (12 // groups) * 15
    assert cost.params == 24 * 12 // groups * 15 + 24 * bias


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution(groups):
    layer = nn.ConvTranspose2d(8, 12, 3, stride=2, groups=groups)
    # every input position is multiplied with the whole kernel
    assert ifap.cost(layer, torch.randn(2, 8, 5, 6)).macs == 2 * 5 * 6 * 8 * 12 // groups * 9


def test_other_dimensions():
    assert ifap.cost(nn.Conv1d(4, 6, 3), torch.randn(2, 4, 10)).macs == 2 * 8 * 6 * 4 * 3
    assert ifap.cost(nn.Conv3d(2, 4, 2), torch.randn(1, 2, 4, 5, 6)).macs == 3 * 4 * 5 * 4 * 2 * 8


def test_linear_on_any_rank():
    for shape in ((7,), (2, 7), (2, 5, 7), (2, 3, 5, 7)):
        x = torch.randn(*shape)
        assert ifap.cost(nn.Linear(7, 3), x).macs == x.numel() // 7 * 7 * 3


def test_what_is_not_counted():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(1, 3))
    assert ifap.cost(model, torch.randn(1, 3, 8, 8)).macs == 0


def attention_macs(batch, queries, keys, width, kdim, vdim):
    projections = batch * (queries * width * width * 2 + keys * width * (kdim + vdim))
    return projections + 2 * batch * queries * keys * width


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention(need_weights, training, shaped, cross):
    kdim, vdim, keys = (10, 12, 7) if cross else (16, 16, 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            options = {"kdim": 10, "vdim": 12} if cross else {}
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

        def forward(self, x, k, v):
            return self.attention(x, k, v, need_weights=need_weights)[0]

    model = Net().train(training)
    params = ifap.cost(model, (torch.randn(3, 5, 16), torch.randn(3, keys, kdim), torch.randn(3, keys, vdim))).params
    if shaped:
        assert adopt(model) == ["attention"]
    x = torch.randn(3, 5, 16)
    inputs = (x, torch.randn(3, keys, kdim), torch.randn(3, keys, vdim)) if cross else (x, x, x)
    cost = ifap.cost(model, inputs)
    assert cost.macs == attention_macs(3, 5, keys, 16, kdim, vdim)
    assert cost.params == params == 16 * (16 + kdim + vdim) + 48 + 16 * 16 + 16


def test_encoder_layer_counts_the_same_on_every_path():
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    expected = attention_macs(2, 5, 5, 16, 16, 16) + 2 * 2 * 5 * 16 * 24
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert ifap.cost(layer.eval(), x).macs == expected  # would take the fused path
    assert ifap.cost(layer.train(), x).macs == expected
    other = copy.deepcopy(layer)
    assert adopt(other) == ["self_attn"]
    assert ifap.cost(other, x).macs == expected


def test_fused_attention_with_plain_products():
    assert ifap.cost(nn.Sequential(FusedAttention()), torch.randn(2, 5, 16)).macs == attention_macs(2, 5, 5, 16, 16, 16)


def test_shared_parameters_are_counted_once_and_shared_layers_each_time():
    net = NETWORKS["tied_embedding"]
    assert ifap.cost(net.build(), net.inputs()).params == 11 * 14 + 14 * 20 + 20 + 20 * 14 + 14
    reused = NETWORKS["reused_layer"]
    by_module = macs_by_module(reused.build(), reused.inputs())
    assert by_module["body"] == 3 * 2 * 64 * 12 * 12 * 9


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parts_add_up_and_network_is_untouched(name):
    net = NETWORKS[name]
    model = net.build().train()
    before = {n: (id(t), t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    cost = ifap.cost(model, net.inputs())
    parts = macs_by_module(model, net.inputs())
    assert sum(parts.values()) == cost.macs > 0
    assert parts.keys() <= dict(model.named_modules()).keys()
    after = model.state_dict(keep_vars=True)
    assert all(id(after[n]) == i and torch.equal(after[n], t) for n, (i, t) in before.items())
    assert all(module.training for module in model.modules())


def test_forward_that_looks_at_values_is_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 6)

        def forward(self, x):
            return self.body(x) if x.sum().item() != 0 else x

    model = Net().train()
    assert ifap.cost(model, torch.ones(2, 4)).macs == 48
    assert model.training


def test_half_precision_is_counted():
    model = nn.Sequential(unit(3, 8), head(8))
    x = torch.randn(1, 3, 8, 8)
    assert ifap.cost(copy.deepcopy(model).half(), x.half()) == ifap.cost(model, x)


def test_reduction():
    whole, part = ifap.Cost(200, 50), ifap.Cost(50, 40)
    assert part.reduction(whole, "macs") == 0.75
    assert part.reduction(whole, "params") == pytest.approx(0.2)
    assert part.reduction(ifap.Cost(0, 0), "macs") == 0.0


def test_costs_are_equal_where_only_one_of_them_knows_time_and_memory():
    assert ifap.Cost(200, 50, latency=1.5, bytes=200) == ifap.Cost(200, 50)
    assert ifap.Cost(200, 50) != ifap.Cost(200, 51)


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnet50", 4.089),
        ("vit_b_16", 17.56),
        ("densenet121", 2.834),
        ("mobilenet_v3_large", 0.217),
        ("shufflenet_v2_x2_0", 0.583),
        ("convnext_small", 8.684),
    ],
)
def test_base_values_of_torchvision_networks(name, gmacs):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    digits = len(str(gmacs).split(".")[1])
    assert round(ifap.cost(model, torch.randn(1, 3, 224, 224)).macs / 1e9, digits) == pytest.approx(
        gmacs, abs=10**-digits
    )


def test_products_with_zero_weights_are_left_out_of_the_theoretical_macs():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    inputs = torch.zeros(1, 3, 4, 4)
    assert nonzero_macs(net, inputs) == cost(net, inputs).macs == 3 * 8 * 9 * 16 + 8 * 16 * 5
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[3].weight[:, ::2] = 0
    assert nonzero_macs(net, inputs) == 3 * 6 * 9 * 16 + 8 * 8 * 5


@pytest.mark.parametrize("padding", [0, 2, "same", "valid", (1, 0)])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (1, 2, 4), (2, 1, 1)])
@pytest.mark.parametrize("shape", [(2, 8, 11, 9), (8, 11, 9)])
def test_shapes_without_values_are_those_of_the_real_forward(padding, stride, dilation, groups, shape):
    if padding == "same" and stride > 1:
        pytest.skip("torch has no such layer")
    model = nn.Sequential(
        nn.Conv2d(8, 4, (3, 2), stride, padding, dilation, groups), nn.AdaptiveAvgPool2d((None, 3)), nn.Linear(3, 5)
    )
    x = torch.randn(shape)
    assert shapes_without_data(model, x) == [tuple(model(x).shape)]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(3, 4, 3), (1, 2, 8, 8)), (nn.Conv2d(3, 4, 5), (1, 3, 4, 4)), (nn.Linear(3, 4), (2, 5))],
)
def test_what_does_not_fit_a_layer_is_refused_as_by_the_layer(layer, shape):
    with pytest.raises(RuntimeError):
        layer(torch.randn(shape))
    with pytest.raises(NetworkError, match=r"^RuntimeError: "):
        macs_by_module(layer, torch.randn(shape))


def test_a_layer_with_a_forward_of_its_own_is_run():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(super().forward(x))

    assert ifap.cost(Doubled(6, 6), torch.randn(2, 6)).macs == 2 * 2 * 6 * 6


_SUMS = {
    "the same shape": lambda x: x + x,
    "a number": lambda x: x * 0.5 - 1,
    "one value a channel": lambda x: x[:, :, :1, :1] * x,
    "both are widened": lambda x: x[:, :1] / x[:1],
    "another layout": lambda x: x.permute(0, 2, 3, 1) + x.permute(0, 2, 3, 1),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) * x,
    "another type": lambda x: x + x.double(),
    "integers": lambda x: x.long() / x.long(),
    "fewer axes": lambda x: x + x[0, 0],
    "in place": lambda x: x.clone().add_(x[:1]).mul_(2),
    "in place, one at a time": lambda x: x.clone().sigmoid_().tanh_(),
    "joined": lambda x: torch.cat([x, x[:, :1], x], dim=-3),
    "joined, one of them empty": lambda x: torch.cat([x, torch.empty(0)], dim=1),
    "divided": lambda x: x.split(2, dim=-2)[1] * x.chunk(2)[0][:, :, :2],
    "divided, the last is smaller": lambda x: x.split(2, dim=3)[2],
    "divided as recurrent layers do": lambda x: torch.unsafe_split(x, 3, dim=-2)[1].tanh_(),
    "repeated": lambda x: x[:, :1].expand(-1, 6, -1, 5) + x[0, 0].expand(7, 6, 4, 5)[:2],
}


class Compared(TorchDispatchMode):
    """Compare the quick way to a shape with torch's own for every operation."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        fast = quick(func, args, kwargs or {})
        own = func(*args, **(kwargs or {}))
        if fast is not None:
            # Norms return numbers beside their output, which nothing reads.
            mine, its = ([*x] if isinstance(x, list) else [x[0] if isinstance(x, tuple) else x] for x in (fast, own))
            assert [(x.shape, x.dtype, x.device) for x in mine] == [(x.shape, x.dtype, x.device) for x in its]
            assert len(fast) == len(own) if isinstance(own, tuple) else type(fast) is type(own)
            self.found += 1
        return own


@pytest.mark.parametrize("case", _SUMS)
def test_sums_without_values_have_the_shape_and_type_of_real_ones(case):
    real = torch.ones(2, 3, 4, 5)
    with data_free(nn.Module(), real) as (x, _), Compared():
        found = _SUMS[case](x)
    wanted = _SUMS[case](real)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_quick_shapes_are_torchs_own(name):
    net = NETWORKS[name]
    model = net.build().eval()
    with torch.no_grad(), data_free(model, net.inputs()) as (inputs, _), Compared() as compared:
        call(model, inputs)
    assert compared.found > 0


def test_a_sum_without_values_that_cannot_be_is_refused():
    with data_free(nn.Module(), torch.ones(2, 3)) as (x, _), Compared():
        for wrong in (lambda: x + x[:, :2], lambda: x[:1].clone().add_(x)):
            with pytest.raises(RuntimeError):
                wrong()
