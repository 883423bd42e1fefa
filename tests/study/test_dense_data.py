"""Sets of images with boxes and masks: every twin goes through the reader of the real data."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ifap.errors import ConfigError, ResultsError, SplitError
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS
from ifap.study.data.base import read_manifest
from ifap.study.data.dense import usable, with_content
from ifap.study.data.drawn_shapes import Shapes
from ifap.study.data.masks import file_mask, region_mask, run_lengths
from ifap.study.data.scenes import Boxes, BoxList, Findings, MaskFiles, Regions, Scenes, ragged

DETECTION = ("pascal_voc", "coco2017", "open_images", "objects365")
SEGMENTATION = ("pascal_voc", "coco2017", "ade20k", "cityscapes", "coco_stuff")
CLASSES, EACH = 3, 4
# What a twin's classes are: shapes, and for most segmentation sets one of the background.
BEHIND = {"ade20k": 0, "cityscapes": 0, "coco_stuff": CLASSES - 1, "pascal_voc": 0, "coco2017": 0}
# What JPEG's coarser colours change of a pixel under noise; another scene differs in size, or by more.
JPEG = 16
OPTIONS = {"split_seed": 0, "validation": 0.25, "synthetic": {"classes": CLASSES, "per_class": EACH, "seed": 0}}


def options(name, **changes):
    own = OPTIONS | changes
    if name == "open_images":
        own = {key: value for key, value in own.items() if key != "validation"}
    return DatasetOptions.model_validate(own)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """One twin of each set; only to be read."""
    folder = tmp_path_factory.mktemp("twins")
    for name in {*DETECTION, *SEGMENTATION}:
        DATASETS.get(name).twin(folder / name, CLASSES, EACH, 0)
    return folder


@pytest.fixture
def own(twins, tmp_path):
    """Return a copy of one twin that a test may damage."""

    def copy(name):
        return shutil.copytree(twins / name, tmp_path / name)

    return copy


def shapes_of(name, task):
    behind = name in BEHIND and task == "segmentation" and not DATASETS.get(name).background
    return Shapes(CLASSES - behind, EACH, 0)


def parts_of(name, task, role):
    """Return which scenes a part of a twin was made of."""
    if name == "pascal_voc" and task == "detection" and role == "train":
        return ["validation", "train"]
    return [role]


# --- what a reader returns ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTION)
def test_boxes_are_read_as_they_were_drawn(twins, name):
    found = DATASETS.get(name).read(twins / name, "detection")
    assert set(found) == {"train", "test"} | ({"validation"} if name == "open_images" else set())
    for role, scenes in found.items():
        shapes = shapes_of(name, "detection")
        drawn = [scene for part in parts_of(name, "detection", role) for scene in shapes.scenes(part)]
        assert len(scenes) == len(drawn)
        assert scenes.findings.report() == {}
        boxes = scenes.targets
        for row, scene in enumerate(drawn):
            part = slice(boxes.offsets[row], boxes.offsets[row + 1])
            assert tuple(boxes.shapes[row].tolist()) == scene.size
            wanted = sorted((*thing.box, thing.label) for thing in scene.things)
            rows = zip(boxes.boxes[part].tolist(), boxes.labels[part].tolist(), strict=True)
            assert np.allclose(sorted((*box, label) for box, label in rows), wanted, atol=1e-3)
            image = np.asarray(Image.open(scenes.root / scenes.names[row])).astype(float)
            assert np.abs(image - scene.image).mean() < JPEG


@pytest.mark.parametrize("name", SEGMENTATION)
def test_masks_are_read_as_they_were_drawn(twins, name):
    spec = DATASETS.get(name)
    shift = 1 if BEHIND[name] == 0 else 0
    for role, scenes in spec.read(twins / name, "segmentation").items():
        shapes = shapes_of(name, "segmentation")
        values = {label: label + shift for label in range(shapes.classes)}
        assert len(scenes) == shapes.count(role)
        for row, scene in enumerate(shapes.scenes(role)):
            if isinstance(scenes.targets, MaskFiles):
                mask = file_mask(scenes.targets, scenes.root, row)
            else:
                mask = region_mask(scenes.targets, row)
            image = np.asarray(Image.open(scenes.root / scenes.names[row])).astype(float)
            # Two cities take turns in Cityscapes: find the scene by its image.
            if name == "cityscapes":
                drawn = [s for s in shapes.scenes(role) if s.image.shape == image.shape]
                scene = min(drawn, key=lambda s: np.abs(image - s.image).mean())
            assert np.abs(image - scene.image).mean() < JPEG
            wanted = scene.mask(values, BEHIND[name])
            counted = mask.numpy() != 255
            assert counted.mean() > 0.95
            assert (mask.numpy()[counted] == wanted[counted]).all()


def test_a_twin_repeats_byte_for_byte_and_changes_with_its_seed(twins, tmp_path):
    def content(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for name in ("pascal_voc", "open_images", "cityscapes"):
        DATASETS.get(name).twin(tmp_path / "again" / name, CLASSES, EACH, 0)
        DATASETS.get(name).twin(tmp_path / "other" / name, CLASSES, EACH, 1)
        first = content(twins / name)
        assert first == content(tmp_path / "again" / name)
        other = content(tmp_path / "other" / name)
        assert all(first[file] != other[file] for file in first if file.endswith((".jpg", "leftImg8bit.png")))


@pytest.mark.parametrize("name", sorted({*DETECTION, *SEGMENTATION}))
def test_a_twin_with_more_classes_than_the_real_set_is_refused(tmp_path, name):
    most = DATASETS.get(name).classes
    with pytest.raises(ConfigError, match=rf"datasets\.{name}\.synthetic\.classes: {most + 1}, but {name} has"):
        DATASETS.get(name).twin(tmp_path, most + 1, 1, 0)


def test_published_numbers_of_classes():
    counts = {name: DATASETS.get(name).classes for name in {*DETECTION, *SEGMENTATION}}
    assert counts == {
        "pascal_voc": 20, "coco2017": 80, "open_images": 601, "objects365": 365, "ade20k": 150, "cityscapes": 19,
        "coco_stuff": 171,
    }  # fmt: skip
    real = DatasetOptions(split_seed=0, validation=0.1)
    assert DATASETS.get("pascal_voc").labels("segmentation", real) == 21
    assert DATASETS.get("coco2017").labels("segmentation", real) == 81
    assert DATASETS.get("cityscapes").labels("segmentation", real) == 19
    assert DATASETS.get("pascal_voc").labels("detection", real) == 20


# --- prepared -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*DETECTION, *SEGMENTATION}))
def test_a_prepared_set_gives_batches_of_each_task(twins, tmp_path, name):
    spec = DATASETS.get(name)
    manifest = spec.write(options(name), {}, "made here", twins / name, tmp_path, tasks=spec.place.tasks)
    assert manifest == read_manifest(tmp_path)
    assert manifest["synthetic"]
    for task in spec.place.tasks:
        sizes = {}
        for role in ("train", "validation", "test"):
            split = spec.load(tmp_path / f"{role}.safetensors", role, task, 32)
            sizes[role] = len(split)
            inputs, targets = split.read(torch.arange(2), seed=3)
            images = inputs[0] if task == "detection" else inputs
            assert images.shape == (2, 3, 32, 32)
            assert len(targets) == len(split.targets[torch.arange(2)]) == 2
            classes = manifest["classes"][task]
            if task == "segmentation":
                assert targets.shape == (2, 32, 32)
                assert targets.dtype == torch.int64
                assert set(targets.unique().tolist()) <= {*range(classes), 255}
            if task == "detection":
                for target, taught in zip(targets, inputs[1], strict=True):
                    assert target["boxes"].shape == (len(target["labels"]), 4)
                    assert (target["boxes"] >= 0).all()
                    assert (target["boxes"] <= 32).all()
                    assert target["labels"].max() < classes
                    assert torch.equal(taught["boxes"], target["boxes"])
        assert {role: entry["of_tasks"][task] for role, entry in manifest["splits"].items()} == sizes
    again = spec.write(options(name), {}, "made here", twins / name, tmp_path / "again", tasks=spec.place.tasks)
    assert again["checksum"] == manifest["checksum"]


def test_validation_images_are_none_of_the_training_images(twins, tmp_path):
    spec = DATASETS.get("coco2017")
    parts = spec.prepare(options("coco2017"), "detection", twins / "coco2017")
    assert len(parts["train"]) == 9
    assert len(parts["validation"]) == 3
    assert len({*parts["train"].names, *parts["validation"].names}) == 12
    fewer = spec.prepare(options("coco2017", train_samples=5), "detection", twins / "coco2017")
    assert fewer["train"].names == parts["train"].names[:5]
    with pytest.raises(ConfigError, match="train_samples: 10 asked for, 9 there"):
        spec.prepare(options("coco2017", train_samples=10), "detection", twins / "coco2017")


def test_a_file_of_another_split_task_or_content_is_refused(twins, tmp_path):
    spec = DATASETS.get("coco2017")
    spec.write(options("coco2017"), {}, "made here", twins / "coco2017", tmp_path, tasks=["detection"])
    path = tmp_path / "train.safetensors"
    with pytest.raises(SplitError, match="holds the train split of coco2017, wanted test"):
        spec.load(path, "test", "detection", 32)
    with pytest.raises(ResultsError, match="was not prepared for task 'segmentation'"):
        spec.load(path, "train", "segmentation", 32)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResultsError, match="is damaged"):
        spec.load(path, "train", "detection", 32)


def test_boxes_and_masks_are_mirrored_with_their_images(twins, tmp_path):
    spec = DATASETS.get("pascal_voc")
    spec.write(options("pascal_voc"), {}, "made here", twins / "pascal_voc", tmp_path, tasks=spec.place.tasks)
    rows = torch.arange(8)
    split = spec.load(tmp_path / "train.safetensors", "train", "segmentation", 48)
    (plain, masks), (images, changed) = split.read(rows), split.read(rows, seed=1)
    flipped = [not torch.equal(a, b) for a, b in zip(plain, images, strict=True)]
    assert 0 < sum(flipped) < 8
    for row, flip in enumerate(flipped):
        assert torch.equal(images[row], plain[row].flip(-1) if flip else plain[row])
        assert torch.equal(changed[row], masks[row].flip(-1) if flip else masks[row])
    split = spec.load(tmp_path / "train.safetensors", "train", "detection", 48)
    (plain, _), boxes = split.read(rows)
    (images, taught), mirrored = split.read(rows, seed=1)
    for row in range(8):
        flip = not torch.equal(images[row], plain[row])
        left, right = mirrored[row]["boxes"][:, 0], mirrored[row]["boxes"][:, 2]
        if flip:
            left, right = 48 - right, 48 - left
        assert torch.allclose(left, boxes[row]["boxes"][:, 0], atol=1e-4)
        assert torch.allclose(right, boxes[row]["boxes"][:, 2], atol=1e-4)
        assert torch.equal(taught[row]["boxes"], mirrored[row]["boxes"])
    # The same seed and image give the same whatever else is in the batch.
    (alone, _), _ = split.read(rows[3:4], seed=1)
    assert torch.equal(alone[0], images[3])


def test_a_mask_resized_keeps_its_classes_in_place(tmp_path):
    left = torch.zeros(40, 60, dtype=torch.uint8)
    left[:, :30] = 1
    regions = Regions(torch.tensor([[60, 40]]), (run_lengths([[0, 0, 30, 0, 30, 40, 0, 40]], 60, 40),),
                      torch.tensor([1]), torch.tensor([0, 1]))  # fmt: skip
    assert torch.equal(region_mask(regions, 0), left)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    from ifap.study.data.images import Scaling
    from ifap.study.data.scene_files import SceneFiles

    scaling = Scaling(20, 3, 255.0, (0.0,) * 3, (1.0,) * 3)
    _, mask = SceneFiles(tmp_path, ("a.png",), regions, scaling).pairs(torch.tensor([0]), None)
    assert torch.equal(mask[0], torch.cat([torch.ones(20, 10), torch.zeros(20, 10)], 1).long())


def test_calibration_images_come_without_targets(twins, tmp_path):
    spec = DATASETS.get("coco2017")
    spec.write(options("coco2017"), {}, "made here", twins / "coco2017", tmp_path, tasks=["detection"])
    batches = spec.load(tmp_path / "train.safetensors", "train", "detection", 32).calibration(5, 2, 0)
    assert [batch.shape for batch in batches] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    assert [len(targets) for _, targets in batches.labelled] == [2, 2, 1]


# --- what is bad is named and counted -------------------------------------------------------------


def edit_coco(folder, change):
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def box(values):
    return lambda content: content["annotations"][2].update(bbox=values)


BAD_BOXES = {
    "boxes without area": box([3, 3, 0, 5]),
    "boxes outside their image": box([90, 3, 40, 5]),
    "annotations of an unknown class or image": lambda content: content["annotations"][2].update(category_id=12),
    "annotated images that are not there": lambda content: content["images"][1].update(file_name="gone.jpg"),
}


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_bad_boxes_are_an_error_unless_they_are_allowed_and_counted(own, tmp_path, kind, caplog):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    edit_coco(folder, BAD_BOXES[kind])
    with pytest.raises(
        ResultsError, match=rf"instances_train2017\.json: 1 of \d+ {kind} .*max_bad_annotations"
    ) as caught:
        spec.prepare(options("coco2017"), "detection", folder)
    assert "\n" not in str(caught.value)
    allowed = options("coco2017", max_bad_annotations=0.2)
    manifest = spec.write(allowed, {}, "made here", folder, tmp_path / "out", tasks=["detection"])
    found = manifest["problems"]["detection"]["train"]
    assert found[kind]["count"] == 1
    assert len(found[kind]["files"]) == 1
    assert f"1 {kind}, such as" in caplog.text
    assert manifest["problems"]["detection"]["test"] == {}


def test_images_without_annotations_are_counted_and_not_trained_on(own):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    gone = []

    def change(content):
        gone.extend(image["file_name"] for image in content["images"][:2])
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] > 2]

    edit_coco(folder, change)
    for task in ("detection", "segmentation"):
        parts = spec.prepare(options("coco2017"), task, folder)
        found = parts["train"].findings.report()
        assert found == {"images without annotations": {"count": 2, "files": [f"train2017/{name}" for name in gone]}}
        assert not {*parts["train"].names} & {f"train2017/{name}" for name in gone}
        assert len(parts["validation"]) == 3


def test_crowds_are_not_taught_but_known_where_it_is_measured(own, tmp_path):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    edit_coco(folder, lambda content: [item.update(iscrowd=1) for item in content["annotations"][::2]])
    spec.write(options("coco2017"), {}, "made here", folder, tmp_path / "out", tasks=["detection"])
    split = spec.load(tmp_path / "out" / "train.safetensors", "train", "detection", 32)
    (_, taught), targets = split.read(torch.arange(len(split)))
    for some, everything in zip(taught, targets, strict=True):
        assert len(some["labels"]) == int((everything["iscrowd"] == 0).sum()) > 0
    assert sum(int(target["iscrowd"].sum()) for target in targets) > 0


def test_an_outline_without_area_is_named(own):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    edit_coco(folder, lambda content: content["annotations"][0].update(segmentation=[[1, 1, 2, 2]]))
    with pytest.raises(ResultsError, match=r"1 of \d+ outlines without area .*annotation 1\)"):
        spec.prepare(options("coco2017"), "segmentation", folder)


def test_a_class_list_of_another_length_is_refused(own):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    edit_coco(folder, lambda content: content["categories"].append({"id": 90, "name": "more"}))
    with pytest.raises(ConfigError, match="train split claims 3 classes, its own list has 4"):
        spec.prepare(options("coco2017"), "detection", folder)


def first_mask(folder):
    return sorted((folder / "annotations" / "training").iterdir())[0]


def undeclared(path):
    numbers = np.array(Image.open(path))
    numbers[5, 5] = 200
    Image.fromarray(numbers).save(path)


BAD_MASKS = {
    "masks with undeclared classes": undeclared,
    "masks with several channels": lambda path: Image.open(path).convert("RGB").save(path),
    "images of another size than annotated": lambda path: Image.open(path).crop((0, 0, 20, 20)).save(path),
    "masks that cannot be decoded": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "images without a mask": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_bad_masks_are_an_error_unless_they_are_allowed_and_counted(own, kind):
    folder, spec = own("ade20k"), DATASETS.get("ade20k")
    BAD_MASKS[kind](first_mask(folder))
    with pytest.raises(ResultsError, match=rf"1 of 8 {kind} \(12.50%, max_bad_annotations allows 0.00%\): .*00000001"):
        spec.prepare(options("ade20k"), "segmentation", folder)
    parts = spec.prepare(options("ade20k", max_bad_annotations=0.2), "segmentation", folder)
    assert parts["train"].findings.report()[kind]["count"] == 1
    assert len(parts["train"]) + len(parts["validation"]) == 7


def test_a_class_that_a_smaller_twin_does_not_claim_is_undeclared(own):
    folder, spec = own("ade20k"), DATASETS.get("ade20k")
    fewer = options("ade20k", synthetic={"classes": 2, "per_class": EACH, "seed": 0})
    with pytest.raises(ResultsError, match="masks with undeclared classes"):
        spec.prepare(fewer, "segmentation", folder)


def test_a_mask_without_a_pixel_that_counts_is_counted_and_not_trained_on(own):
    folder, spec = own("ade20k"), DATASETS.get("ade20k")
    path = first_mask(folder)
    Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    parts = spec.prepare(options("ade20k"), "segmentation", folder)
    assert parts["train"].findings.report()["images without annotations"]["count"] == 1
    assert not [name for name in parts["train"].names if path.stem in name]
    tested = sum(path.stem in name for name in parts["validation"].names)
    assert (len(parts["train"]), len(parts["validation"])) == (5 + tested, 2)


def test_grey_images_are_counted_and_read_in_colour(own, tmp_path):
    folder, spec = own("coco2017"), DATASETS.get("coco2017")
    path = sorted((folder / "train2017").iterdir())[0]
    Image.open(path).convert("L").save(path)
    manifest = spec.write(options("coco2017"), {}, "made here", folder, tmp_path / "out", tasks=["detection"])
    found = manifest["problems"]["detection"]["train"]["images with another number of channels"]
    assert found == {"count": 1, "files": [f"train2017/{path.name}"]}
    split = spec.load(tmp_path / "out" / "train.safetensors", "train", "detection", 32)
    assert split.inputs[torch.arange(len(split))].shape[1] == 3


def test_damaged_images_are_an_error_unless_they_are_allowed(own):
    folder, spec = own("pascal_voc"), DATASETS.get("pascal_voc")
    path = sorted((folder / "VOCdevkit" / "VOC2012" / "JPEGImages").iterdir())[0]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ResultsError, match=r"1 of 18 images cannot be decoded .*max_undecodable .*2012_000001\.jpg"):
        spec.prepare(options("pascal_voc"), "detection", folder)
    parts = spec.prepare(options("pascal_voc", max_undecodable=0.1), "detection", folder)
    assert len(parts["train"]) + len(parts["validation"]) == 17


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pascal_voc", "VOCdevkit/VOC2012/Annotations/2012_000001.xml"),
        ("coco2017", "annotations/instances_val2017.json"),
        ("open_images", "validation-annotations-bbox.csv"),
        ("objects365", "annotations/zhiyuan_objv2_train.json"),
    ],
)
def test_each_damaged_list_is_named(own, name, file):
    folder = own(name)
    (folder / file).write_bytes(b"\x00<html>")
    with pytest.raises(ResultsError) as caught:
        DATASETS.get(name).read(folder, "detection")
    assert str(folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_difficult_objects_of_pascal_voc_are_ignored_ones(own):
    folder = own("pascal_voc")
    path = folder / "VOCdevkit" / "VOC2012" / "Annotations" / "2012_000001.xml"
    path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<", 1))
    scenes = DATASETS.get("pascal_voc").read(folder, "detection")["train"]
    assert int(scenes.targets.ignored.sum()) == 1


def test_groups_of_open_images_are_ignored_ones(own):
    folder = own("open_images")
    path = folder / "oidv6-train-annotations-bbox.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-1] + "1", *lines[2:]]) + "\n")
    scenes = DATASETS.get("open_images").read(folder, "detection")["train"]
    assert int(scenes.targets.ignored.sum()) == 1


# --- parts ----------------------------------------------------------------------------------------


def test_a_box_over_the_edge_by_rounding_is_cut_and_one_beyond_is_bad():
    findings = Findings("here")
    boxes = BoxList(findings)
    boxes.image("a", (10, 8), [((-0.5, 0, 10.9, 8), 1, False), ((-2, 0, 5, 5), 0, False)], "a.xml")
    boxes.image("b", (10, 8), [((float("nan"), 0, 5, 5), 0, False), ((10.2, 0, 10.9, 4), 0, False)], "b.xml")
    found = boxes.scenes(None).targets
    assert found.boxes.tolist() == [[0, 0, 10, 8]]
    assert found.present().tolist() == [True, False]
    assert findings.report() == {
        "boxes outside their image": {"count": 2, "files": ["a.xml", "b.xml"]},
        "boxes without area": {"count": 1, "files": ["b.xml"]},
        "images without annotations": {"count": 1, "files": ["b"]},
    }


def test_parts_of_samples_are_taken_together():
    rows, offsets = ragged(torch.tensor([0, 2, 2, 5]), torch.tensor([2, 1, 0]))
    assert rows.tolist() == [2, 3, 4, 0, 1]
    assert offsets.tolist() == [0, 3, 3, 5]


def test_targets_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="do not fit each other"):
        Boxes(torch.zeros(1, 2), torch.zeros(2, 4), torch.zeros(1), torch.zeros(2), torch.tensor([0, 2]))
    with pytest.raises(ResultsError, match="no images"):
        Scenes(tmp_path, (), None)
    empty = Boxes(torch.ones(1, 2).long(), torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).byte(),
                  torch.tensor([0, 0]))  # fmt: skip
    with pytest.raises(ResultsError, match="no image has anything to be trained on"):
        with_content(Scenes(tmp_path, ("a",), empty))


def test_outlines_in_all_forms_are_the_same():
    polygon = [[2.0, 1.0, 9.0, 1.0, 9.0, 6.0, 2.0, 6.0]]
    runs = run_lengths(polygon, 12, 8)
    from pycocotools import mask

    pixels = mask.decode({"size": [8, 12], "counts": runs})
    flat = pixels.flatten(order="F")
    starts = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    counts = np.diff(np.concatenate([[0], starts])).tolist()
    assert run_lengths({"size": [8, 12], "counts": counts}, 12, 8) == runs
    assert run_lengths({"size": [8, 12], "counts": runs.decode()}, 12, 8) == runs
    for bad in ([], [[1, 2, 3]], {"size": [12, 8], "counts": counts}):
        with pytest.raises(ValueError, match=r"polygon|size"):
            run_lengths(bad, 12, 8)


def test_options_at_their_default_say_nothing_of_bad_annotations():
    assert "max_bad_annotations" not in DatasetOptions(split_seed=0).model_dump()
    assert DatasetOptions(split_seed=0, max_bad_annotations=0.1).model_dump()["max_bad_annotations"] == 0.1


def test_sizes_that_differ_from_the_annotated_ones_are_noted(own):
    folder = own("coco2017")
    edit_coco(folder, lambda content: content["images"][0].update(width=200))
    scenes = DATASETS.get("coco2017").read(folder, "detection")["train"]
    kept = usable(scenes, CLASSES, options("coco2017", max_bad_annotations=0.2))
    assert len(kept) == len(scenes) - 1
    assert kept.findings.report()["images of another size than annotated"]["count"] == 1
