"""The small dense control: widths, fresh weights and epochs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import NETWORKS
from torch import nn

import ifap
from ifap.data import Split
from ifap.errors import TargetError
from ifap.forward import call
from ifap.study.config.budget import one_run
from ifap.study.config.recipes import PruneOptions, RecoveryOptions, TrainingOptions
from ifap.study.config.rivals import SmallDenseOptions
from ifap.study.models import MODELS
from ifap.study.rivals import SPARSE, Context
from ifap.study.rivals.small_dense import reinitialise
from ifap.study.tasks import TASKS

X = torch.zeros(1, 3, 32, 32)
RECIPE = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "warmup_epochs": 0,
          "label_smoothing": 0.0, "augment": False}  # fmt: skip


def narrowed(network, inputs, target, seed=0, **limits):
    """Return what `small_dense` trains."""
    small = ifap.prune(network, inputs, (), target=target, steps=1, method="uniform", **limits)
    reinitialise(small.model, seed)
    return small


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return MODELS.get("resnet_tiny")(num_classes=4, in_channels=3, image_size=32)


@pytest.fixture(scope="module")
def small(wide):
    return narrowed(wide, X, ifap.Target(macs=0.65), seed=5)


def test_every_width_loses_the_same_share_and_the_target_is_met(wide, small):
    assert small.after.reduction(small.before, "macs") >= 0.65
    assert small.after == ifap.cost(small.model, X)
    before, after = small.receipts[0].widths, small.receipts[-1].widths
    slack = {layer: 1 / before[layer] for layer in after}
    shares = {layer: after[layer] / before[layer] for layer in after}
    middle = sorted(shares.values())[len(shares) // 2]
    assert middle < 0.75
    assert all(abs(share - middle) <= slack[layer] + 0.01 for layer, share in shares.items())


def test_weights_are_new_for_the_new_widths(wide, small):
    old = dict(wide.named_modules())
    convolutions = [(name, module) for name, module in small.model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions
    for name, module in convolutions:
        kept = small.plan.kept.get(name, {})
        sliced = old[name].weight
        for side, dim in (("out", 0), ("in", 1)):
            if side in kept:
                sliced = sliced.index_select(dim, torch.tensor(kept[side]))
        assert sliced.shape == module.weight.shape
        assert not torch.equal(sliced, module.weight)
        bound = module.weight[0].numel() ** -0.5  # of torch's initialisation: 1 / sqrt(fan in)
        assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound
    for module in small.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()


def test_the_seed_alone_decides(wide, small):
    state = torch.get_rng_state()
    same, other = (narrowed(wide, X, ifap.Target(macs=0.65), seed=seed).model for seed in (5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    first = small.model.state_dict()
    assert all(torch.equal(first[key], value) for key, value in same.state_dict().items())
    assert not all(torch.equal(first[key], value) for key, value in other.state_dict().items())


def test_a_saved_one_loads_again(wide, small, tmp_path):
    ifap.save(small, tmp_path)
    torch.manual_seed(9)
    loaded = ifap.load(tmp_path, lambda: MODELS.get("resnet_tiny")(num_classes=4, in_channels=3, image_size=32))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(x), small.model.eval()(x))


@pytest.mark.parametrize("name", ["residual", "grouped", "self_attention_batch_first", "fused_qkv"])
def test_every_group_loses_alike(name):
    net = NETWORKS[name]
    result = narrowed(net.build(), net.inputs(), ifap.Target(macs=0.5), min_units=1)
    assert result.after.reduction(result.before, "macs") >= 0.5
    call(result.model, net.inputs())


def test_limits_hold_here_too(wide):
    with pytest.raises(TargetError, match="cannot be reached"):
        narrowed(wide, X, ifap.Target(macs=0.9), max_layer_ratio=0.3)


def test_positions_and_tokens_keep_their_values():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.layer = nn.Parameter(torch.full((3,), 7.0)), nn.Linear(3, 3)

    net = Net()
    weight = net.layer.weight.detach().clone()
    reinitialise(net, 0)
    assert (net.position == 7).all()
    assert not torch.equal(weight, net.layer.weight)


def test_it_is_trained_for_as_long_as_the_pruned_network_was(wide):
    recipe = TrainingOptions(**RECIPE)
    pruning = PruneOptions.model_construct(steps=3)
    recovery = RecoveryOptions.model_construct(epochs=2)
    whole = one_run(recipe, pruning, recovery, TrainingOptions(**{**RECIPE, "epochs": 1}))
    assert whole.epochs == 2 + 3 * 2 + 1
    data = Split("train", torch.randn(8, 3, 32, 32), torch.arange(8) % 4)
    made = SPARSE.get("small_dense")(
        Context(
            build=lambda: wide,
            baseline=lambda: wide,
            example_inputs=X,
            train=data,
            validation=dataclasses.replace(data, role="validation"),
            task=TASKS.get("classification"),
            options=SmallDenseOptions(),
            target=ifap.Target(macs=0.65),
            recipe=whole,
            seed=0,
            limits={"min_units": 2},
        )
    )
    assert len(made.history) == whole.epochs
    assert made.history[-1].lr < made.history[0].lr  # one schedule over all of them
    assert made.cut.after == ifap.cost(made.model, X)
    assert made.cut.after.reduction(made.cut.before, "macs") >= 0.65
    assert made.training_macs == made.dense_training_macs == 3 * 8 * whole.epochs * made.cut.after.macs
    assert made.cut.receipts[-1].metric_after == made.history[-1].validation_metric
