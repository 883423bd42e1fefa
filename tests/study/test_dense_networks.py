"""Detectors, segmenters and generators: their shapes, their losses, and that they stay themselves when pruned."""

from __future__ import annotations

import math

import pytest
import torch
from dense_networks import CLASSES, DENSE, DETECTION, GENERATION, SEGMENTATION, build, inputs_of, size_of, targets_of
from networks import assert_equivalent, double, leaves, randomize
from torch import nn

import ifap
from ifap.costs import macs_by_module
from ifap.errors import ConfigError
from ifap.forward import call, dense_outputs
from ifap.study.models import MODELS
from ifap.study.models.detr import match, matched_losses
from ifap.study.models.faster_rcnn import TINY
from ifap.study.models.yolov4 import STRIDES

SHARE = 0.5
FULL = {
    "dcgan": (3, 32),
    "detr_vit_b_16": (3, 32),
    "faster_rcnn_resnet50": (3, 64),
    "fcn_vgg19_bn": (3, 32),
    "segformer_vit_b_16": (3, 32),
    "stable_diffusion_v1_5": (4, 8),
    "unet_resnet50": (3, 32),
    "vqgan": (3, 32),
    "yolov4_shufflenet_v2": (3, 64),
}


def loss_of(name, model, inputs):
    """Return a scalar that every weight counts in."""
    if name in DETECTION:
        return sum(model(inputs, targets_of(len(inputs))).values())
    return sum(tensor.square().mean() for tensor in leaves(call(model, inputs)))


@pytest.mark.parametrize("name", DENSE)
def test_forward_and_backward(name):
    model = build(name).train()
    loss_of(name, model, inputs_of(name)).backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000


@pytest.mark.parametrize("name", DENSE)
def test_other_channels_and_classes(name):
    model = build(name, classes=2, channels=1)
    outputs = leaves(model(inputs_of(name, channels=1))) if name in SEGMENTATION else None
    if outputs is not None:
        assert outputs[0].shape == (2, 2, size_of(name), size_of(name))
    assert ifap.cost(model, inputs_of(name, channels=1)).macs > 0


@pytest.mark.parametrize("name", DENSE)
def test_prune_train_save_load(name, tmp_path):
    """Three iterations reach the reduction within a point; the result trains, and loads bit by bit."""
    model = build(name)
    inputs = inputs_of(name)
    pruned = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=SHARE), steps=3, min_units=1)
    assert len(pruned.receipts) == 4
    assert SHARE <= pruned.after.reduction(pruned.before, "macs") < SHARE + 0.01
    assert pruned.after == ifap.cost(pruned.model, inputs)
    loss_of(name, pruned.model.train(), inputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.model.parameters())
    pruned.model.eval()
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: build(name, seed=3))
    with torch.no_grad():
        for found, wanted in zip(leaves(call(loaded, inputs)), leaves(call(pruned.model, inputs)), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", DENSE)
def test_pruned_network_computes_what_the_masked_one_does(name):
    """No channel, head, gate or group was mistaken for another on the way through necks and decoders."""
    model = randomize(build(name)).double()
    inputs = double(inputs_of(name))
    pruned = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.4), steps=2, method="random", min_units=1)
    transformers = ("detr_tiny", "segformer_tiny", "stable_diffusion_tiny")
    with dense_outputs(model), dense_outputs(pruned.model):
        assert_equivalent(model, pruned, inputs, mixes_channels=name in transformers)


# --- detection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTION)
def test_detections_look_like_those_of_torchvision(name):
    model = build(name)
    inputs = inputs_of(name, batch=3)
    with torch.no_grad():
        found = model(inputs)
    assert len(found) == 3
    for image in found:
        number = len(image["scores"])
        assert image["boxes"].shape == (number, 4)
        assert image["labels"].shape == (number,)
        assert ((image["labels"] >= 0) & (image["labels"] < CLASSES)).all()
        assert (image["scores"].diff() <= 0).all()
        assert (image["boxes"] >= 0).all()
        assert (image["boxes"] <= size_of(name)).all()
        assert (image["boxes"][:, 2:] >= image["boxes"][:, :2]).all()


@pytest.mark.parametrize("name", DETECTION)
def test_losses_do_not_depend_on_the_mode_but_for_norms_and_dropout(name):
    model = build(name)
    inputs, targets = inputs_of(name, batch=3), targets_of(3)
    torch.manual_seed(0)
    once = model(inputs, targets)
    torch.manual_seed(0)
    again = model(inputs, targets)
    assert all(value.dim() == 0 and value.isfinite() for value in once.values())
    assert {key: value.item() for key, value in once.items()} == {key: value.item() for key, value in again.items()}
    assert not any(module.training for module in model.modules())
    with pytest.raises(ConfigError, match="needs targets"):
        model.train()(inputs)


@pytest.mark.parametrize("name", DETECTION)
def test_images_without_objects_have_a_loss(name):
    model = build(name).train()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 2
    loss = sum(model(inputs_of(name), empty).values())
    assert loss.isfinite()
    loss.backward()


@pytest.mark.parametrize("name", DETECTION)
def test_a_few_steps_make_the_loss_of_one_batch_fall(name):
    model = build(name).train()
    inputs, targets = inputs_of(name), targets_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        loss = sum(model(inputs, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.9 * sum(history[:3])


def test_dense_outputs_of_detectors_have_the_stated_shapes():
    size = 64
    for name, wanted in {
        "detr_tiny": [(2, 16, CLASSES + 1), (2, 16, 4)],
        "yolov4_shufflenet_tiny": [(2, 3 * (5 + CLASSES), size // s, size // s) for s in STRIDES],
        "faster_rcnn_tiny": [
            *((2, 3, size // s, size // s) for s in (4, 8, 16, 32)),
            *((2, 12, size // s, size // s) for s in (4, 8, 16, 32)),
            (2 * TINY.proposals, CLASSES + 1),
            (2 * TINY.proposals, 4 * (CLASSES + 1)),
        ],
    }.items():
        model = build(name)
        with torch.no_grad(), dense_outputs(model):
            assert [tuple(t.shape) for t in leaves(model(inputs_of(name)))] == wanted, name
        assert not model.is_dense


def test_the_network_inside_faster_rcnn_is_that_of_torchvision():
    """The same weights find the same boxes, one label lower: torchvision counts nothing as class 0."""
    model = build("faster_rcnn_tiny")
    inputs = inputs_of("faster_rcnn_tiny")
    with torch.no_grad():
        ours, theirs = model(inputs), model.network(list(inputs))
    assert any(len(image["labels"]) for image in ours)
    for mine, image in zip(ours, theirs, strict=True):
        assert torch.equal(mine["boxes"], image["boxes"])
        assert torch.equal(mine["labels"], image["labels"] - 1)


def test_matching_pairs_each_target_with_the_query_that_finds_it():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    wanted = torch.tensor([[0.7, 0.7, 0.9, 0.9], [0.1, 0.1, 0.3, 0.3]])
    scores = torch.zeros(3, 4)
    queries, chosen = match(scores, boxes, wanted, torch.tensor([0, 1]))
    assert dict(zip(chosen.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 1}
    # Where two queries are as near, the one that knows the class is taken.
    twins = boxes[[0, 0]]
    scores = torch.tensor([[0.0, 0, 0, 5], [0, 0, 5.0, 0]])
    queries, _ = match(scores, twins, torch.tensor([[0.4, 0.4, 0.6, 0.6]]), torch.tensor([2]))
    assert queries.tolist() == [1]


def test_the_loss_of_detr_on_a_case_worked_out_by_hand():
    """Two queries, one target that the first finds exactly; both are sure of nothing in particular."""
    scores, scale = torch.zeros(1, 2, 3), torch.tensor([100.0, 50.0, 100.0, 50.0])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    target = {"boxes": torch.tensor([[40.0, 15.0, 60.0, 35.0]]), "labels": torch.tensor([1])}
    losses = matched_losses(scores, boxes, [target], scale)
    assert losses["class"].item() == pytest.approx(math.log(3))  # of every class alike, whatever the weights
    assert losses["distance"].item() == pytest.approx(0, abs=1e-5)
    assert losses["overlap"].item() == pytest.approx(0, abs=1e-5)
    moved = boxes + torch.tensor([0.1, 0, 0, 0])
    losses = matched_losses(scores, moved, [target], scale)
    assert losses["distance"].item() == pytest.approx(5 * 0.1, rel=1e-4)
    assert losses["overlap"].item() == pytest.approx(2 * (1 - 1 / 3), rel=1e-4)  # half of each box is shared


def test_a_cell_of_yolo_that_is_right_costs_nothing():
    from ifap.study.models.yolov4 import Grid, Owner, _grid_losses

    boxes = torch.zeros(1, 3, 2, 2, 4)
    boxes[..., 2:] = 1.0
    wanted = torch.tensor([[3.0, 4.0, 20.0, 30.0]])
    index = tuple(torch.tensor([value]) for value in (0, 1, 1, 0))
    boxes[index] = wanted
    found = torch.full((1, 3, 2, 2), -20.0)
    found[index] = 20.0
    classes = torch.full((1, 3, 2, 2, CLASSES), -20.0)
    classes[(*index, torch.tensor([2]))] = 20.0
    grid = Grid(boxes, found, classes, torch.ones(3, 2), 8)
    losses = _grid_losses(grid, Owner(index, wanted, torch.tensor([2])), [{"boxes": wanted}])
    assert all(value.item() == pytest.approx(0, abs=1e-4) for value in losses)
    wrong = _grid_losses(grid, Owner(index, wanted, torch.tensor([3])), [{"boxes": wanted}])
    assert wrong[2].item() == pytest.approx(40, rel=1e-3)  # two classes are wrong by 20 each


def test_a_large_target_belongs_to_coarse_cells_and_a_small_one_to_fine_cells():
    model = build("yolov4_shufflenet_tiny", size=608)
    images = torch.zeros(1, 3, 608, 608)
    for box, level in (([10.0, 10, 24, 28], 0), ([100.0, 100, 540, 500], 2)):
        target = [{"boxes": torch.tensor([box]), "labels": torch.tensor([0])}]
        raw = [torch.zeros(1, 3 * (5 + CLASSES), 608 // stride, 608 // stride) for stride in STRIDES]
        model.dense = lambda _images, raw=raw: raw
        from ifap.study.models.yolov4 import _owners

        owners = [_owners(grid, target, images) for grid in model._with_shapes(model._decoded(images))]
        counts = [len(owner.boxes) for owner in owners]
        assert counts[level] > 0
        assert counts[2 - level] == 0
        row, column = owners[level].cells[2:]
        assert (row == int((box[1] + box[3]) / 2 // STRIDES[level])).all()
        assert (column == int((box[0] + box[2]) / 2 // STRIDES[level])).all()


# --- segmentation and generation ------------------------------------------------------------------


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmenters_score_every_pixel(name):
    model = build(name)
    with torch.no_grad():
        outputs = model(inputs_of(name))
    assert list(outputs) == ["out"]
    assert outputs["out"].shape == (2, CLASSES, size_of(name), size_of(name))


@pytest.mark.parametrize("name", GENERATION)
def test_generators_make_images_like_those_they_are_given(name):
    model, images = build(name), inputs_of(name, batch=3)
    made = [model.sample(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].shape == images.shape
    assert made[0].isfinite().all()
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2]) == (name == "vqgan_tiny")  # which draws nothing
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", GENERATION)
def test_outputs_are_always_the_same_and_losses_are_scalars(name):
    model, images = build(name), inputs_of(name)
    with torch.no_grad():
        for first, again in zip(leaves(model(images)), leaves(model(images)), strict=True):
            assert torch.equal(first, again)
        losses = model.train()(images)
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())


def test_each_loss_of_dcgan_reaches_one_of_the_two_networks():
    model, images = build("dcgan_tiny").train(), inputs_of("dcgan_tiny")
    for name, other in (("generator", "discriminator"), ("discriminator", "generator")):
        model.zero_grad(set_to_none=True)
        model(images)[name].backward()
        assert all(p.grad is not None for p in model.get_submodule(name).parameters())
        assert all(p.grad is None for p in model.get_submodule(other).parameters())


def test_the_discriminator_is_neither_counted_nor_pruned():
    model, images = build("dcgan_tiny"), inputs_of("dcgan_tiny")
    assert all(name.startswith("generator") for name in macs_by_module(model, images))
    pruned = ifap.prune(model, images, [images], target=ifap.Target(macs=0.5), steps=1, min_units=1)
    assert all(name.startswith("generator") for name in pruned.plan.kept)
    for one, other in zip(model.discriminator.parameters(), pruned.model.discriminator.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_dcgan_makes_images_of_its_size(size):
    images = torch.randn(3, 3, size, size)
    model = build("dcgan_tiny", size=size)
    assert model(images)[0].shape == images.shape
    assert model.discriminator(images).shape == (3, 1)


@pytest.mark.parametrize("size", [7, 30])
def test_sides_that_dcgan_cannot_double_to_are_one_clear_error(size):
    with pytest.raises(ConfigError, match=r"image_size: .*'dcgan_tiny'"):
        build("dcgan_tiny", size=size)


def test_the_published_generator_has_the_published_widths():
    with torch.device("meta"):
        model = MODELS.get("dcgan")(num_classes=1, in_channels=3, image_size=64)
    widths = [module.in_channels for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert widths == [100, 1024, 512, 256, 128]


def test_what_version_1_replaced_in_networks_of_diffusers_computes_the_same():
    """Saved networks of version 1 are loaded with it."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention

    from ifap.saving.legacy_attention import Gated, SpatialAttention

    torch.manual_seed(0)
    tokens, texts, images = torch.randn(2, 9, 16), torch.randn(2, 5, 12), torch.randn(2, 16, 3, 3)
    with torch.no_grad():
        gate = GEGLU(16, 24)
        torch.testing.assert_close(Gated(gate.proj)(tokens), gate(tokens))
        cross = Attention(16, cross_attention_dim=12, heads=4, dim_head=4)
        torch.testing.assert_close(
            SpatialAttention(cross)(tokens, encoder_hidden_states=texts), cross(tokens, encoder_hidden_states=texts)
        )
        spatial = Attention(
            16, heads=2, dim_head=8, norm_num_groups=4, bias=True, residual_connection=True, rescale_output_factor=2.0
        )
        torch.testing.assert_close(SpatialAttention(spatial)(images), spatial(images))


def test_the_u_net_loses_heads_gates_with_their_values_and_whole_groups():
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention

    model = build("stable_diffusion_tiny")
    inputs = inputs_of("stable_diffusion_tiny")
    pruned = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.6), steps=2, method="random", min_units=1)
    kept, before = pruned.plan.kept, dict(model.named_modules())
    attention = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    numbers = {name: pruned.model.get_submodule(name).heads for name in attention}
    assert set(numbers.values()) == {1, 2}
    for name, module in attention.items():
        width, left = module.inner_dim // module.heads, kept.get(f"{name}.to_q", {}).get("out", range(module.inner_dim))
        assert len(left) == numbers[name] * width == pruned.model.get_submodule(name).to_out[0].in_features
        assert {position // width for position in left} == {left[row * width] // width for row in range(numbers[name])}
        assert all(
            kept.get(f"{name}.{part}", {}).get("out", range(module.inner_dim)) == left for part in ("to_k", "to_v")
        )
    gates = {name: module for name, module in model.named_modules() if isinstance(module, GEGLU)}
    assert any("out" in kept.get(f"{name}.proj", {}) for name in gates)
    for name, gate in gates.items():
        left = kept.get(f"{name}.proj", {}).get("out", range(gate.proj.out_features))
        values, after = len(left) // 2, gate.proj.out_features // 2
        assert [position + after for position in left[:values]] == list(left[values:])
    for name, module in pruned.model.named_modules():
        if isinstance(module, nn.GroupNorm):
            old = before[name]
            assert module.num_channels // module.num_groups == old.num_channels // old.num_groups


# --- full size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_everything_but_heads_of_the_full_networks_can_be_pruned(name):
    """Without data: all that the trace must find is there, and one iteration comes to 60 percent."""
    channels, size = FULL[name]
    with torch.device("meta"):
        model = MODELS.get(name)(num_classes=20, in_channels=channels, image_size=size).eval()
        inputs = torch.zeros(1, channels, size, size)
    pruned = ifap.prune(model, inputs, [], target=ifap.Target(macs=0.6), steps=1, method="random", prove=False)
    assert 0.6 <= pruned.after.reduction(pruned.before, "macs") < 0.61
    reasons = set(pruned.receipts[0].pinned.values())
    if "shufflenet" in name:  # its stages shuffle their channels through a reshape, and stay
        reasons = {reason for reason in reasons if "to [1, 2, " not in reason}
    assert not any("reshape" in reason for reason in reasons), reasons
