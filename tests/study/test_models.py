"""Every small network trains, and every network is built again from its identifier; see test_paper_models.py."""

from __future__ import annotations

import inspect

import pytest
import torch
from dense_networks import DENSE
from torch import nn

from ifap.errors import ConfigError, PlanError
from ifap.study.models import MODELS, builder_from_id, builder_id
from ifap.study.models.base import HEADS, LIMITS

ARGS = {"num_classes": 10, "in_channels": 1, "image_size": 32}
TEXT = {"head": "classification", "num_labels": 3, "vocab_size": 100, "max_length": 16}


def arguments(name):
    """Return what a network is built from."""
    return inspect.signature(MODELS.get(name)).parameters


SMALL = [name for name in MODELS.names() if name.endswith("_tiny")]
IMAGES = [name for name in SMALL if "image_size" in arguments(name)]
TINY = [name for name in IMAGES if name not in DENSE]
TINY_TEXT = [name for name in SMALL if name not in IMAGES]


def text(name, rows=2, tokens=8):
    """Return a batch of made-up texts, the last one padded as the family pads."""
    ids = torch.randint(2, TEXT["vocab_size"] - 1, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, tokens - 3 :] = 0
    ids[-1, tokens - 3 :] = TEXT["vocab_size"] - 1 if name.startswith("gpt2") else 0
    if name.startswith("t5"):
        ids[:-1, -1] = ids[-1, tokens - 4] = 1
    return {"input_ids": ids, "attention_mask": mask}


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


@pytest.mark.parametrize("name", TINY_TEXT)
@pytest.mark.parametrize("head", HEADS)
def test_text_forward_and_backward(name, head):
    torch.manual_seed(0)
    network = MODELS.get(name)(**{**TEXT, "head": head})
    inputs = text(name)
    if (name, head) == ("t5_tiny", "language"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    found = network(**inputs)
    if head == "span":
        assert found.start_logits.shape == found.end_logits.shape == (2, 8)
        loss = (found.start_logits * torch.linspace(0, 1, 8) + found.end_logits).square().sum()
    else:
        assert found.logits.shape == ((2, 3) if head == "classification" else (2, 8, 100))
        loss = found.logits.square().sum()
    loss.backward()
    unused = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert [key for key in unused if "token_type" not in key] == []
    assert sum(parameter.numel() for parameter in network.parameters()) < 250_000


@pytest.mark.parametrize("name", TINY_TEXT)
def test_padding_says_nothing(name):
    torch.manual_seed(0)
    network = MODELS.get(name)(**TEXT).eval()
    padded = text(name)
    short = {key: value[-1:, :5] for key, value in padded.items()}
    torch.testing.assert_close(network(**padded).logits[-1:], network(**short).logits)


def test_the_classifier_of_t5_is_that_of_the_library():
    from transformers import T5ForSequenceClassification

    network = MODELS.get("t5_tiny")(**TEXT).eval()
    inputs = text("t5_tiny")
    torch.testing.assert_close(
        network(**inputs).logits, T5ForSequenceClassification.forward(network, **inputs).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize(("name", "table"), [("bert_base", 512), ("gpt2_base", 1024)])
def test_texts_longer_than_the_table_of_positions_are_one_clear_error(name, table):
    with pytest.raises(ConfigError, match=f"{table + 1} tokens are too many for '{name}': .* has {table}"):
        MODELS.get(name)(**{**TEXT, "max_length": table + 1})


def test_every_argument_has_a_limit():
    assert {argument for name in MODELS.names() for argument in arguments(name)} == set(LIMITS)


@pytest.mark.parametrize("name", SMALL)
def test_the_identifier_builds_the_same_network(name):
    args = ARGS if name in IMAGES else TEXT
    torch.manual_seed(0)
    first = MODELS.get(name)(**args)
    torch.manual_seed(0)
    again = builder_from_id(builder_id(name), args)
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
        ("ifap:resnet_tiny", TEXT, "builder arguments must be num_classes, in_channels, image_size"),
        ("ifap:bert_tiny", ARGS, "builder arguments must be head, num_labels, vocab_size, max_length"),
        ("ifap:bert_tiny", {**TEXT, "head": "clasification"}, "did you mean 'classification'"),
        ("ifap:bert_tiny", {**TEXT, "head": ["span"]}, "head .* is unknown"),
        ("ifap:t5_tiny", {**TEXT, "vocab_size": 10**9}, "vocab_size must be a whole number from 1 to 300000"),
    ],
)
def test_a_hostile_identifier_is_one_clear_error(identifier, args, message):
    with pytest.raises(PlanError, match=message):
        builder_from_id(identifier, args)


def test_a_misspelt_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny'"):
        MODELS.get("vit_tny")
