"""Pruning to a measured time. Speeds are not asserted of real layers where a made-up clock can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import conv, head, unit
from torch import nn

import ifap
from ifap import iterations
from ifap import latency as latency_module
from ifap.errors import TargetError
from ifap.latency import LatencyModel, latency_ratio, layer_widths, repeated
from ifap.ranking import Budget, by_speed
from ifap.view import trace

X = torch.randn(1, 3, 16, 16)


def network():
    torch.manual_seed(0)
    return nn.Sequential(unit(3, 64), unit(64, 64), conv(64, 64, groups=64), unit(64, 64), head(64)).eval()


def seconds(model, inputs):
    """A made-up clock: a layer takes its multiply-accumulates, and one that is read nine times as many."""
    return 1e-9 * ifap.cost(model, inputs).macs


@pytest.fixture
def clock(monkeypatch):
    """Time by counting instead of by measuring, so that nothing depends on the machine."""
    monkeypatch.setattr(latency_module, "_MEASURED", {})

    def time_of(module, shape, out, inner):
        positions = np.prod(shape[-2:]) if isinstance(module, nn.Conv2d) else 1
        kernel = np.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        return 1e-6 * positions * kernel * out * (1 if depthwise else inner)

    monkeypatch.setattr(latency_module, "_time_of", time_of)
    monkeypatch.setattr(latency_module, "_timed", lambda function, where: 1e-9 * ifap.cost(network(), X).macs)
    monkeypatch.setattr(iterations, "latency_ratio", lambda a, b, x: seconds(a, x) / seconds(b, x))


def test_a_model_of_times_predicts_what_the_clock_says(clock):
    model = network()
    times = LatencyModel(model, X)
    assert times.predict({}) == pytest.approx(times.total)
    whole = layer_widths(model)
    half = {name: (out / 2, inner / 2 if inner > 3 else inner) for name, (out, inner) in whole.items()}
    assert times.predict(half) < 0.45 * times.total
    assert set(times.names) == set(whole)


def test_a_wider_layer_is_never_predicted_to_be_faster():
    times = LatencyModel(network(), X)  # by the real clock, which is noisy
    by_share = [
        times.predict({name: (out * share, inner) for name, (out, inner) in layer_widths(network()).items()})
        for share in np.linspace(0.05, 1, 30)
    ]
    assert (np.diff(by_share) >= -1e-9).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_time_that_is_wanted_is_reached_with_widths_of_eight(clock, steps):
    model = network()
    pruned = ifap.prune(model, X, [X], target=ifap.Target(latency=0.5), steps=steps, method="magnitude")
    share = seconds(pruned.model, X) / seconds(model, X)
    assert 0.3 < share <= 0.5 * 1.01 + 1e-9
    assert all(width % 8 == 0 for width in pruned.receipts[-1].widths.values())
    assert pruned.after.latency < pruned.before.latency


def test_a_prediction_that_is_too_low_is_corrected_by_measuring(clock, monkeypatch):
    def with_a_constant(a, b, x):
        return (seconds(a, x) + 0.3 * seconds(b, x)) / (1.3 * seconds(b, x))

    monkeypatch.setattr(iterations, "latency_ratio", with_a_constant)
    model = network()
    pruned = ifap.prune(model, X, [X], target=ifap.Target(latency=0.5), steps=2, method="magnitude")
    assert with_a_constant(pruned.model, model, X) <= 0.5 * 1.01 + 1e-9


def test_a_time_that_no_width_reaches_is_refused(clock):
    with pytest.raises(TargetError, match=r"latency=0\.999 cannot be reached"):
        ifap.prune(network(), X, [X], target=ifap.Target(latency=0.999), steps=1, method="magnitude")


def test_time_counts_on_the_device_that_is_named_while_pruning_stays_where_the_network_is(clock, monkeypatch):
    timed = []

    def ratio(a, b, x):
        timed.append((a, b))
        return seconds(a, x) / seconds(b, x)

    monkeypatch.setattr(iterations, "latency_ratio", ratio)
    model = network()
    target = ifap.Target(latency=0.5, device="cpu", batch=2)
    pruned = ifap.prune(model, X, [X], target=target, steps=2, method="magnitude")
    assert all(a is not pruned.model and b is not model for a, b in timed)  # copies
    assert seconds(pruned.model, X) / seconds(model, X) <= 0.5 * 1.01 + 1e-9


@pytest.mark.parametrize("device", ["meta", "cuda:99", "toaster"])  # no values, too few, no such thing
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(TargetError, match=f"device='{device}' does not exist on this machine"):
        ifap.Target(latency=0.5, device=device)


@pytest.mark.parametrize(
    "wrong",
    [{"latency": 0.5, "macs": 0.5}, {"latency": 1.0}, {"macs": 0.5, "batch": 4}, {}, {"macs": 0.5, "device": "cpu"}],
)
def test_what_is_no_target_is_refused(wrong):
    with pytest.raises(TargetError, match="target: "):
        ifap.Target(**wrong)


def test_inputs_are_repeated_to_the_batch_that_counts():
    assert repeated(X, 5).shape == (5, 3, 16, 16)
    assert repeated({"ids": torch.arange(6).reshape(3, 2)}, 2)["ids"].tolist() == [[0, 1], [2, 3]]
    assert repeated(X, None) is X


def test_a_network_several_times_as_deep_takes_longer():
    small, large = network(), nn.Sequential(*(network()[:4] if i == 0 else unit(64, 64) for i in range(24))).eval()
    assert latency_ratio(large, small, X) > 1.5
    assert latency_ratio(small, large, X) < 1 / 1.5


def test_timing_leaves_the_network_alone():
    model = network().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    LatencyModel(model, X)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_disturbed_measurement_does_not_raise_what_is_wider():
    times = np.array([[9.0, 2.0], [3.0, 4.0]])  # 9 cannot be: more of both takes 4
    assert latency_module._ascending(times).tolist() == [[2.0, 2.0], [3.0, 4.0]]


def test_a_unit_whose_products_are_slow_counts_for_less(clock, monkeypatch):
    """Where one layer takes much longer than its products say, more of it goes than of the others."""
    model, counted = network(), latency_module._time_of

    def slow_first(module, shape, out, inner):
        return counted(module, shape, out, inner) * (50 if getattr(module, "in_channels", None) == 3 else 1)

    def widths():
        monkeypatch.setattr(latency_module, "_MEASURED", {})
        target = ifap.Target(latency=0.3)
        return ifap.prune(model, X, [X], target=target, steps=1, method="uniform", round_to=1).receipts[-1]

    even = widths().widths
    monkeypatch.setattr(latency_module, "_time_of", slow_first)
    uneven = widths().widths
    names = list(even)
    assert uneven[names[0]] / even[names[0]] < uneven[names[-1]] / even[names[-1]]


def test_factors_of_speed_stay_within_two():
    model = network()
    graph = trace(model, X)
    factors = by_speed(graph, Budget(graph, LatencyModel(model, X), layer_widths(model)))
    assert ((factors >= 0.5) & (factors <= 2)).all()


def test_the_grid_of_widths_has_what_the_device_takes_at_a_time():
    assert latency_module._grid(100, 16) == [32, 64, 80, 100]
    assert latency_module._grid(3, 16) == [3]
