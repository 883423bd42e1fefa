"""Layers that the example inputs do not reach: they follow where that is sure, else stay, or data show them."""

from __future__ import annotations

import pytest
import torch
from networks import Lambda, conv, head
from torch import nn

import ifap
from ifap.view import trace

SMALL, LARGE = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)


def larger_first(m, x):
    """Read larger inputs by a layer of the kind and shape of another, but before it and not beside it."""
    x = m.a(x).relu()
    x = m.big(x).relu() if x.shape[-1] > 18 else x
    return m.head(m.b(x).relu())


def early_exit(m, x):
    """Leave after the first of two stages, or go on."""
    x = m.stages[0](x)
    return m.exits[0](x) if x.shape[-1] < 18 else m.exits[1](m.stages[1](x))


def second_input(m, x, y=None):
    x = m.a(x)
    return m.head(m.b(x if y is None else x + m.other(y)).relu())


NETWORKS = {
    "before": (
        lambda: Lambda(larger_first, a=conv(3, 24), b=conv(24, 24), big=conv(24, 24), head=head(24)),
        SMALL,
        LARGE,
        "big",
    ),
    "exit": (
        lambda: Lambda(
            early_exit, stages=nn.ModuleList([conv(3, 24), conv(24, 24)]), exits=nn.ModuleList([head(24), head(24)])
        ),
        SMALL,
        LARGE,
        "stages.1",
    ),
    "argument": (
        lambda: Lambda(second_input, a=conv(3, 24), b=conv(24, 24), other=conv(3, 24), head=head(24)),
        (SMALL, None),
        (SMALL, SMALL + 1),
        "other",
    ),
}


def run(model, inputs):
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_could_stand_anywhere_stays_and_is_named(name):
    build, sample, _other, layer = NETWORKS[name]
    graph = trace(build().eval(), sample)
    assert any(f"the sample does not reach '{layer}'" in reason for reason in graph.pinned.values())
    for slot in ("a", "b", "stages.0", "stages.1"):
        number = graph.slot(slot, "out")
        assert number is None or (graph.unit_of[number] == -1).all()


@pytest.mark.parametrize("method", ["flow", "magnitude"])
@pytest.mark.parametrize("name", NETWORKS)
def test_calibration_data_that_reach_it_show_what_it_reads(name, method):
    build, sample, other, layer = NETWORKS[name]
    model = build().eval()
    target = ifap.Target(macs=0.4)
    pruned = ifap.prune(model, sample, [sample, other], target=target, method=method, steps=2, compensate=False)
    assert pruned.proof.holds
    for name, module in model.named_modules():  # the proof of the proof: masked by hand, on inputs of both kinds
        kept = pruned.plan.kept.get(name, {})
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "in" in kept:
            gone = [unit for unit in range(module.weight.shape[1]) if unit not in kept["in"]]
            module.weight.data[:, gone] = 0
    for inputs in (sample, other):
        torch.testing.assert_close(run(pruned.model, inputs), run(model, inputs), rtol=1e-4, atol=1e-5)
    assert layer in str(ifap.inspect(build(), sample, batches=[other]))


def test_a_branch_whose_axes_leave_no_doubt_follows_the_other():
    def forward(m, x):
        x = m.a(x).relu()
        return m.head((m.b(x) if x.shape[-1] < 18 else m.c(x)).relu())

    model = Lambda(forward, a=conv(3, 24), b=conv(24, 16), c=conv(24, 16), head=head(16)).eval()
    pruned = ifap.prune(model, SMALL, [SMALL], target=ifap.Target(macs=0.5))
    assert pruned.model.c.weight.shape == pruned.model.b.weight.shape
    assert pruned.model(LARGE).isfinite().all()


def test_sizes_of_calls_that_only_some_samples_make_do_not_mix():
    """The larger sample makes a call of its own before the one whose size follows the cut."""

    def forward(m, x):
        x = m.a(x).relu()
        if x.shape[-1] > 18:
            x = m.extra(x.reshape(-1, 24, x.shape[-2], x.shape[-1])[:, :, ::2, ::2])
        return m.head(m.b(x.reshape(len(x), 24, -1).unflatten(2, (16, -1))))

    model = Lambda(forward, a=conv(3, 24), b=conv(24, 24), extra=conv(24, 24), head=head(24)).eval()
    pruned = ifap.prune(model, SMALL, [SMALL, LARGE], target=ifap.Target(macs=0.1), method="magnitude", steps=1)
    assert pruned.proof.holds
    for inputs in (SMALL, LARGE):
        assert pruned.model(inputs).isfinite().all()
