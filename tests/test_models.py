"""Every small network trains, and every network is built again from its identifier; see test_paper_models.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ifap.errors import ConfigError, PlanError
from ifap.models import MODELS, builder_from_id, builder_id

ARGS = {"num_classes": 10, "in_channels": 1, "image_size": 32}
TINY = [name for name in MODELS.names() if name.endswith("_tiny")]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_and_backward(name, channels):
    torch.manual_seed(0)
    network = MODELS.get(name)(num_classes=7, in_channels=channels, image_size=32)
    outputs = network(torch.randn(3, channels, 32, 32))
    assert outputs.shape == (3, 7)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < 250_000


@pytest.mark.parametrize("name", TINY)
def test_the_identifier_builds_the_same_network(name):
    torch.manual_seed(0)
    first = MODELS.get(name)(**ARGS)
    torch.manual_seed(0)
    again = builder_from_id(builder_id(name), ARGS)
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_networks_cover_the_families():
    kinds = {name: {type(module) for module in MODELS.get(name)(**ARGS).modules()} for name in TINY}
    assert nn.BatchNorm2d in kinds["resnet_tiny"]
    assert nn.Hardswish in kinds["mobilenet_tiny"]
    assert any(
        module.groups > 1 for module in MODELS.get("mobilenet_tiny")(**ARGS).modules() if isinstance(module, nn.Conv2d)
    )
    assert nn.MultiheadAttention in kinds["vit_tiny"]


@pytest.mark.parametrize(
    ("identifier", "args", "message"),
    [
        ("ifap:resnet_tny", ARGS, "did you mean 'resnet_tiny'"),
        ("os:system", ARGS, "not one of this package"),
        (None, ARGS, "not one of this package"),
        ("ifap:resnet_tiny", {**ARGS, "num_classes": 10**12}, "num_classes must be a whole number"),
        ("ifap:resnet_tiny", {**ARGS, "num_classes": True}, "num_classes must be a whole number"),
        ("ifap:resnet_tiny", {**ARGS, "image_size": "32"}, "image_size must be a whole number"),
        ("ifap:resnet_tiny", {"num_classes": 10}, "builder arguments must be"),
        ("ifap:resnet_tiny", {**ARGS, "extra": 1}, "builder arguments must be"),
    ],
)
def test_a_hostile_identifier_is_one_clear_error(identifier, args, message):
    with pytest.raises(PlanError, match=message):
        builder_from_id(identifier, args)


def test_a_misspelt_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny'"):
        MODELS.get("vit_tny")
