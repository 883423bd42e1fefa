"""One test for each defect of the public code that concerns the library: it fails on code that has it."""

from __future__ import annotations

import copy
import inspect
import json
import os

import numpy as np
import pytest
import torch
from networks import NETWORKS, Lambda, conv, head, prune, randomize, run, unit
from torch import nn

import ifap
from ifap import iterations
from ifap.data import Split
from ifap.errors import SplitError, TargetError
from ifap.ranking import unit_scores
from ifap.view import trace

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net():
    return randomize(nn.Sequential(unit(3, 24), unit(24, 32), unit(32, 24), head(24)))


def test_01_the_call_works_with_its_required_arguments_alone():
    # The public code called its own functions without arguments that they require.
    pruned = ifap.prune(net(), X[:1], [X], target=ifap.Target(macs=0.3))
    assert pruned.after.macs < pruned.before.macs


def test_02_every_documented_option_is_an_argument_and_others_are_errors():
    # Configuration keys differed between description, loader and driver; unknown ones were dropped.
    documented = inspect.getdoc(ifap.prune)
    names = [name for name in inspect.signature(ifap.prune).parameters if name not in ("normalize", "site")]
    assert all(f"\n{name} : " in documented for name in names)
    with pytest.raises(TypeError, match="degradation"):
        ifap.prune(net(), X[:1], [X], target=ifap.Target(macs=0.3), degradation=0.05)


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_03_a_saved_network_can_be_loaded_again(name, tmp_path):
    # Saved pruned models could not be loaded, transformers never.
    kind = NETWORKS[name]
    pruned = prune(kind.build(), kind.inputs())
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, kind.build)
    assert all(map(torch.equal, run(loaded, kind.inputs()), run(pruned.model.eval(), kind.inputs())))


@pytest.mark.parametrize("name", ["layer_norm", "self_attention_batch_first", "encoder_tokens_first"])
def test_05_tokens_and_attention_are_scored(name):
    # The score hook rejected outputs of shape (batch, tokens, width) and multi-head attention.
    kind = NETWORKS[name]
    assert all(score.dim() == 1 for score in ifap.flow_scores(kind.build(), [kind.inputs()]).values())


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.Tanh])
@pytest.mark.parametrize("site", ["output", "activation"])
def test_06_any_activation_will_do(activation, site):
    # Networks without nn.ReLU crashed.
    model = nn.Sequential(conv(3, 12), nn.BatchNorm2d(12), activation(), conv(12, 12), activation(), head(12))
    prune(model, X, site=site)


def test_07_rows_of_a_fused_projection_are_never_cut_alone():
    # Cutting single rows of a fused qkv passed the check of the graph and then broke the forward.
    kind = NETWORKS["fused_qkv"]
    pruned = prune(kind.build(), kind.inputs(), method="random", macs=0.6)
    rows = np.array(pruned.plan.kept["attention.qkv"]["out"])
    for part in range(3):
        local = rows[rows // 16 == part] % 16
        assert np.array_equal(local, pruned.plan.kept["attention.proj"]["in"])
    pruned.model(kind.inputs())


def test_08_the_ratio_is_a_share_and_does_not_compound():
    # The ratio was multiplied by 100, so that all units were selected at once.
    pruned = prune(net(), X, macs=0.5, steps=10)
    removed = [receipt.units_removed for receipt in pruned.receipts[1:]]
    assert len(removed) >= 5
    assert max(removed) < 0.2 * 80
    assert 0.5 <= pruned.after.reduction(pruned.before, "macs") <= 0.52
    with pytest.raises(TargetError):
        ifap.Target(macs=50)


def test_09_a_layer_whose_units_are_all_wanted_is_cut_to_its_floor_not_skipped():
    # A request for all units of a layer was refused whole, silently.
    def scores(model, batches, **_):
        return {f"{i}.0": torch.full((model[i][0].out_channels,), float(i != 1)) for i in range(3)}

    pruned = prune(net(), X, macs=0.86, steps=1, method=scores, min_units=3, max_layer_ratio=1.0)
    assert pruned.model[1][0].out_channels == 3


def test_09_no_progress_is_loud():
    with pytest.raises(TargetError, match="at most"):
        prune(net(), X, macs=0.5, min_units=32)


def test_10_positions_are_those_of_the_network_as_it_is():
    # Indices chosen once were applied to a graph that changed under them.
    marked = net()
    with torch.no_grad():
        marked[1][0].bias = nn.Parameter(torch.arange(32.0))
    pruned = prune(marked, X, macs=0.6, steps=6, method="random")
    assert pruned.model[1][0].bias.tolist() == [float(c) for c in pruned.plan.kept["1.0"]["out"]]
    assert torch.equal(pruned.model[1][1].running_mean, marked[1][1].running_mean[pruned.plan.kept["1.0"]["out"]])


def test_10_coupled_layers_are_cut_once():
    kind = NETWORKS["residual"]
    pruned = prune(kind.build(), kind.inputs(), steps=4, macs=0.5)
    kept = pruned.plan.kept
    assert kept["stem.0"]["out"] == kept["second"]["out"] == kept["first.0"]["in"] == kept["stem.1"]["out"]
    assert pruned.model.second.out_channels == len(kept["second"]["out"])


def test_11_activations_influence_the_scores_inside_linear_layers():
    # Inside a linear layer every unit had the same activation factor.
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]))
    x = torch.tensor([[1.0, 10.0, 100.0, 0.0]])
    assert ifap.flow_scores(model, [x], normalize="none")["0"].tolist() == [1.0, 10.0, 100.0]


def test_12_scores_are_joined_over_coupled_layers():
    # The score of one layer decided over the channels of all that are coupled to it.
    kind = NETWORKS["residual"]
    model = kind.build()
    graph = trace(model, kind.inputs())
    scores = {"stem.0": torch.zeros(12), "second": torch.arange(12.0)}
    joined = unit_scores(graph, scores)[graph.unit_of[graph.slot("stem.0", "out")]]
    assert np.allclose(joined, np.arange(12) / 2)


def test_12_the_activation_is_the_one_of_the_network_and_after_its_norm():
    # ReLU was forced on other activations and the norm was left out.
    model = Lambda(
        lambda m, x: m.head(m.act(m.norm(m.conv(x)))),
        conv=conv(3, 5),
        norm=nn.BatchNorm2d(5),
        act=nn.Tanh(),
        head=head(5),
    )
    randomize(model).eval()
    with torch.no_grad():
        z = torch.tanh(model.norm(model.conv(X)))
    expected = z.flatten(2).norm(dim=2).mean(0) * model.conv.weight.flatten(1).norm(dim=1)
    scores = ifap.flow_scores(model, [X], normalize="none", site="activation")["conv"]
    torch.testing.assert_close(scores, expected.detach())


def test_13_the_smallest_network_inside_the_allowed_fall_is_returned():
    # The unpruned model was returned unless pruning had raised the metric.
    metrics = iter([0.90, 0.89, 0.88, 0.60])
    pruned = prune(net(), X, macs=0.8, steps=6, validate=lambda _: next(metrics), max_drop=0.05)
    assert pruned.after.macs == pruned.receipts[2].macs < pruned.before.macs
    assert not pruned.receipts[3].accepted


@pytest.mark.parametrize("site", ["output", "activation"])
def test_15_no_hook_is_left_and_none_of_the_user_is_lost(site):
    # Hooks stayed on teacher and student and were copied along; hooks of the user were deleted.
    model, calls = net(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    teachers = []
    pruned = prune(model, X, site=site, recover=lambda _, teacher, __: teachers.append(teacher))
    for network in (model, pruned.model, *teachers):
        found = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
        assert sum(found) == 1
        assert len(network[0]._forward_hooks) == 1
    calls.clear()
    pruned.model(X)
    assert calls == [1]


def test_16_the_teacher_is_the_original_in_every_iteration():
    # The teacher was the last student, without an anchor to the original.
    model, seen = net(), []
    original = copy.deepcopy(model.state_dict())

    def recover(student, teacher, step):
        seen.append(all(torch.equal(original[name], t) for name, t in teacher.state_dict().items()))
        with torch.no_grad():
            for p in student.parameters():
                p.mul_(1.1)

    prune(model, X, steps=3, recover=recover)
    assert seen == [True] * len(seen)
    assert len(seen) >= 2


def test_17_the_allowed_fall_is_in_the_unit_of_the_metric():
    # 0.05 could mean points or percent.
    metrics = iter([80.0, 79.96, 79.94])
    pruned = prune(net(), X, macs=0.8, steps=6, validate=lambda _: next(metrics), max_drop=0.05)
    assert [receipt.accepted for receipt in pruned.receipts] == [True, True, False]


def test_17_a_hidden_layer_as_wide_as_the_number_of_classes_is_pruned():
    # A hidden linear layer of that width was taken for the output and skipped.
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    pruned = prune(model, torch.randn(4, 10), macs=0.5)
    assert pruned.model[2].out_features < 10
    assert pruned.model[4].out_features == 10


def test_18_the_test_split_scores_nothing():
    # The test set scored the units, stopped the loop, picked the model and stopped distillation.
    split = Split("test", X, torch.zeros(4))
    with pytest.raises(SplitError):
        prune(net(), X, split)
    with pytest.raises(SplitError):
        ifap.flow_scores(net(), split)
    with pytest.raises(SplitError):
        split.calibration(2, 2, seed=0)


def test_21_the_graph_is_built_once(monkeypatch):
    # It was built again for every layer.
    calls = []
    monkeypatch.setattr(iterations, "trace", lambda *a, **k: (calls.append(1), trace(*a, **k))[1])
    prune(net(), X, steps=5, macs=0.6)
    assert calls == [1]


def test_22_files_hold_no_pickle(tmp_path):
    # Checkpoints were whole pickled modules, which run code when they are loaded.
    ifap.save(prune(net(), X), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "report.json", "weights.safetensors"]
    for name in ("plan.json", "report.json"):
        json.loads((tmp_path / name).read_text())
    content = (tmp_path / "weights.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    json.loads(content[8 : 8 + size])


def test_attention_of_the_callers_network_is_not_changed():
    kind = NETWORKS["vit"]
    model = kind.build()
    prune(model, kind.inputs())
    assert type(model.attention) is nn.MultiheadAttention
    assert model.attention.in_proj_weight.shape == (48, 16)
    assert torch.equal(model(kind.inputs()), kind.build()(kind.inputs()))
