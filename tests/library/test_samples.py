"""Calibration samples from files: photos, texts, tensors; every misfit is one line that names the file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

import ifap
from ifap.cli.samples import first_sample, read_samples
from ifap.errors import ConfigError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture
def photos(tmp_path):
    """A folder with the two photographs that scikit-learn ships, one of them in a folder below."""
    from PIL import Image

    for place, pixels in zip(("a.png", "more/b.jpg"), load_sample_images().images, strict=True):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / place)
    return tmp_path / "photos"


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer of 30 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(28)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "t"
    )
    return tmp_path / "t"


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n\nw4 w5\n" + " ".join(f"w{i % 28}" for i in range(50)) + "\n")
    return tmp_path / "texts.txt"


def test_photos_are_prepared_as_timm_notes_it(photos):
    import timm

    network = ifap.build("timm:test_resnet")
    (batch,) = read_samples(photos, network, "timm:test_resnet")
    settings = timm.data.resolve_model_data_config(network)
    assert batch.shape == (2, *settings["input_size"])
    assert abs(float(batch.mean())) < 2  # normalised, no longer 0 to 255


def test_photos_are_prepared_as_torchvision_trained(photos):
    batches = read_samples(photos, ifap.build("torchvision:squeezenet1_1"), "torchvision:squeezenet1_1", batch_size=1)
    assert [batch.shape for batch in batches] == [(1, 3, 224, 224)] * 2
    assert first_sample(batches[0]).shape == (1, 3, 224, 224)


def test_a_network_of_ones_own_must_say_how(photos):
    with pytest.raises(ConfigError, match="give --processor, or a"):
        read_samples(photos, nn.Flatten())


def test_a_photo_that_does_not_decode_is_named(photos):
    (photos / "broken.jpg").write_bytes((photos / "more/b.jpg").read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"broken\.jpg: not an image that can be decoded"):
        read_samples(photos, ifap.build("timm:test_resnet"), "timm:test_resnet")


def test_a_photo_of_a_size_that_is_not_decoded_is_named(photos, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ConfigError, match=r"a\.png: not an image that can be decoded \(.*decompression bomb"):
        read_samples(photos, ifap.build("timm:test_resnet"), "timm:test_resnet")


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(ConfigError, match="holds no image"):
        read_samples(tmp_path, ifap.build("timm:test_resnet"), "timm:test_resnet")


def test_texts_become_padded_tokens_no_longer_than_the_positions(texts, tokenizer):
    network = ifap.build("transformers:AutoModelForCausalLM", config=LLAMA)
    first, second = read_samples(texts, network, batch_size=2, tokenizer=tokenizer)
    assert first["input_ids"].shape == (2, 16)
    assert second["input_ids"].shape == (1, 16)
    assert first["input_ids"][0, :4].tolist() == [3, 4, 5, 0]
    assert first["attention_mask"][0].sum() == 3
    assert set(first) <= {"input_ids", "attention_mask"}
    network(**first_sample(first))


def test_misfits_of_texts_are_one_line(texts, tokenizer, tmp_path):
    network = ifap.build("transformers:AutoModelForCausalLM", config=LLAMA)
    small = ifap.build("transformers:AutoModelForCausalLM", config={**LLAMA, "vocab_size": 8})
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, model, options, said in (
        (texts, network, {}, "texts need --tokenizer"),
        (texts, network, {"tokenizer": tokenizer, "length": 17}, "--length 17: the network has 16 positions"),
        (texts, small, {"tokenizer": tokenizer}, r"makes token \d+, the network knows 8"),
        (texts, network, {"tokenizer": tmp_path / "none"}, "none: no such folder"),
        (texts, network, {"tokenizer": tmp_path}, "not a tokenizer"),
        (empty, network, {"tokenizer": tokenizer}, "empty.txt: holds no text"),
        (binary, network, {"tokenizer": tokenizer}, "binary.txt: not a text file in UTF-8"),
        (tmp_path / "gone.txt", network, {}, "gone.txt: file not found"),
        (tmp_path / "t" / "tokenizer.json", network, {}, "give a folder of images"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            read_samples(path, model, **options)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_pad_is_named(texts, tokenizer):
    network = ifap.build("transformers:AutoModelForCausalLM", config=LLAMA)
    file = tokenizer / "tokenizer_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in told.items() if key != "pad_token"}))
    with pytest.raises(ConfigError, match=r"no token to pad with: name a pad_token in tokenizer_config\.json"):
        read_samples(texts, network, tokenizer=tokenizer)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


def test_several_named_tensors_are_arguments(tmp_path):
    save_file({"left": torch.randn(5, 4), "right": torch.randn(5, 5)}, tmp_path / "two.safetensors")
    batches = read_samples(tmp_path / "two.safetensors", TwoInputs(), batch_size=2)
    assert [{name: len(tensor) for name, tensor in batch.items()} for batch in batches] == [
        {"left": 2, "right": 2},
        {"left": 2, "right": 2},
        {"left": 1, "right": 1},
    ]


def test_misfits_of_tensors_are_one_line(tmp_path):
    for name, tensors, said in (
        ("unknown", {"left": torch.randn(2, 4), "middle": torch.randn(2, 5)}, "'middle' is no argument of the network"),
        ("uneven", {"left": torch.randn(2, 4), "right": torch.randn(3, 5)}, "different numbers of samples"),
        ("empty", {"left": torch.randn(0, 4), "right": torch.randn(3, 5)}, "'left' holds no samples"),
        ("nothing", {}, "no tensor at all"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ConfigError, match=said):
            read_samples(tmp_path / f"{name}.safetensors", TwoInputs())
    (tmp_path / "torn.safetensors").write_bytes(b"\x08")
    with pytest.raises(ConfigError, match=r"not a valid safetensors file .*; safetensors\.torch\.save_file writes one"):
        read_samples(tmp_path / "torn.safetensors", TwoInputs())
