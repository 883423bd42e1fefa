"""The paper's nine classification sets: every twin goes through the reader of the real data."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from torch import nn

from ifap.errors import ConfigError, ResultsError
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS
from ifap.study.data.broken_images import drop_undecodable, undecodable
from ifap.study.data.origins import PLACES, home
from ifap.study.data.pickles import plain_pickle, refuse_foreign
from ifap.study.data.raw_images import Arrays, Files
from ifap.study.data.twins import Patterns

CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "fashion_mnist": 10,
    "imagenet": 1000,
    "stanford_cars": 196,
    "inaturalist": 10_000,
    "food101": 101,
    "oxford_pet": 37,
    "fer2013": 7,
}
ARRAYS = {"cifar10": (3, 32), "cifar100": (3, 32), "fashion_mnist": (1, 28), "fer2013": (1, 48)}
FILES = sorted(set(CLASSES) - set(ARRAYS))
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Twins of three classes with four training and two test images each; only to be read."""
    folder = tmp_path_factory.mktemp("twins")
    for name in CLASSES:
        DATASETS.get(name).twin(folder / name, 3, 4, 0)
    return folder


@pytest.fixture
def own(twins, tmp_path):
    """Return a copy of one twin that a test may damage."""

    def copy(name):
        return shutil.copytree(twins / name, tmp_path / name)

    return copy


def read(name, folder):
    return DATASETS.get(name).read(folder)


def pixels(part, row):
    if isinstance(part, Arrays):
        return part.images[row].permute(1, 2, 0).numpy()
    return np.asarray(Image.open(part.root / part.names[row]))


# --- what a reader returns ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_twin_is_read_as_what_it_was_written_as(twins, name):
    found, spec = read(name, twins / name), DATASETS.get(name)
    assert (spec.name, spec.classes) == (name, CLASSES[name])
    assert set(found) == {"train", "test"} | ({"validation"} if name == "fer2013" else set())
    patterns = Patterns(3, 4, 0, channels=spec.channels)
    for role, part in found.items():
        counts = 4 if role == "train" else 2
        assert part.targets.bincount().tolist() == [counts] * 3
        assert isinstance(part, Arrays if name in ARRAYS else Files)
        size = (ARRAYS[name][1],) * 2 if name in ARRAYS else None
        # Each image is nearer to one that was drawn for its class than to any of another class.
        drawn = {(label, n): patterns.image(role, label, n, size) for label in range(3) for n in range(counts)}
        for row, label in enumerate(part.targets.tolist()):
            image = pixels(part, row).astype(float)
            same = [image - other for other in drawn.values() if other.shape == image.shape]
            keys = [key for key, other in drawn.items() if other.shape == image.shape]
            nearest = min(range(len(same)), key=lambda index: np.abs(same[index]).mean())
            assert np.abs(same[nearest]).mean() < (1e-9 if name in ARRAYS else 12)
            assert keys[nearest][0] == label


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_have_the_shape_of_the_real_data(twins, name):
    channels, side = ARRAYS[name]
    for part in read(name, twins / name).values():
        assert part.images.shape[1:] == (channels, side, side)
        assert part.images.dtype == torch.uint8


@pytest.mark.parametrize("name", FILES)
def test_image_files_differ_in_size_and_can_all_be_decoded(twins, name):
    for part in read(name, twins / name).values():
        assert undecodable(part) == ()
        sizes = {Image.open(part.root / file).size for file in part.names}
        assert len(sizes) > 3
        assert all(48 <= side <= 96 for size in sizes for side in size)
        assert len(set(part.names)) == len(part.names)
        assert not any(Path(file).is_absolute() or ".." in file for file in part.names)


@pytest.mark.parametrize("name", CLASSES)
def test_a_twin_repeats_byte_for_byte_and_changes_with_its_seed(twins, tmp_path, name):
    def content(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    twin = DATASETS.get(name).twin
    twin(tmp_path / "again", 3, 4, 0)
    twin(tmp_path / "other", 3, 4, 1)
    first, again, other = (content(folder) for folder in (twins / name, tmp_path / "again", tmp_path / "other"))
    assert first == again
    images = {file for file in first if file.endswith((".jpg", ".JPEG", ".csv", ".gz"))} or set(first)
    assert all(
        first[file] != other[file] for file in images & set(other) if "labels" not in file and "meta" not in file
    )
    assert sum(file.endswith("SYNTHETIC.txt") for file in first) == 1


def test_a_twin_with_more_classes_than_the_real_set_is_refused(tmp_path):
    for name, classes in CLASSES.items():
        with pytest.raises(ConfigError, match=rf"datasets\.{name}\.synthetic\.classes: {classes + 1}, but {name} has"):
            DATASETS.get(name).twin(tmp_path / name, classes + 1, 1, 0)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_a_small_network_learns_the_patterns_and_knows_images_it_has_not_seen(channels, side):
    patterns = Patterns(10, 30, 0, channels)

    def tensors(part):
        images, labels = patterns.array(part, (side, side))
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 128 - 1, torch.tensor(labels)

    (inputs, targets), (unseen, wanted) = tensors("train"), tensors("test")
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.01)

    def accuracy():
        return float(network(unseen).argmax(1).eq(wanted).float().mean())

    before = accuracy()
    for _ in range(20):
        for rows in torch.randperm(len(inputs)).split(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    assert before < 0.3
    assert accuracy() > 0.7


def test_the_core_refuses_real_data_with_too_few_classes(twins):
    spec = DATASETS.get("cifar10")
    with pytest.raises(ConfigError, match="claims 10 classes, its data have 3: 0, 1, 2"):
        spec.prepare(DatasetOptions(split_seed=0, validation=0.25), twins / "cifar10")


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("fashion_mnist", "FashionMNIST/raw"),
        ("stanford_cars", "stanford_cars"), ("food101", "food-101"), ("oxford_pet", "oxford-iiit-pet"),
        ("fer2013", "fer2013"),
    ],
)  # fmt: skip
def test_data_are_found_with_and_without_the_folder_of_the_archive(twins, tmp_path, name, below):
    inner = twins / name / below if (twins / name / below).exists() else twins / name
    shutil.copytree(inner, tmp_path / "data" / below)
    first, second = read(name, tmp_path / "data"), read(name, tmp_path / "data" / below)
    for role in first:
        assert torch.equal(first[role].targets, second[role].targets)
        if isinstance(first[role], Files):
            assert first[role].names == second[role].names
            assert (first[role].root / first[role].names[0]).is_file()


def test_unpacked_fashion_mnist_is_read_like_packed(own):
    import gzip

    folder = own("fashion_mnist")
    packed = read("fashion_mnist", folder)
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = read("fashion_mnist", folder)
    for role in packed:
        assert torch.equal(packed[role].images, plain[role].images)
        assert torch.equal(packed[role].targets, plain[role].targets)


def test_imagenet_validation_images_in_class_folders_are_read_like_flat_ones(own):
    folder = own("imagenet")
    flat = read("imagenet", folder)
    order = sorted(path.name for path in (folder / "train").iterdir())
    for name, label in zip(flat["test"].names, flat["test"].targets.tolist(), strict=True):
        target = folder / "val" / order[label] / Path(name).name
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)
    shutil.rmtree(folder / "ILSVRC2012_devkit_t12")  # is not needed then
    sorted_in = read("imagenet", folder)
    labels = {Path(name).name: label for name, label in zip(*samples(sorted_in["test"]), strict=True)}
    assert labels == {Path(name).name: label for name, label in zip(*samples(flat["test"]), strict=True)}
    # The devkit numbers classes in another order than that of their names, or this test shows nothing.
    meta = loadmat_numbers(Patterns(3, 4, 0), folder.parent / "again")
    assert meta != sorted(meta)


def samples(files):
    return files.names, files.targets.tolist()


def loadmat_numbers(patterns, folder):
    DATASETS.get("imagenet").twin(folder, patterns.classes, patterns.per_class, patterns.seed)
    rows = loadmat(folder / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", squeeze_me=True)["synsets"]
    names = {str(row["WNID"]): int(row["ILSVRC2012_ID"]) for row in rows if int(row["num_children"]) == 0}
    return [names[wnid] for wnid in sorted(names)]


def test_inaturalist_is_found_under_the_names_that_torchvision_gives(own):
    folder = own("inaturalist")
    usual = read("inaturalist", folder)
    (folder / "train_mini").rename(folder / "2021_train_mini")
    (folder / "val").rename(folder / "2021_valid")
    other = read("inaturalist", folder)
    assert other["train"].names == tuple(f"2021_{name}" for name in usual["train"].names)
    assert torch.equal(other["test"].targets, usual["test"].targets)


def test_fer2013_tables_are_one_data_set(own, tmp_path):
    folder = own("fer2013")
    icml = read("fer2013", folder)
    with (folder / "icml_face_data.csv").open(newline="") as stream:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    write_table(tmp_path / "a" / "fer2013.csv", ["emotion", "pixels", "Usage"], reversed(rows))
    fer = read("fer2013", tmp_path / "a")
    for role in icml:
        assert torch.equal(icml[role].images.flip(0), fer[role].images)
        assert torch.equal(icml[role].targets.flip(0), fer[role].targets)
    training = [row for row in rows if row["Usage"] == "Training"]
    write_table(tmp_path / "b" / "train.csv", ["emotion", "pixels"], training)
    only = read("fer2013", tmp_path / "b")
    assert set(only) == {"train"}
    assert torch.equal(only["train"].images, icml["train"].images)


def write_table(path, fields, rows):
    """Write a table of FER2013 beside a file that lists its checksum, as a twin's does."""
    path.parent.mkdir()
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    (path.parent / "SYNTHETIC.txt").write_text(f"# made in a test\n{md5}  {path.name}\n")


# --- what is missing or damaged -------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_each_missing_part_is_named(own, name):
    folder = own(name)
    place = home(name, folder)
    part = next(file for file in PLACES[name].parts[-1].split("|") if (place / file).exists())
    (place / part).rename(place / "elsewhere")
    with pytest.raises(ResultsError) as caught:
        read(name, folder)
    assert part in str(caught.value)
    assert PLACES[name].layout in str(caught.value)
    assert "\n" not in str(caught.value)


DAMAGE = [
    ("cifar10", "cifar-10-batches-py/data_batch_3", "damaged"),
    ("cifar10", "cifar-10-batches-py/batches.meta", "damaged"),
    ("cifar100", "cifar-100-python/test", "damaged"),
    ("fashion_mnist", "train-images-idx3-ubyte.gz", "cannot be read"),
    ("fashion_mnist", "t10k-labels-idx1-ubyte.gz", "cannot be read"),
    ("imagenet", "ILSVRC2012_devkit_t12/data/meta.mat", "cannot be read"),
    ("stanford_cars", "devkit/cars_train_annos.mat", "cannot be read"),
    ("stanford_cars", "cars_test_annos_withlabels.mat", "cannot be read"),
    ("food101", "food-101/meta/test.json", "cannot be read"),
    ("oxford_pet", "annotations/trainval.txt", "cannot be read"),
    ("fer2013", "icml_face_data.csv", "damaged"),
]


@pytest.mark.parametrize(("name", "file", "problem"), DAMAGE, ids=[file for _, file, _ in DAMAGE])
@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) * 2 // 3 - 3], lambda content: b"\x00<html>"]
)
def test_each_damaged_file_is_named(own, name, file, problem, damage):
    folder = own(name)
    path = folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResultsError) as caught:
        read(name, folder)
    assert str(path) in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_pixel_of_cifar_is_noticed(own):
    folder = own("cifar10")
    path = folder / "cifar-10-batches-py" / "data_batch_2"
    content = bytearray(path.read_bytes())
    content[content.index(b"filenames") - 40] ^= 1  # inside the array
    path.write_bytes(content)
    refuse_foreign(path)
    with pytest.raises(ResultsError, match=r"data_batch_2 is damaged or not the published file: MD5 .*, expected"):
        read("cifar10", folder)


def test_without_the_file_of_a_twin_only_the_published_files_will_do(own):
    for name, file in (("cifar10", "data_batch_1"), ("cifar100", "train"), ("fer2013", "icml_face_data.csv")):
        folder = own(name)
        next(folder.rglob("SYNTHETIC.txt")).unlink()
        with pytest.raises(ResultsError, match=f"{file} is damaged or not the published file"):
            read(name, folder)


def test_truncated_image_lists_and_odd_folders_are_one_clear_error(own):
    folder = own("imagenet")
    next((folder / "val").iterdir()).unlink()
    with pytest.raises(ResultsError, match=r"val has 5 images, .*ground_truth.txt has 6 classes"):
        read("imagenet", folder)
    shutil.rmtree(folder / "ILSVRC2012_devkit_t12")
    with pytest.raises(ResultsError, match=r"meta\.mat not found: a flat .*val needs the devkit"):
        read("imagenet", folder)
    (folder / "val" / "n01000000").mkdir()
    image = next((folder / "val").glob("*.JPEG"))
    image.rename(folder / "val" / "n01000000" / image.name)
    with pytest.raises(ResultsError, match=r"class n01000137 is in only one of train/ and val/"):
        read("imagenet", folder)
    folder = own("inaturalist")
    (folder / "val" / "notes").mkdir()
    with pytest.raises(ResultsError, match=r"val cannot be read .*notes"):
        read("inaturalist", folder)
    (folder / "val" / "notes").rmdir()
    shutil.rmtree(sorted((folder / "val").iterdir())[-1])
    with pytest.raises(ResultsError, match=r"species 00002_Synthetica.* is in only one of"):
        read("inaturalist", folder)
    folder = own("food101")
    lists = folder / "food-101" / "meta" / "test.json"
    lists.write_text(json.dumps(dict(list(json.loads(lists.read_text()).items())[:2])))
    with pytest.raises(ResultsError, match="class synthetic_dish_002 is in only one of"):
        read("food101", folder)


def test_a_training_folder_that_is_no_class_of_imagenet_is_named(own):
    folder = own("imagenet")
    (folder / "train" / "n01000000").rename(folder / "train" / "n00000001")
    with pytest.raises(ResultsError, match=r"train/n00000001 is no class of .*meta\.mat"):
        read("imagenet", folder)


def test_a_class_above_the_labels_of_a_byte_does_not_wrap(own):
    folder = own("stanford_cars")
    path = folder / "devkit" / "cars_train_annos.mat"
    rows = loadmat(path)["annotations"]
    for index, row in enumerate(rows[0]):
        row["class"] = np.array([[196 if index == 0 else 1]], np.uint8)
    savemat(path, {"annotations": rows})
    assert read("stanford_cars", folder)["train"].targets[:2].tolist() == [195, 0]


# --- pickles --------------------------------------------------------------------------------------


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"data": [bad], "labels": []}])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(own, tmp_path, protocol, wrap):
    folder, target = own("cifar10"), tmp_path / "written"
    path = folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(wrap(Hostile(target)), protocol))
    with pytest.raises(ResultsError) as caught:
        read("cifar10", folder)
    assert str(path) in str(caught.value)
    assert "open" in str(caught.value) or "STACK_GLOBAL" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # the file was a real threat


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"cnumpy\nload\n(S'x'\ntR.", "asks for numpy.load"),
        (b"(S'true'\nios\nsystem\n.", r"uses INST \(os system\)"),
        (b"Pname\n.", "uses PERSID"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"\x80\x02}", "no pickle|breaks off"),
        (b"", "no pickle|breaks off"),
        (b"<html>", "no pickle"),
    ],
)
def test_what_a_pickle_asks_for_is_named(tmp_path, content, named):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ResultsError, match=named):
        refuse_foreign(tmp_path / "file")


def test_pickles_of_arrays_as_python_2_wrote_them_are_read_and_written(tmp_path):
    value = {"a": [1, 300, -5, 70000], "b": {"text": "x\xe9" * 200, "none": []}, "c": np.arange(24, dtype=np.uint8)}
    (tmp_path / "file").write_bytes(plain_pickle(value))
    refuse_foreign(tmp_path / "file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form passes a flag of dtype as a number
        back = pickle.loads((tmp_path / "file").read_bytes(), encoding="latin1")
    assert (back["a"], back["b"]) == (value["a"], value["b"])
    assert np.array_equal(back["c"], value["c"])
    assert back["c"].dtype == np.uint8


# --- images ---------------------------------------------------------------------------------------


def damaged_pets(own):
    part = read("oxford_pet", own("oxford_pet"))["train"]
    whole = (part.root / part.names[1]).read_bytes()
    (part.root / part.names[1]).write_bytes(whole[: len(whole) // 2])
    (part.root / part.names[4]).write_text("<html>not found</html>")
    (part.root / part.names[7]).unlink()
    return part, tuple(part.names[row] for row in (1, 4, 7))


def test_images_that_break_off_are_no_images_or_are_gone_are_found(own):
    part, bad = damaged_pets(own)
    assert undecodable(part) == bad


def test_bad_images_are_dropped_with_their_targets_up_to_the_allowed_share(own):
    part, bad = damaged_pets(own)
    with pytest.raises(ResultsError) as caught:
        drop_undecodable(part, 0.2)
    assert "3 of 12 images cannot be decoded (25.00%, max_undecodable allows 20.00%)" in str(caught.value)
    assert all(name in str(caught.value) for name in bad)
    kept, dropped = drop_undecodable(part, 0.25)
    assert dropped == bad
    rows = [row for row in range(12) if row not in (1, 4, 7)]
    assert kept.names == tuple(part.names[row] for row in rows)
    assert torch.equal(kept.targets, part.targets[rows])
    assert drop_undecodable(kept, 0.0) == (kept, ())


def test_long_lists_of_bad_images_are_cut(own):
    part = read("food101", own("food101"))["test"]
    for name in part.names:
        (part.root / name).write_bytes(b"")
    with pytest.raises(ResultsError, match=r"6 of 6 images .* and 3 more$"):
        drop_undecodable(part, 0.5)


# --- raw samples ----------------------------------------------------------------------------------


def test_raw_samples_of_wrong_types_shapes_or_lengths_are_refused():
    images, targets = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    assert len(Arrays(images, targets).take(torch.tensor([1])).targets) == 1
    for bad_images, bad_targets, problem in (
        (images.float(), targets, r"images are float32 \(2, 3, 4, 4\), expected uint8"),
        (images[0], targets, r"images are uint8 \(3, 4, 4\)"),
        (images, targets.int(), r"classes are int32 \(2,\), expected int64"),
        (images, targets[:1], "2 images but 1 classes"),
    ):
        with pytest.raises(ResultsError, match=problem):
            Arrays(bad_images, bad_targets)
    with pytest.raises(ResultsError, match="1 files but 2 classes"):
        Files(Path("x"), ("a",), targets)
    with pytest.raises(ResultsError, match="classes are int32"):
        Files(Path("x"), ("a", "b"), targets.int())


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.skipif(not DEBIAN.exists(), reason="the system package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_of_the_system_package():
    found = read("fashion_mnist", DEBIAN)
    assert found["train"].images.shape == (60_000, 1, 28, 28)
    assert found["test"].images.shape == (10_000, 1, 28, 28)
    assert found["train"].targets.bincount().tolist() == [6000] * 10
    assert found["test"].targets.bincount().tolist() == [1000] * 10
    assert found["train"].targets[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]
    pixels = found["test"].images[:100].numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "d8c9b85550f6c8fa33478e27cb3fe70fd34b4cc96e6ab91b911853b51fb3d527"
