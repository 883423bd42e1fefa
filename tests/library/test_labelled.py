"""Labelled samples from files: photos in class folders, texts in a table, tensors; every misfit is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_samples import LLAMA, tokenizer  # noqa: F401
from torch import nn

import ifap
from ifap.cli.labelled import Accuracy, Labelled, read_labelled
from ifap.data import Split
from ifap.errors import ConfigError, SplitError

TIMM = "timm:test_resnet"
BERT = {**LLAMA, "model_type": "bert", "num_labels": 3, "id2label": {"0": "sad", "1": "calm", "2": "glad"}}


@pytest.fixture(scope="module")
def network():
    return ifap.build(TIMM, num_classes=3)


@pytest.fixture(scope="module")
def bert():
    config = {**BERT, "label2id": {"sad": 0, "calm": 1, "glad": 2}}
    return ifap.build("transformers:AutoModelForSequenceClassification", config=config)


def write_photos(folder, classes):
    """Write photos whose brightness tells their class and number."""
    from PIL import Image

    for place, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), 40 * place + number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


# --- photos ---------------------------------------------------------------------------------------


def test_photos_have_the_numbers_of_their_folders_in_order(tmp_path, network):
    folder = write_photos(tmp_path / "photos", {"ant": 5, "bee": 10, "cat": 5})
    found = read_labelled(folder, network, TIMM)
    assert found.targets.tolist() == [0] * 5 + [1] * 10 + [2] * 5
    inputs, targets = found.whole().read(torch.tensor([0, 19]))
    assert inputs.shape[0] == 2
    assert targets.tolist() == [0, 2]
    assert inputs[0].mean() < inputs[1].mean()


def test_folders_that_are_numbers_are_the_classes(tmp_path, network):
    found = read_labelled(write_photos(tmp_path / "photos", {"2": 2, "0": 1}), network, TIMM)
    assert found.targets.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"ant": 1, "bee": 1}, r"2 classes \(ant, bee\), but the network has 3: name each class by its number"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, r"4 classes \(a, b, c, \.\.\.\), but the network has 3"),
        ({"0": 1, "3": 1}, "class 3 does not exist: the network has the classes 0 to 2"),
        ({"-1": 1, "0": 1}, "class -1 does not exist"),
        ({"ant": 1, "bee": 0, "cat": 1}, "bee: holds no image"),
        ({}, "holds no folder: give one folder of images for each class"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(tmp_path, network, classes, said):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match=said) as caught:
        read_labelled(write_photos(tmp_path / "photos", classes), network, TIMM)
    assert "\n" not in str(caught.value)


def test_a_photo_that_does_not_decode_is_found_before_anything_else(tmp_path, network):
    folder = write_photos(tmp_path / "photos", {"ant": 2, "bee": 2, "cat": 2})
    whole = (folder / "cat/01.png").read_bytes()
    (folder / "cat/01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"cat/01\.png: not an image that can be decoded"):
        read_labelled(folder, network, TIMM)


# --- texts ----------------------------------------------------------------------------------------


def test_a_table_of_texts_and_labels(tmp_path, bert, tokenizer):  # noqa: F811
    table = tmp_path / "table.csv"
    table.write_text('label,text\nglad,"w1, w2"\nsad,w3\n\nglad,w4 w5 w6\n')
    found = read_labelled(table, bert, tokenizer=tokenizer)
    assert found.targets.tolist() == [2, 0, 2]  # as the configuration numbers them, not by their names' order
    inputs, _ = found.whole().read(torch.tensor([1]))
    assert inputs["input_ids"][0, 0] == 5
    assert bert(**inputs).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 must name the columns: text,label"),
        ("w1,0\n", "line 1 must name the columns: text,label"),
        ("text,label,more\n", "line 1 must name the columns"),
        ("text,label\n", "holds no text"),
        ("text,label\nw1,0\nw2\n", "line 3 must hold a text and a label, and nothing else"),
        ("text,label\nw1,w2,0\n", "line 2 must hold"),
        ("text,label\nw1,\n", "line 2 must hold"),
        ('text,label\n"w1,0\n', "line 2: unexpected end of data"),
        ("text,label\nw1,happy\n", r"1 class \(happy\), but the network has 3"),
        ("text,label\nw1,7\n", "class 7 does not exist"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path, bert, tokenizer, text, said):  # noqa: F811
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"table\.csv: {said}") as caught:
        read_labelled(tmp_path / "table.csv", bert, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


def test_texts_need_a_tokenizer_and_a_classifier(tmp_path, tokenizer):  # noqa: F811
    table = tmp_path / "table.csv"
    table.write_text("text,label\nw1,0\n")
    with pytest.raises(ConfigError, match="texts need --tokenizer"):
        read_labelled(table, nn.Linear(2, 2))
    encoder = ifap.build("transformers:AutoModel", config={**LLAMA, "model_type": "bert"})
    with pytest.raises(ConfigError, match=r"labels need a classifier: the network's output has the shape \(1, 1, 16\)"):
        read_labelled(table, encoder, tokenizer=tokenizer)


def test_outputs_without_scores_are_named(tmp_path):
    class Empty(nn.Module):
        def forward(self, x):
            return []

    save_file({"inputs": torch.randn(2, 6), "labels": torch.tensor([0, 1])}, tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match="labels need a classifier: the network returns no scores of classes"):
        read_labelled(tmp_path / "t.safetensors", Empty())


# --- tensors --------------------------------------------------------------------------------------


def test_tensors_with_labels(tmp_path):
    save_file({"inputs": torch.randn(4, 6), "labels": torch.tensor([0, 1, 1, 2])}, tmp_path / "t.safetensors")
    found = read_labelled(tmp_path / "t.safetensors", nn.Linear(6, 3))
    assert found.targets.tolist() == [0, 1, 1, 2]
    for name, tensors, said in (
        ("none", {"inputs": torch.randn(4, 6)}, "no tensor 'labels'"),
        ("float", {"inputs": torch.randn(4, 6), "labels": torch.zeros(4)}, "no tensor 'labels' with one whole number"),
        ("few", {"inputs": torch.randn(4, 6), "labels": torch.tensor([1])}, "4 samples, but 1 label$"),
        ("high", {"inputs": torch.randn(1, 6), "labels": torch.tensor([3])}, "class 3 does not exist"),
        ("other", {"inputs": torch.randn(1, 5), "labels": torch.tensor([0])}, "does not run on its samples"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ConfigError, match=rf"{name}\.safetensors: .*{said}"):
            read_labelled(tmp_path / f"{name}.safetensors", nn.Linear(6, 3))
    with pytest.raises(ConfigError, match=r"gone\.csv: file not found"):
        read_labelled(tmp_path / "gone.csv", nn.Linear(6, 3))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"give a folder of class folders, a \.csv file"):
        read_labelled(tmp_path / "x.json", nn.Linear(6, 3))


# --- parts and accuracy ---------------------------------------------------------------------------


def test_one_in_five_of_every_class_is_kept_apart_always_the_same():
    targets = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    labelled = Labelled(torch.arange(35.0)[:, None], targets)
    train, validation = labelled.parts()
    assert (train.role, validation.role) == ("train", "validation")
    assert torch.bincount(validation.targets).tolist() == [4, 2, 1]
    seen = [split.read(torch.arange(len(split)))[0].flatten().tolist() for split in (train, validation)]
    assert sorted(seen[0] + seen[1]) == list(range(35))
    assert all(targets[int(row)] == target for row, target in zip(seen[1], validation.targets, strict=True))
    again = labelled.parts()[1]
    assert again.read(torch.arange(7))[0].flatten().tolist() == seen[1]
    assert seen[1] != list(range(4, 35, 5))  # drawn, not the last of five


def test_few_samples_leave_one_to_validate_on():
    train, validation = Labelled(torch.randn(2, 3), torch.tensor([0, 1])).parts()
    assert (len(train), len(validation)) == (1, 1)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        Labelled(torch.randn(1, 3), torch.tensor([0])).parts()


def test_accuracy_is_that_of_the_samples():
    network = nn.Linear(3, 3)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3))
        network.bias.zero_()
    inputs, targets = torch.eye(3).repeat(3, 1), torch.tensor([0, 1, 2, 0, 1, 2, 1, 1, 1])
    measure = Accuracy(Split("validation", inputs, targets), batch_size=2)
    assert measure(network) == pytest.approx(100 * 7 / 9)
    assert measure.metric == "accuracy on 9 samples (%)"
    assert network.training
    with pytest.raises(SplitError):
        ifap.prune(
            network, inputs[:1], [inputs], target=ifap.Target(macs=0.5),
            validate=Accuracy(Split("test", inputs, targets)),
        )  # fmt: skip


def test_reading_is_told(tmp_path, network):
    read = []
    folder = write_photos(tmp_path / "photos", {"ant": 5, "bee": 5, "cat": 5})
    train, validation = read_labelled(folder, network, TIMM, on_read=read.append).parts()
    assert read == [1] * 15  # each was checked
    del read[:]
    train.read(torch.arange(12))
    Accuracy(validation)(network)
    assert read == [12, 3]
