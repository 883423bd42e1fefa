"""Branches, loops and flexible attention of torch, and functions that it compiles: their layers are cut like others."""

from __future__ import annotations

import threading

import pytest
import torch
from networks import Lambda, assert_equivalent
from torch import nn
from torch._ops import HigherOrderOperator
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

import ifap
from ifap.axes.compiled import _WHOLE, without_compiler
from ifap.scores.fisher import unit_fisher
from ifap.view import trace

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def branch(m, x):
    then, other = (lambda x: torch.relu(m.deep(torch.relu(m.then(x))))), (lambda x: torch.relu(m.other(x)))
    x = torch.relu(m.embed(x))
    return m.head(torch.cond(x.sum() > 0, then, other, (x,)))


def loop(m, x):
    from torch._higher_order_ops import while_loop

    def step(i, x):
        return i + 1, torch.tanh(m.then(x))

    _, x = while_loop(lambda i, x: i < 3, step, (torch.tensor(0), torch.relu(m.embed(x))))
    return m.head(torch.relu(m.other(torch.relu(m.deep(x)))))


def flexible(m, x):
    x = m.embed(x)
    q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (m.then, m.other, m.deep))
    found = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score - (i - j) / (h + 1))
    return m.head(m.mix(found.transpose(1, 2).flatten(2)))


@torch.compile(backend="eager")
def gated(x, y):
    return torch.sigmoid(x) * y


def compiled(m, x):
    x = torch.relu(m.embed(x))
    return m.head(m.mix(gated(m.then(x), m.deep(torch.relu(m.other(x))))))


FORWARDS = {"branch": branch, "loop": loop, "flexible": flexible, "compiled": compiled}


def build(name):
    torch.manual_seed(0)
    layers = {key: nn.Linear(32, 32) for key in ("then", "deep", "other")}
    more = {"mix": nn.Linear(32, 16), "head": nn.Linear(16, 4)} if name in ("flexible", "compiled") else {}
    return Lambda(FORWARDS[name], embed=nn.Linear(8, 32), **layers, **(more or {"head": nn.Linear(32, 4)}))


@pytest.fixture(autouse=True)
def without_gradients():
    """Flexible attention has no backward on a CPU."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("method", ["flow", "ifap", "random"])
@pytest.mark.parametrize("name", FORWARDS)
def test_they_are_cut_and_proven(name, method, tmp_path):
    model, x = build(name), torch.randn(2, 16, 8)
    pruned = ifap.prune(model, x, [x, x], target=ifap.Target(macs=0.5), method=method, compensate=False)
    assert pruned.proof.units_checked
    assert len(pruned.plan.kept) > 2
    assert_equivalent(model, pruned, x)
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, lambda: build(name))(x), pruned.model.eval()(x))


def scores(model, x):
    graph = trace(model, x)
    found = unit_fisher(model, graph, [x], seed=0, centred=False)
    return {
        slot.name: found[units[units >= 0]]
        for slot, units in zip(graph.slots, graph.unit_of, strict=True)
        if slot.side == "out"
    }


def test_gradients_arrive_inside_of_a_branch():
    def plain(m, x):
        return m.head(torch.relu(m.deep(torch.relu(m.then(torch.relu(m.embed(x)))))))

    model, x = build("branch"), torch.randn(4, 8)
    straight = Lambda(plain, embed=model.embed, then=model.then, deep=model.deep, head=model.head)
    found, wanted = scores(model, x), scores(straight, x)
    for name in ("embed", "then", "deep"):
        assert (found[name] == wanted[name]).all(), name


def test_a_branch_that_no_sample_takes_is_cut_with_the_other_one():
    model, x = build("branch"), torch.randn(4, 8)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.3), method="random")
    left = pruned.model
    assert left.other.out_features == left.deep.out_features == left.head.in_features
    assert left.other.in_features == left.then.in_features == left.embed.out_features
    nn.init.constant_(left.embed.weight, 0.0)
    nn.init.constant_(left.embed.bias, -1.0)  # a sum of zero takes the other branch
    assert torch.equal(left(x), left.head(functional.relu(left.other(torch.zeros(4, left.embed.out_features)))))


def test_threads_take_operations_apart_by_themselves():
    begun = threading.Event()

    def other():
        with without_compiler(both=True):
            begun.set()
            done.wait(20)

    done, thread = threading.Event(), threading.Thread(target=other)
    with without_compiler():
        thread.start()
        begun.wait(20)
    assert HigherOrderOperator.__call__ is not _WHOLE
    found = torch.cond(torch.tensor(True), lambda x: x + 1, lambda x: x.log(), (-torch.ones(1),))
    done.set()
    thread.join()
    assert torch.equal(found, torch.zeros(1))
    assert HigherOrderOperator.__call__ is _WHOLE


def test_an_attention_with_an_own_score_is_cut_after_its_compiler_was_loaded():
    torch.manual_seed(0)
    network = Lambda(
        lambda m, x: m.out(
            flex_attention(
                *(part.unflatten(-1, (4, 8)).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1)),
                score_mod=lambda score, b, h, q, k: torch.where(q >= k, score, -float("inf")),
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        qkv=nn.Linear(16, 96), out=nn.Linear(32, 3),
    )  # fmt: skip
    x = torch.randn(2, 6, 16)
    pruned = ifap.prune(network.eval(), x, [x], target=ifap.Target(macs=0.4), method="magnitude")
    assert set(pruned.receipts[-1].pinned) == {"out"}
    assert pruned.proof.difference < 1e-6
