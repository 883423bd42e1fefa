"""Networks that do unusual things with their widths: pruned by half, proven, saved and loaded to the bit."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc

import odd_networks  # noqa: F401 (its networks join KINDS)
import pytest
import torch
from axes_networks import KINDS, Answer
from torch import nn

import ifap
from ifap.axes.draws import same_draws
from ifap.forward import tensors


def outputs(model, inputs):
    with same_draws():
        return list(tensors(model(*inputs) if isinstance(inputs, tuple) else model(inputs)))


def halved(model, inputs, **options):
    return ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.5), steps=3, min_units=1, **options)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_half_of_it_goes_and_what_is_left_is_proven_and_can_be_trained(name, tmp_path):
    kind = KINDS[name]
    model, inputs = kind.build().eval(), kind.inputs()
    before, whole = copy.deepcopy(model.state_dict()), outputs(model, inputs)
    pruned = halved(model, inputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, inputs), whole, strict=True))

    assert pruned.after.reduction(pruned.before, "macs") >= 0.5
    assert ifap.cost(pruned.model, inputs) == pruned.after
    assert pruned.proof.difference is not None
    assert pruned.proof.difference < 1e-6
    assert pruned.proof.units_checked > 0
    found = outputs(pruned.model.eval(), inputs)
    assert [x.shape for x in found] == [x.shape for x in whole]

    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: kind.build().eval())
    for a, b in zip(found, outputs(loaded, inputs), strict=True):
        assert torch.equal(a, b)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in pruned.model.named_parameters()
    }

    sum(x.square().sum() for x in outputs(pruned.model.train(), inputs)).backward()
    reached = [p for p in pruned.model.parameters() if p.grad is not None]
    assert reached
    assert all(p.grad.shape == p.shape for p in reached)


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("method", ["magnitude", "uniform"])
def test_every_choice_of_units_is_proven(name, method):
    kind = KINDS[name]
    pruned = halved(kind.build().eval(), kind.inputs(), method=method)
    assert pruned.proof.difference < 1e-6


def test_both_halves_of_a_chunk_lose_the_same_number():
    kind = KINDS["halves_of_a_chunk"]
    pruned = halved(kind.build(), kind.inputs())
    kept = pruned.plan.kept["a.0"]["out"]
    assert sum(place < 12 for place in kept) == sum(place >= 12 for place in kept) < 12


@pytest.mark.parametrize(
    "name", ["attention_that_asserts_its_width", "torchs_own_transformer", "a_template_that_nothing_runs"]
)
def test_nothing_but_the_outputs_stays(name):
    kind = KINDS[name]
    assert [each.name for each in ifap.inspect(kind.build(), kind.inputs()).stays] == ["head"]


def test_outputs_in_a_dataclass_keep_their_kind_and_shape():
    kind = KINDS["dataclass_outputs"]
    found = halved(kind.build(), kind.inputs()).model(kind.inputs())
    assert isinstance(found, Answer)
    assert {field.name for field in dataclasses.fields(found)} == {"logits", "aside"}
    assert found.logits.shape == (2, 4)
    assert found.aside["mean"].shape == (2, 2)


def test_tensors_in_plain_attributes_are_cut():
    kind = KINDS["tensor_in_a_plain_attribute"]
    pruned = halved(kind.build(), kind.inputs())
    kept = pruned.plan.kept["a.0"]["out"]
    assert pruned.model.shift.shape == (1, len(kept), 1, 1)
    assert torch.equal(pruned.model.shift.flatten(), torch.linspace(-1, 1, 12)[kept])
    assert torch.equal(pruned.model.tables[0], torch.linspace(0.5, 1.5, 12)[kept])


def test_masks_of_torchs_own_pruning_stay_with_their_weights():
    kind = KINDS["masked_by_torchs_own_pruning"]
    model = kind.build()
    pruned = halved(model, kind.inputs())
    small, whole = pruned.model[1], model[1]
    assert small.weight_mask.shape == small.weight_orig.shape
    assert small.weight_orig.shape[0] < 16
    rows = pruned.plan.kept["1.weight_orig"]["dim0"]
    columns = pruned.plan.kept["1.weight_orig"].get("dim1", list(range(12)))
    assert torch.equal(small.weight_mask, whole.weight_mask[rows][:, columns])
    small(torch.randn(1, len(columns), 8, 8))
    assert torch.equal(small.weight, small.weight_orig * small.weight_mask)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "normed",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.parametrize("layer", [nn.Conv1d, nn.ConvTranspose1d])
def test_weights_that_stay_under_a_norm_are_not_scaled_up(layer, normed, tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            normed(layer(3, 12, 3)), nn.ReLU(), normed(layer(12, 10, 3)), nn.ReLU(), nn.Conv1d(10, 2, 1)
        ).eval()

    network, x = build(), torch.randn(4, 3, 20)
    training = build().train()
    pruned = ifap.prune(training, x[:1], [x], target=ifap.Target(macs=0.5), method="magnitude", steps=3)
    assert pruned.model[2].training
    pruned.model.eval()
    tensor = next(
        name
        for name in pruned.plan.kept
        if name.startswith("2.") and name.endswith(("original", "original1", "weight_orig", "weight_v"))
    )
    kept = pruned.plan.kept[tensor]
    sizes = enumerate(network[2].weight.shape[:2])
    rows, columns = (torch.tensor(kept.get(f"dim{dim}", range(size))) for dim, size in sizes)
    network(x)
    pruned.model(x)
    torch.testing.assert_close(pruned.model[2].weight, network[2].weight[rows][:, columns])
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, build)(x), pruned.model.eval()(x))
    again = ifap.prune(build(), x[:1], [x], like=pruned.plan, method="magnitude", steps=1)
    assert again.after == pruned.after


def test_a_weight_norm_of_a_recurrent_layer_keeps_its_weights():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.utils.parametrizations.weight_norm(nn.LSTM(8, 16, batch_first=True), "weight_hh_l0")
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.steps(x)[0][:, -1])

    network, x = Steps(), torch.randn(4, 6, 8)
    pruned = ifap.prune(network, x[:1], [x], target=ifap.Target(macs=0.5), method="magnitude", steps=3)
    kept = pruned.plan.kept["steps.parametrizations.weight_hh_l0.original1"]
    wanted = network.steps.weight_hh_l0[kept["dim0"]][:, kept["dim1"]]
    torch.testing.assert_close(pruned.model.steps.weight_hh_l0, wanted)


def test_quantised_layers_stay_and_what_is_before_them_is_cut():
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    x = torch.randn(2, 3, 8, 8)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.3), min_units=1)
    assert "quantised layers and no_grad stop them" in pruned.receipts[-1].scored[0]
    assert pruned.model[0].out_channels < 8
    assert pruned.model[2].out_channels == 8
    assert "quantized" in pruned.receipts[0].pinned["2"]
    assert pruned.model(x).shape == (2, 4)


def test_experts_that_are_not_reached_lose_what_the_others_lose():
    kind = KINDS["experts_that_the_sample_does_not_reach"]
    pruned = halved(kind.build(), kind.inputs())
    shapes = [{name: p.shape for name, p in expert.named_parameters()} for expert in pruned.model.experts]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0]["0.weight"] != (20, 12)
    for expert in pruned.model.experts:
        assert expert(torch.randn(2, pruned.model.embed.out_features)).isfinite().all()


def test_what_attention_by_the_function_reads_stays():
    kind = KINDS["attention_by_the_function"]
    model, inputs = kind.build(), kind.inputs()
    pinned = ifap.inspect(model, inputs)
    reason = "multi_head_attention_forward reads its widths by itself"
    assert {stay.name for stay in pinned.stays if stay.reason == reason} >= {"embed", "weight"}


@functools.lru_cache(None)
def first_position(positions):
    """Keep a tensor of the first forward, as some networks do with their positions."""
    return {"by length": [positions[0]]}


@functools.lru_cache(None)
def registered():
    """Stand for what a library registers once: lost with the cache."""
    return object()


class Positions(nn.Sequential):
    def forward(self, x):
        kept = first_position(self[0].weight)
        return super().forward(x) + 0 * kept["by length"][0].sum()


def test_a_cache_loses_tensors_without_data_and_nothing_else():
    gc.unfreeze()  # a cache is found among the objects that Python collects
    held = registered()
    model = Positions(nn.Linear(8, 8), nn.Linear(8, 4))
    first_position.cache_clear()
    ifap.inspect(model, torch.randn(2, 8))
    assert first_position.cache_info().currsize == 0
    assert registered() is held
    assert model(torch.randn(2, 8)).isfinite().all()
    gc.freeze()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_networks_are_pruned_inside(wrap):
    kind = KINDS["dataclass_outputs"]
    plain, wrapped = (halved(model, kind.inputs()) for model in (kind.build(), wrap(kind.build())))
    assert type(wrapped.model).__name__ == type(plain.model).__name__ == "Answers"
    assert wrapped.plan.kept == plain.plan.kept
    for a, b in zip(
        outputs(plain.model.eval(), kind.inputs()), outputs(wrapped.model.eval(), kind.inputs()), strict=True
    ):
        assert torch.equal(a, b)


class Experts(nn.Module):
    """Two experts whose products are one grouped product each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.rise = nn.Parameter(torch.randn(2, 16, 32) * 0.2)
        self.fall = nn.Parameter(torch.randn(2, 32, 16) * 0.2)

    def forward(self, x):
        ends = torch.tensor([3, 8], dtype=torch.int32)
        x = self.stem(x)
        return torch._grouped_mm(torch.relu(torch._grouped_mm(x, self.rise, offs=ends)), self.fall, offs=ends)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this version of torch has no grouped product")
def test_experts_cut_in_single_precision_still_run_in_half():
    net, x = Experts().eval(), torch.randn(8, 16)
    pruned = ifap.prune(net, x, [x], target=ifap.Target(macs=0.6), method="magnitude", steps=1).model
    assert pruned.rise.shape[2] % 8 == 0
    assert pruned.rise.shape[2] < 32
    assert pruned.bfloat16()(x.bfloat16()).shape == (8, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("observes", [True, False])
def test_networks_that_train_for_quantisation_lose_channels_with_their_scales(observes, tmp_path):
    from torch.ao import quantization as quantize

    def build():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU()]
        model = nn.Sequential(
            quantize.QuantStub(),
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 5),
            quantize.DeQuantStub(),
        )
        model.train().qconfig = quantize.QConfig(
            activation=quantize.default_fake_quant, weight=quantize.default_per_channel_weight_fake_quant
        )
        quantize.prepare_qat(model, inplace=True)
        model(torch.randn(8, 3, 12, 12))
        return model.eval() if observes else model.eval().apply(quantize.disable_observer)

    model, x = build(), torch.randn(2, 3, 12, 12)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.5), method="magnitude", steps=2)
    kept = pruned.plan.kept
    assert len(kept["1.weight_fake_quant.scale"]["dim0"]) == pruned.model[1].out_channels < 24
    if observes:
        assert quantize.convert(copy.deepcopy(pruned.model))(x).shape == (2, 5)
        return  # each forward changes the scales
    with torch.no_grad():  # the proof does not apply: its operations have no double precision
        for name, sides in kept.items():
            if "in" in sides:
                weight = model.get_submodule(name).weight
                weight[:, [unit for unit in range(weight.shape[1]) if unit not in sides["in"]]] = 0
    torch.testing.assert_close(pruned.model(x), model(x))
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, build)(x), pruned.model(x))
