"""Detection, segmentation and generation: losses, metrics against numbers worked out by hand, and training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dense_toys import Detector, Generator, Segmenter
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import nn
from torch.nn import functional

from ifap.axes.passes import modes
from ifap.data import Split
from ifap.errors import ConfigError, TrainingError
from ifap.recovery.distillation import Distillation
from ifap.recovery.train_step import Engine
from ifap.results import Receipt
from ifap.study.config.data import DatasetOptions
from ifap.study.config.recipes import RecoveryOptions, TrainingOptions
from ifap.study.data import DATASETS
from ifap.study.distil import distillation, validator
from ifap.study.models import MODELS
from ifap.study.tasks import TASKS
from ifap.study.tasks.detection import own_loss
from ifap.study.tasks.generation import Generation, RandomFeatures, by_imagenet_features
from ifap.study.training.fit import fit
from stages.prune import as_measured

DETECTION, SEGMENTATION, GENERATION = (TASKS.get(name) for name in ("detection", "segmentation", "generation"))
RECIPE = {
    "epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.0, "warmup_epochs": 0,
    "label_smoothing": 0.0, "augment": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that loads a split of a twin of COCO for a task."""
    folder, spec = tmp_path_factory.mktemp("coco"), DATASETS.get("coco2017")
    spec.twin(folder / "raw", 3, 6, 0)
    options = DatasetOptions.model_validate(
        {"split_seed": 0, "validation": 0.25, "synthetic": {"classes": 3, "per_class": 6, "seed": 0}}
    )
    spec.write(options, {}, "made here", folder / "raw", folder, tasks=spec.place.tasks)
    return lambda task, role: spec.load(folder / f"{role}.safetensors", role, task, 48)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def known(rows, labels, crowd=None):
    return {
        "boxes": boxes(*rows), "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(crowd or [0] * len(labels), dtype=torch.int64),
    }  # fmt: skip


def found(rows, labels, scores):
    return {"boxes": boxes(*rows), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


class Given(nn.Module):
    """A network whose outputs, and what it generates, are given; it has lost nothing."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images, targets=None):
        return {"loss": torch.tensor(0.0)} if self.training else self.outputs

    def sample(self, images, generator):
        return self.outputs


def detected(outputs, targets):
    """Return the metrics of these detections."""
    images = torch.zeros(len(targets), 3, 8, 8)
    return DETECTION.evaluate(Given(outputs), [((images, targets), targets)], len(targets))


def segmented(outputs, targets):
    """Return the metrics of these scores."""
    return SEGMENTATION.evaluate(Given(outputs), [(torch.zeros(len(targets), 3, 8, 8), targets)], len(targets))


A, B, C = (0, 0, 10, 10), (20, 20, 40, 40), (50, 50, 60, 60)


# --- detection ------------------------------------------------------------------------------------


def test_average_precision_is_the_one_worked_out_by_hand():
    targets = [known([A, B], [0, 0])]
    # Right, wrong, right: precision is 1 up to a recall of 1/2 and 2/3 beyond, at 101 recalls.
    outputs = [found([A, C, B], [0, 0, 0], [0.9, 0.8, 0.7])]
    measured = detected(outputs, targets)
    assert measured["map50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101, abs=1e-3)
    assert measured["map"] == pytest.approx(measured["map50"], abs=1e-3)
    # The overlap of these two is 0.82: seven of the ten overlaps from 0.5 to 0.95 call it right, 0.75 among them.
    outputs, targets = [found([(0, 0, 10, 8.2)], [2], [0.5])], [known([A], [2])]
    measured = detected(outputs, targets)
    assert measured["map75"] == pytest.approx(100)
    assert measured["map"] == pytest.approx(70)
    # Another class is not found.
    assert detected([found([A], [1], [0.9])], [known([A], [2])])["map50"] == 0


def test_a_detected_crowd_is_neither_right_nor_wrong():
    outputs = [found([C, A], [0, 0], [0.9, 0.8])]
    assert detected(outputs, [known([A, C], [0, 0], [0, 1])])["map50"] == pytest.approx(100)
    assert detected(outputs, [known([A], [0])])["map50"] == pytest.approx(50)


def test_an_image_without_boxes_counts_what_is_found_on_it():
    outputs = [found([A], [0], [0.5]), found([A], [0], [0.9])]
    measured = detected(outputs, [known([A], [0]), known([], [])])
    assert measured["map50"] == pytest.approx(50)


def test_the_loss_of_a_detector_is_the_sum_of_its_own():
    assert float(own_loss({"a": torch.tensor(1.5), "b": torch.tensor([2.0])})) == 3.5
    assert float(own_loss(torch.tensor(2.0))) == 2
    for outputs in ([{"boxes": boxes(A)}], {}, torch.zeros(3)):
        with pytest.raises(TrainingError, match="not its losses by name"):
            own_loss(outputs)


def test_measuring_a_detector_changes_nothing_and_repeats(load):
    torch.manual_seed(0)
    model = Detector().train()
    model.head.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    first = DETECTION.evaluate(model, load("detection", "test"), 4)
    again = DETECTION.evaluate(model, load("detection", "test"), 4)
    assert first == again
    assert set(first) == {"map", "map50", "map75", "loss"}
    assert first["loss"] > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.head.training


def test_measuring_without_images_is_refused():
    with pytest.raises(TrainingError, match="at least one batch"):
        DETECTION.evaluate(Detector(), [], 4)


def test_training_outputs_neither_drop_out_nor_move_statistics():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9)).eval()
    inputs = torch.randn(8, 4)
    expected = model(inputs)
    with modes(model, training=True):
        assert model.training
        assert torch.equal(model(inputs), expected)
    assert not any(module.training for module in model.modules())
    assert float(model[1].running_mean.abs().sum()) == 0


def test_a_small_detector_learns_the_shapes(load):
    torch.manual_seed(0)
    model, train, validation = Detector(), load("detection", "train"), load("detection", "validation")
    before = DETECTION.evaluate(model, validation, 4)
    recipe = TrainingOptions.model_validate(RECIPE | {"epochs": 30})
    rows = fit(model, train, validation, recipe, DETECTION, seed=0, augment=True)
    after = DETECTION.evaluate(model, validation, 4)
    assert rows[-1].train_loss < 0.7 * rows[0].train_loss
    assert after["loss"] < before["loss"]
    assert after["map50"] > before["map50"]
    assert rows[-1].validation_metric == pytest.approx(after["map"], abs=1e-6)


def test_parts_of_a_batch_keep_images_and_boxes_together(load):
    inputs, targets = load("detection", "train").read(torch.arange(5))
    engine = Engine(nn.Linear(1, 1), accumulate=2)
    parts = list(engine.parts(inputs, targets))
    assert [len(expected) for _, expected, _, _ in parts] == [3, 2]
    assert sum(share for _, _, share, _ in parts) == pytest.approx(1)
    seen = 0
    for (images, taught), expected, _, _ in parts:
        assert torch.equal(images, inputs[0][seen : seen + len(expected)])
        for some, given in zip(taught, targets[seen : seen + len(expected)], strict=True):
            assert torch.equal(some["boxes"], given["boxes"])
        seen += len(expected)


def test_accumulating_gives_the_detector_the_gradients_of_the_whole_batch(load):
    recipe = TrainingOptions.model_validate(RECIPE | {"epochs": 1, "accumulate": 2})
    torch.manual_seed(0)
    rows = fit(Detector(), load("detection", "train"), load("detection", "validation"), recipe, DETECTION, seed=0)
    assert np.isfinite(rows[0].train_loss)


def test_a_detector_is_distilled_with_its_losses_as_measure(load):
    torch.manual_seed(0)
    model, teacher = Detector(), Detector()
    train, validation = load("detection", "train"), load("detection", "validation")
    before = DETECTION.evaluate(model, validation, 8)["loss"]
    distil = Distillation(train, validation, epochs=3, batch_size=4, lr=0.005, loss=DETECTION.loss,
                          losing=DETECTION.losing)  # fmt: skip
    distil(model, teacher, 1)
    assert DETECTION.evaluate(model, validation, 8)["loss"] < before


# --- segmentation ---------------------------------------------------------------------------------


def test_mean_overlap_is_the_one_worked_out_by_hand():
    best = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 0]]])
    targets = torch.tensor([[[0, 0, 1, 255], [0, 2, 2, 1]]])
    scores = functional.one_hot(best, 4).permute(0, 3, 1, 2).float() * 9
    measured = segmented({"out": scores}, targets)
    # Class 0: 3 of 4, class 1: 1 of 3, class 2: 1 of 2; class 3 is nowhere.
    assert measured["miou"] == pytest.approx(100 * (3 / 4 + 1 / 3 + 1 / 2) / 3, abs=1e-4)
    assert measured["pixel_accuracy"] == pytest.approx(100 * 5 / 7, abs=1e-4)
    assert measured["loss"] == pytest.approx(float(functional.cross_entropy(scores, targets, ignore_index=255)))


def test_scores_are_resized_and_those_of_a_second_head_add_half():
    torch.manual_seed(0)
    scores, targets = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    targets[0, :2] = 255
    large = functional.interpolate(scores, (8, 8), mode="bilinear", align_corners=False)
    plain = functional.cross_entropy(large, targets, ignore_index=255)
    assert torch.allclose(SEGMENTATION.loss({"out": scores}, targets), plain)
    assert torch.allclose(SEGMENTATION.loss({"out": scores, "aux": scores}, targets), 1.5 * plain)
    assert torch.allclose(SEGMENTATION.loss(scores, targets), plain)
    smooth = functional.cross_entropy(large, targets, ignore_index=255, label_smoothing=0.1)
    assert torch.allclose(SEGMENTATION.loss(scores, targets, label_smoothing=0.1), smooth)


def test_masks_without_a_pixel_that_counts_give_no_loss_and_no_metric():
    targets = torch.full((1, 4, 4), 255)
    assert float(SEGMENTATION.loss(torch.randn(1, 3, 4, 4), targets)) == 0
    with pytest.raises(TrainingError, match="at least one pixel"):
        segmented(torch.randn(1, 3, 4, 4), targets)


def test_batches_are_measured_as_one(load):
    torch.manual_seed(0)
    model, split = Segmenter(), load("segmentation", "test")
    by_two, by_nine = (SEGMENTATION.evaluate(model, split, size) for size in (2, 9))
    assert by_two == pytest.approx(by_nine, rel=1e-4)


def test_a_small_segmenter_learns_the_shapes(load):
    torch.manual_seed(0)
    model, train, validation = Segmenter(), load("segmentation", "train"), load("segmentation", "validation")
    before = SEGMENTATION.evaluate(model, validation, 8)
    recipe = TrainingOptions.model_validate(RECIPE | {"epochs": 20})
    fit(model, train, validation, recipe, SEGMENTATION, seed=0, augment=True)
    after = SEGMENTATION.evaluate(model, validation, 8)
    assert after["loss"] < before["loss"]
    assert after["miou"] > before["miou"] + 10


# --- generation -----------------------------------------------------------------------------------


class Means(nn.Module):
    """The mean of each channel, as features."""

    num_features = 3

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_the_distance_of_two_sets_is_the_one_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    real, made = (torch.rand(50, 3, 2, 2, generator=generator) for _ in range(2))
    made = 2 * made + 1
    a, b = (images.mean(dim=(2, 3)).double().numpy() for images in (real, made))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    task = Generation(Means(), "means")
    assert task.primary == "fid_means"
    for images, distance in ((made, pytest.approx(wanted, rel=1e-3)), (real, pytest.approx(0, abs=1e-3))):
        assert task.evaluate(Given(images), [(real, real)], 50)["fid_means"] == distance


def test_random_features_are_always_the_same_and_see_grey_images():
    images = torch.rand(2, 1, 28, 28)
    state = torch.get_rng_state()
    first, second = RandomFeatures(), RandomFeatures()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(images), second(images))
    assert torch.allclose(first(images), first(images.expand(-1, 3, -1, -1)))
    assert first(images).shape == (2, first.num_features)
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.fixture(scope="module")
def imagenet_task(tmp_path_factory):
    """The task by the features of EfficientNet-Lite0, with a file of weights in place of ImageNet's."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(MODELS.get("efficientnet_lite0")(1000, 3, 224).state_dict(), file)
    return by_imagenet_features(file, download=False)


def test_imagenet_features_come_from_the_weights_and_see_grey_images(imagenet_task):
    assert imagenet_task.primary == "fid_lite0"
    images, features = torch.rand(2, 1, 28, 28), imagenet_task.features.eval()
    found = features(images)
    assert found.shape == (2, features.num_features)
    assert torch.allclose(found, features(images.expand(-1, 3, -1, -1)))
    assert not torch.allclose(found[0], found[1])
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_missing_weights_of_the_features_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"lite0\.safetensors"):
        by_imagenet_features(tmp_path / "lite0.safetensors", download=False)


def test_a_better_generator_is_nearer_and_the_number_is_named_for_its_features(load):
    split = load("generation", "test")
    black, mean = Generator(), Generator()
    with torch.no_grad():
        black.colour.fill_(-3)
        mean.colour.copy_(split.inputs[torch.arange(len(split))].mean(dim=(0, 2, 3)).view(1, 3, 1, 1))
    far, near = (GENERATION.evaluate(model, split, 4) for model in (black, mean))
    assert set(near) == {"fid_random", "loss"}
    assert near["fid_random"] < far["fid_random"]
    assert near["loss"] < far["loss"]
    assert near == GENERATION.evaluate(mean, split, 4)
    # What watches for falls of a metric that should be high gets the negated one.
    measure = validator(load("generation", "validation"), GENERATION, 4)
    assert measure(black) < measure(mean) < 0


def test_a_generator_is_trained_by_its_own_losses(load):
    model, validation = Generator(drop=0.1), load("generation", "validation")
    nn.init.constant_(model.colour, 2.0)
    before = GENERATION.evaluate(model, validation, 4)
    recipe = TrainingOptions.model_validate(RECIPE | {"lr": 0.3})
    rows = fit(model, load("generation", "train"), validation, recipe, GENERATION, seed=0)
    # Of the network without dropout, and so the same every time.
    assert rows[-1].validation_loss < rows[0].validation_loss < before["loss"]
    assert rows[-1].validation_metric < before["fid_random"]


def test_a_network_that_makes_no_images_is_refused(load):
    split = load("generation", "test")
    with pytest.raises(TrainingError, match=r"Segmenter has no sample\(images, generator\)"):
        GENERATION.evaluate(Segmenter(), split, 4)
    model = Generator()
    model.sample = lambda images, generator: images[:, :1]
    with pytest.raises(TrainingError, match="made images have shape"):
        GENERATION.evaluate(model, split, 4)
    with pytest.raises(TrainingError, match="at least two images, there are 1"):
        GENERATION.evaluate(Generator(), Split("test", torch.zeros(1, 3, 8, 8), torch.zeros(1)), 4)


def test_a_generator_cannot_be_taught_by_a_teacher_that_draws_other_noise(load):
    options = RecoveryOptions(
        epochs=1, batch_size=4, lr=1e-3, weight_decay=0.0, feature_weight=0.5, logit_weight=0.0, temperature=1.0,
        teacher="original", patience=1, augment=False,
    )  # fmt: skip
    train, validation = load("generation", "train"), load("generation", "validation")
    with pytest.raises(ConfigError, match=r"prune\.recovery\.feature_weight: a network that makes images"):
        distillation(train, validation, options, task=GENERATION)
    plain = options.model_copy(update={"feature_weight": 0.0})
    distillation(train, validation, plain, task=GENERATION)
    distillation(load("detection", "train"), load("detection", "validation"), options, task=DETECTION)


def test_receipts_say_the_distance_and_not_what_pruning_makes_of_it():
    seen = Receipt(1, macs=10, params=5, metric_before=-40.0, metric_after=-30.0)
    own = as_measured(seen, GENERATION.sign)
    assert (own.metric_before, own.metric_after) == (40.0, 30.0)
    assert as_measured(seen, DETECTION.sign) == seen
    assert as_measured(Receipt(0, macs=10, params=5), GENERATION.sign).metric_after is None
