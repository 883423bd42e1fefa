"""PDP over channels: the gate's formula, the ramp, and a smaller network at the end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import NETWORKS
from torch import nn

import ifap
from ifap.data import Split
from ifap.errors import TargetError
from ifap.forward import call, tensors
from ifap.study.config.recipes import TrainingOptions
from ifap.study.models import MODELS
from ifap.study.rivals.gates import PdpChannel
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit

RECIPE = TrainingOptions(epochs=3, batch_size=8, optimizer="sgd", lr=0.05, weight_decay=0.0, warmup_epochs=0,
                         label_smoothing=0.0, augment=False)  # fmt: skip


def started(network, inputs, *, macs=0.4, steps=10, **options):
    """Return a controller inside a made-up training of `network`."""
    controller = PdpChannel(network, inputs, ifap.Target(macs=macs), **{"min_units": 1, **options})
    controller.start(network, torch.optim.SGD(network.parameters(), lr=0.1), steps=steps, steps_per_epoch=steps)
    return controller


@pytest.fixture
def single():
    """Channels of one weight each: a norm is a weight."""
    net = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.1, -0.2, 0.3, -0.35, 0.4, -0.5, 0.6, 0.9]).view(8, 1, 1, 1))
    return net


X = torch.zeros(1, 1, 4, 4)


def test_a_gate_is_a_half_at_the_threshold_and_rises_with_the_norm(single):
    controller = started(single, X, macs=0.5, sharpness=0.3)
    controller.before_step(9)
    gates = controller.gates()[:-1]
    assert (gates[1:] > gates[:-1]).all()  # the weights above ascend in size
    assert int((gates >= 0.5).sum()) == 4
    with torch.no_grad():
        raw = single[0].parametrizations.weight.original
        raw[3] = -0.375  # half way between the last that is lost and the first that is kept
    assert float(controller.gates()[3].detach()) == pytest.approx(0.5, abs=1e-6)


def test_the_gradient_goes_through_both_factors(single):
    controller = started(single, X, macs=0.5, sharpness=0.3)
    controller.before_step(9)
    single(torch.zeros(1, 1, 4, 4))
    raw = single[0].parametrizations.weight.original
    (gradient,) = torch.autograd.grad(single[0].weight.sum(), raw)
    w, m, tau = raw.detach().flatten(), controller.gates()[:-1].detach(), 0.3 * 0.375**2
    torch.testing.assert_close(gradient.flatten(), m + 2 * w.square() * m * (1 - m) / tau)


def test_coupled_channels_share_one_gate_of_the_sum_of_their_squares():
    net = NETWORKS["residual"]
    model = net.build()
    controller = started(model, net.inputs(), sharpness=0.5)
    first, second = model.get_submodule("stem.0"), model.get_submodule("second")
    norms = (
        first.weight.detach().flatten(1).square().sum(1) + second.weight.detach().flatten(1).square().sum(1)
    ).sqrt()
    units = controller._graph.unit_of[controller._graph.slot("stem.0", "out")]
    assert np.array_equal(units, controller._graph.unit_of[controller._graph.slot("second", "out")])
    assert np.allclose(controller._norms()[units], norms)
    controller.before_step(9)
    call(model, net.inputs())
    gates = controller.gates()[units].detach()
    assert float(gates.min()) < 0.5 < float(gates.max())
    for layer in (first, second):
        raw = layer.parametrizations.weight.original
        ratio = (layer.weight / raw).flatten(1).detach()
        torch.testing.assert_close(ratio, gates[:, None].expand_as(ratio))


def test_training_has_no_further_parameters_and_the_same_ones(single):
    before = list(single.parameters())
    controller = started(single, X, macs=0.5)
    assert {id(p) for p in single.parameters()} == {id(p) for p in before}
    controller.before_step(9)
    single(X)
    controller.finish()
    assert [id(p) for p in single.parameters()] == [id(p) for p in before]
    assert type(single[0]) is nn.Conv2d
    assert not single._forward_pre_hooks


def test_the_ramp_waits_rises_and_stays(single):
    controller = started(single, X, macs=0.5, steps=100, warmup=0.2, ramp=0.4)
    below = []
    for step in range(100):
        controller.before_step(step)
        below.append(int((controller.gates()[:-1] < 0.5).sum()))
    assert below[:20] == [0] * 20
    assert all(a <= b for a, b in itertools.pairwise(below))
    assert below[59:] == [4] * 41
    assert below[40] == 2


@pytest.mark.parametrize(
    "name",
    ["plain", "residual", "depthwise", "grouped", "transposed", "transposed_grouped", "fused_qkv", "squeeze_excite",
     "self_attention_batch_first", "vit", "dense", "split_channels", "norms_without_affine"],
)  # fmt: skip
def test_every_kind_ends_smaller_and_can_be_saved(name, tmp_path):
    net = NETWORKS[name]
    model = net.build().train()
    before = ifap.cost(model, net.inputs())
    controller = started(model, net.inputs(), macs=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(10):
        controller.before_step(step)
        optimizer.zero_grad()
        for _ in range(2):  # as with a batch in two parts
            outputs = tensors(call(model, net.inputs()))
            sum(t.square().mean() for t in outputs if t.is_floating_point()).backward()
        optimizer.step()
    controller.finish()
    pruned = controller.pruned()
    assert pruned.before == before
    assert pruned.after == ifap.cost(pruned.model, net.inputs())
    assert pruned.after.reduction(before, "macs") >= 0.3
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, net.build)
    a, b = (list(tensors(call(m.eval(), net.inputs()))) for m in (loaded, pruned.model))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_cut_was_zero_before_it_was_cut():
    """The network that training validates last is the one that comes out."""
    torch.manual_seed(0)
    model = MODELS.get("resnet_tiny")(num_classes=4, in_channels=3, image_size=32)
    x = torch.zeros(1, 3, 32, 32)
    data = Split("train", torch.randn(24, 3, 32, 32), torch.arange(24) % 4)
    controller = PdpChannel(model, x, ifap.Target(macs=0.6))
    rows = fit(model, data, data, RECIPE, TASKS.get("classification"), seed=0, controller=controller)
    assert len(rows) == 3
    pruned = controller.pruned()
    assert pruned.after.reduction(pruned.before, "macs") >= 0.6
    torch.testing.assert_close(pruned.model.eval()(data.inputs), model.eval()(data.inputs), rtol=1e-4, atol=1e-4)


def test_an_interrupted_training_ends_with_the_same_network(tmp_path):
    class StopError(Exception):
        pass

    def stop(row, _speed):
        if row.epoch == 2:
            raise StopError

    data = Split("train", torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4)
    results = []
    for folder, interrupts in ((None, False), (tmp_path, True)):
        for on_epoch in (stop, None) if interrupts else (None,):
            torch.manual_seed(0)
            model = MODELS.get("mobilenet_tiny")(num_classes=4, in_channels=3, image_size=32)
            controller = PdpChannel(model, torch.zeros(1, 3, 32, 32), ifap.Target(macs=0.5))
            options = {"seed": 0, "controller": controller, "state": folder, "on_epoch": on_epoch}
            try:
                fit(model, data, data, RECIPE, TASKS.get("classification"), **options)
            except StopError:
                continue
            results.append(controller.pruned().model.state_dict())
    assert all(torch.equal(results[0][key], value) for key, value in results[1].items())


def test_mistakes_are_named(single):
    controller = started(single, X, macs=0.95, max_layer_ratio=0.5)
    with pytest.raises(TargetError, match=r"cannot be reached: at most 0\.5"):
        controller.before_step(9)
    with pytest.raises(TargetError, match="nothing is decided yet"):
        controller.pruned()
    with pytest.raises(TargetError, match="another network"):
        controller.start(nn.Sequential(), None, steps=1, steps_per_epoch=1)
