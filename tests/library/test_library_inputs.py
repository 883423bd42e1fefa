"""What people hand in: odd inputs, odd networks, and networks whose channels cannot be followed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from networks import Lambda, conv, head, prune, unit
from torch import nn
from torch.nn import functional

import ifap
from ifap.errors import ConfigError, GraphError, IfapError, PlanError
from ifap.example_inputs import InputConstant, InputDict, make_inputs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net():
    return nn.Sequential(unit(3, 16), unit(16, 12), head(12))


def test_import_is_light():
    code = "import sys, ifap; assert 'torch' not in sys.modules; dir(ifap)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there():
    for name in ifap.__all__:
        assert getattr(ifap, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = ifap.prunes


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_inputs_as_tensor_tuple_list_or_dict(wrap):
    pruned = prune(net(), wrap(X), [wrap(X)])
    assert pruned.after == ifap.cost(pruned.model, X)


class Sample(NamedTuple):
    image: torch.Tensor
    vector: torch.Tensor


@dataclass(frozen=True, slots=True)
class Record:
    image: torch.Tensor
    vector: torch.Tensor


@pytest.mark.parametrize("method", ["flow", "ifap"])
@pytest.mark.parametrize("kind", [Sample, Record, SimpleNamespace])
def test_what_has_fields_is_one_argument(kind, method, tmp_path):
    def build():
        torch.manual_seed(0)
        return Lambda(
            lambda m, sample: m.head(torch.cat([m.body(sample.image), m.embed(sample.vector)], 1)),
            body=net(), embed=nn.Sequential(nn.Linear(5, 16), nn.ReLU()), head=nn.Linear(20, 3),
        )  # fmt: skip

    inputs = (kind(image=X, vector=torch.randn(2, 5)),)
    pruned = ifap.prune(build(), inputs, [inputs], target=ifap.Target(macs=0.5), method=method)
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, build)(*inputs), pruned.model.eval()(*inputs))


def test_a_plan_names_no_fields_that_python_does_not_take(tmp_path):
    with pytest.raises(PlanError, match=r"example_inputs: .*'class'"):
        make_inputs(InputDict(kind="named", items={"class": InputConstant(value=1)}))


@pytest.mark.parametrize("call", [ifap.inspect, lambda model, x: prune(model, x)])
def test_nested_tensors_are_refused_with_the_remedy(call):
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    with pytest.raises(ConfigError, match="nested tensor: give samples of one length, with a mask"):
        call(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), nested)


def test_batches_may_be_a_generator_factory_or_loader():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=1)
    assert prune(net(), X, loader).after.macs > 0


def test_example_inputs_that_require_grad_keep_no_graph():
    x = X.clone().requires_grad_()
    prune(net(), x)
    assert x.grad is None


def test_pruning_inside_no_grad_and_inference_mode():
    with torch.no_grad():
        pruned = prune(net(), X)
    assert all(p.requires_grad for p in pruned.model.parameters())


def test_one_sample_without_a_batch_axis():
    model = nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 4))
    assert prune(model, X[0]).model(X[0]).shape == (4, 8, 8)


def test_random_state_of_the_caller_is_not_needed():
    model = net()
    torch.manual_seed(1)
    first = prune(model, X, method="random").plan.kept
    torch.manual_seed(2)
    assert prune(model, X, method="random").plan.kept == first


def fixed_heads(m, x):
    batch, length, _ = x.shape
    q, k, v = (layer(x).view(batch, length, 4, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
    y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 16)
    return m.head(torch.relu(m.mix(m.o(y))))


def recurrent(m, x):
    x, _ = m.rnn(m.body(x).flatten(2).transpose(1, 2))
    return m.head(torch.relu(m.mix(x[:, -1])))


UNFOLLOWABLE = {
    "a recurrent layer": (
        lambda: Lambda(
            recurrent, body=nn.Sequential(unit(3, 12), unit(12, 12)), rnn=nn.LSTM(12, 10, batch_first=True),
            mix=nn.Linear(10, 14), head=nn.Linear(14, 3),
        ),
        X,
        ["body.1"],
    ),
    "attention with fixed shapes": (
        lambda: Lambda(
            fixed_heads, q=nn.Linear(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16), o=nn.Linear(16, 16),
            mix=nn.Linear(16, 24), head=nn.Linear(24, 3),
        ),
        torch.randn(2, 5, 16),
        ["q", "k", "v"],
    ),
    "a constant as wide as the channels": (
        lambda: Lambda(
            lambda m, x: m.head(m.b(m.a(x) * torch.ones(1, 12, 1, 1))), a=unit(3, 12), b=unit(12, 20), head=head(20)
        ),
        X,
        ["a.0"],
    ),
    "fixed split sizes": (
        lambda: Lambda(
            lambda m, x: m.head(torch.cat([m.b(p) for p in m.a(x).split([8, 8], 1)], 1)),
            a=unit(3, 16), b=unit(8, 20), head=head(40),
        ),
        X,
        ["a.0"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFOLLOWABLE)
def test_channels_that_cannot_be_followed_are_a_clear_error_and_can_be_ignored(case):
    make, inputs, layers = UNFOLLOWABLE[case]
    model = make()
    try:
        pruned = prune(model, inputs, macs=0.1, method="random")
    except IfapError as error:  # either is right
        assert isinstance(error, GraphError)  # noqa: PT017
        assert "ignore" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert pruned.model(inputs).shape == model(inputs).shape
    pruned = prune(model, inputs, macs=0.1, ignore=layers)
    assert pruned.model(inputs).shape == model(inputs).shape
