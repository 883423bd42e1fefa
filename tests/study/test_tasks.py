"""Metrics against hand-worked values; measuring leaves the network as it was."""

from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
from torch import nn

from ifap.data import Split, batches, logits
from ifap.study.tasks import TASKS

TASK = TASKS.get("classification")


def test_metrics_match_hand_worked_values():
    probabilities = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]])
    found = TASK.metrics(probabilities.log(), torch.tensor([0, 1, 0, 1]), bins=2)
    assert found["top1"] == 75.0
    assert found["top5"] == 100.0
    assert found["loss"] == pytest.approx(-math.log(0.8 * 0.3 * 0.6 * 0.9) / 4, rel=1e-5)
    # All confidences are above one half: mean confidence .75 against accuracy .75.
    assert found["ece"] == pytest.approx(0.0, abs=1e-4)


def test_calibration_error_is_in_percent():
    found = TASK.metrics(torch.tensor([[0.9, 0.1]] * 4).log(), torch.tensor([1, 1, 1, 1]), bins=15)
    assert found["ece"] == pytest.approx(90.0, abs=1e-3)


def test_an_auxiliary_head_adds_its_loss():
    """What Inception returns in training: a named tuple of two score tensors."""
    outputs = namedtuple("InceptionOutputs", ["logits", "aux_logits"])
    scores, targets = torch.tensor([[0.8, 0.2], [0.7, 0.3]]).log(), torch.tensor([0, 0])
    main, auxiliary = -math.log(0.8 * 0.7) / 2, -math.log(0.2 * 0.3) / 2
    both = outputs(scores, scores.flip(1))
    assert TASK.loss(both, targets).item() == pytest.approx(main + 0.4 * auxiliary)
    assert TASK.loss(outputs(scores, None), targets).item() == pytest.approx(main)
    assert torch.equal(logits(both), scores)
    smooth = TASK.loss(scores, targets, label_smoothing=0.1) + 0.4 * TASK.loss(
        scores.flip(1), targets, label_smoothing=0.1
    )
    assert TASK.loss(both, targets, label_smoothing=0.1).item() == pytest.approx(smooth.item())


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_is_that_of_torchmetrics(bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(300, 10, generator=generator) * (seed + 1)
        targets = torch.randint(0, 10, (300,), generator=generator)
        expected = 100 * multiclass_calibration_error(scores.softmax(1), targets, num_classes=10, n_bins=bins)
        assert TASK.metrics(scores, targets, bins=bins)["ece"] == pytest.approx(float(expected), abs=1e-3)


def test_calibration_is_measured_only_when_asked():
    assert "ece" not in TASK.metrics(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_top5_counts_the_five_best():
    scores = torch.arange(10.0).repeat(2, 1)
    assert TASK.metrics(scores, torch.tensor([5, 4]))["top5"] == 50.0


def test_label_smoothing_changes_the_training_loss_only():
    outputs, targets = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    assert TASK.loss(outputs, targets, label_smoothing=0.1) > TASK.loss(outputs, targets)
    assert TASK.primary in TASK.metrics(outputs, targets)


def test_evaluate_is_in_evaluation_mode_and_puts_the_modes_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    data = Split("validation", torch.randn(10, 4), torch.randint(0, 3, (10,)))
    first = TASK.evaluate(model, data, 3)
    assert first == pytest.approx(TASK.evaluate(model, data, 10))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.equal(statistics, model[1].running_mean)


def test_a_single_left_over_sample_joins_its_neighbours():
    data = Split("train", torch.arange(9.0)[:, None], torch.arange(9))
    sizes = [len(targets) for _, targets in batches(data, 4)]
    assert sizes == [4, 5]
    seen = torch.cat([targets for _, targets in batches(data, 4, torch.Generator().manual_seed(0))])
    assert seen.tolist() != list(range(9))
    assert sorted(seen.tolist()) == list(range(9))


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: (t, 1), lambda t: {"loss": 0, "logits": t}, lambda t: {"out": t}]
)
def test_scores_are_found_in_structured_outputs(wrap):
    scores = torch.ones(2, 3)
    assert logits(wrap(scores)) is scores
