"""Prepared splits: whole, disjoint, stratified, repeatable and guarded against mix-ups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ifap.errors import ConfigError, ResultsError, SplitError
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS
from ifap.study.data.base import ROLES, data_checksum, read_manifest
from ifap.study.data.images import random_shift

OPTIONS = DatasetOptions(validation=0.2, test=0.2, split_seed=0)
NOWHERE = Path("nowhere")


def write(digits, folder, options=OPTIONS):
    return digits.write(options, {"version": 1}, "scikit-learn", NOWHERE, folder)


@pytest.fixture(scope="module")
def digits():
    return DATASETS.get("digits")


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write(digits, folder)
    return folder


def inputs_of(split):
    return split.read(torch.arange(len(split)))[0]


def test_the_splits_are_all_samples_once(digits):
    samples = digits.prepare(OPTIONS, NOWHERE)
    images = digits.read(NOWHERE)["train"].images
    assert {role: len(part.targets) for role, part in samples.items()} == {
        "train": 1079,
        "validation": 359,
        "test": 359,
    }
    together = torch.cat([samples[role].images for role in ROLES]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, images.flatten(1).tolist()))
    for part in samples.values():
        share = torch.bincount(part.targets, minlength=10) / len(part.targets)
        assert (share - 0.1).abs().max() < 0.01


def test_a_share_is_asked_for_exactly_what_the_data_set_lacks(digits):
    with pytest.raises(ConfigError, match=r"'digits' has no test split: set datasets\.digits\.test"):
        digits.prepare(OPTIONS.model_copy(update={"test": None}), NOWHERE)
    parts = digits.prepare(OPTIONS, NOWHERE)
    whole = dataclasses.replace(digits, read=lambda _: parts)
    with pytest.raises(ConfigError, match=r"has its own test split: leave out datasets\.digits\.test"):
        whole.prepare(OPTIONS, NOWHERE)
    kept = whole.prepare(DatasetOptions(split_seed=0), NOWHERE)
    assert all(torch.equal(kept[role].images, parts[role].images) for role in ROLES)


def test_a_part_of_the_training_samples_keeps_its_classes_in_proportion(digits):
    spec = DATASETS.get("digits")
    whole = spec.prepare(OPTIONS, NOWHERE)
    part = spec.prepare(OPTIONS.model_copy(update={"train_samples": 500}), NOWHERE)
    assert len(part["train"].targets) == 500
    shares = torch.bincount(whole["train"].targets) / len(whole["train"].targets)
    assert (torch.bincount(part["train"].targets) - 500 * shares).abs().max() <= 1
    assert torch.equal(part["test"].targets, whole["test"].targets)
    assert torch.equal(part["validation"].targets, whole["validation"].targets)
    with pytest.raises(ConfigError, match="train_samples: 5000 asked for, 1079 there"):
        spec.prepare(OPTIONS.model_copy(update={"train_samples": 5000}), NOWHERE)


def test_loaded_inputs_are_resized_and_normalised_by_the_training_split(digits, folder):
    train = digits.load(folder / "train.safetensors", "train", 32)
    test = digits.load(folder / "test.safetensors", "test", 32)
    inputs = inputs_of(train)
    assert inputs.shape == (1079, 1, 32, 32)
    assert inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 0.05
    assert test.role == "test"
    raw = digits.prepare(OPTIONS, NOWHERE)["train"].images.double() / 16
    assert float(inputs.min()) == pytest.approx(float(-raw.mean() / raw.std()), abs=1e-5)


def test_a_grey_image_can_be_repeated_for_networks_of_three_channels(digits, folder, tmp_path):
    write(digits, tmp_path, OPTIONS.model_copy(update={"channels": 3}))
    grey, repeated = (inputs_of(digits.load(at / "test.safetensors", "test", 8)) for at in (folder, tmp_path))
    assert repeated.shape == (359, 3, 8, 8)
    assert torch.equal(repeated, grey.expand(-1, 3, -1, -1))


def test_files_and_checksum_repeat_byte_for_byte(digits, folder, tmp_path):
    again = write(digits, tmp_path)
    for name in (*(f"{role}.safetensors" for role in ROLES), "manifest.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    manifest = read_manifest(folder)
    assert manifest == again
    assert manifest["checksum"] == data_checksum({role: manifest["splits"][role]["sha256"] for role in ROLES})
    assert sum(manifest["splits"]["train"]["class_counts"]) == 1079
    other = write(digits, tmp_path, OPTIONS.model_copy(update={"split_seed": 1}))
    assert other["checksum"] != manifest["checksum"]


def test_a_split_under_another_name_is_refused(digits, folder):
    with pytest.raises(SplitError, match="holds the test split"):
        digits.load(folder / "test.safetensors", "train", 32)


def test_missing_and_damaged_files_are_one_clear_error(digits, folder, tmp_path):
    with pytest.raises(ResultsError, match="run the fetch stage first"):
        digits.load(tmp_path / "train.safetensors", "train", 32)
    with pytest.raises(ResultsError, match="run the fetch stage first"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ResultsError, match="not valid JSON"):
        read_manifest(tmp_path)
    good = (folder / "train.safetensors").read_bytes()
    flipped = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    for damaged in (good[:1000], b"", flipped):
        (tmp_path / "train.safetensors").write_bytes(damaged)
        with pytest.raises(ResultsError, match="damaged"):
            digits.load(tmp_path / "train.safetensors", "train", 32)


def test_a_wrong_class_count_is_noticed(digits):
    with pytest.raises(ConfigError, match="claims 12 classes, its data have 10"):
        dataclasses.replace(digits, classes=12).prepare(OPTIONS, NOWHERE)


def test_shifts_are_whole_pixels_within_an_eighth_and_repeatable():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 8] = 1
    batch = image.repeat(64, 2, 1, 1)
    batch[:, 1] *= 2
    shifted = random_shift(batch, torch.Generator().manual_seed(0))
    assert torch.equal(shifted, random_shift(batch, torch.Generator().manual_seed(0)))
    assert torch.equal(shifted[:, 1], 2 * shifted[:, 0])
    spots = shifted[:, 0].nonzero()[:, 1:]
    assert len(spots) == 64
    assert spots.min() == 6
    assert spots.max() == 10
    assert int(batch[:, 0].sum()) == 64  # the input is left alone
