"""The metrics of the language tasks against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ifap.data import Named, Split
from ifap.errors import ConfigError, TrainingError
from ifap.study.data.passages import Passages, Question
from ifap.study.tasks import TASKS
from ifap.study.tasks.question_answering import normalised, word_f1

CLASSES, SCORES, ANSWERS, GAPS = (
    TASKS.get(name) for name in ("text_classification", "text_regression", "question_answering", "cloze")
)


def scores_of(classes, count=2):
    """Return scores whose largest is that of each class."""
    return nn.functional.one_hot(torch.tensor(classes), count).float()


def test_classes_are_counted_by_accuracy_f1_and_correlation():
    # Three of class 1 found, one missed, two taken for it, two rightly left: tp 3, fn 1, fp 2, tn 2.
    targets = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    found = CLASSES.metrics(scores_of([1, 1, 1, 0, 1, 1, 0, 0]), targets, bins=5)
    assert found["accuracy"] == 62.5
    assert found["f1"] == pytest.approx(100 * 6 / 9)
    assert found["mcc"] == pytest.approx(100 * (3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3))
    assert found["loss"] == pytest.approx((5 * math.log(1 + math.exp(-1)) + 3 * math.log(1 + math.e)) / 8)
    assert set(found) == {"accuracy", "f1", "mcc", "loss", "ece"}


def test_three_classes_have_a_mean_f1():
    found = CLASSES.metrics(scores_of([0, 1, 2, 2], 3), torch.tensor([0, 1, 2, 1]))
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)


def test_outputs_of_one_class_say_nothing():
    found = CLASSES.metrics(scores_of([1, 1, 1, 1]), torch.tensor([0, 1, 0, 1]))
    assert (found["accuracy"], found["mcc"]) == (50.0, 0.0)


def test_scores_are_compared_by_correlation():
    # Ranks agree but for the last two; deviations -1.5 -.5 .5 1.5 and -1.5 -.5 1.5 .5.
    found = SCORES.metrics(torch.tensor([[1.0], [2.0], [4.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found == {"pearson": pytest.approx(80.0), "spearman": pytest.approx(80.0), "loss": pytest.approx(0.5)}
    flat = SCORES.metrics(torch.zeros(4, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (flat["pearson"], flat["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "accepted", "wanted"),
    [
        ("the cat", "Cat!", 1.0),
        ("a black cat sat", "black cat", 2 * 2 / 5),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("cat cat", "cat", 2 * 1 / 3),
    ],
)
def test_answers_are_compared_by_their_words(answer, accepted, wanted):
    assert word_f1(answer, accepted) == pytest.approx(wanted)


def test_articles_signs_and_capitals_do_not_count():
    assert normalised("The  U.S. of A") == "us of"


CONTEXT = "Anna left Aldora in 1950"
SPANS = ((0, 4), (5, 9), (10, 16), (17, 19), (20, 24))


def passages(questions, windows=None):
    """Return passages of one window each: a question of two tokens, then the five words."""
    offsets = torch.tensor([[(-1, -1)] * 2 + list(SPANS)] * len(questions))
    owner = torch.arange(len(questions))
    return Passages(tuple(questions), owner, offsets)


def spans(*chosen):
    """Return scores by which each window's answer goes from one token to another."""
    scores = torch.zeros(len(chosen), 2, 7)
    for row, (first, last) in enumerate(chosen):
        scores[row, 0, first] = scores[row, 1, last] = 5.0
    return scores


def test_an_answer_is_the_best_part_of_the_passage():
    asked = [Question("who ?", CONTEXT, ((0, 4),)), Question("where ?", CONTEXT, ((10, 16), (10, 24)))]
    texts = passages(asked)
    found = ANSWERS.metrics(spans((2, 2), (4, 5)), torch.tensor([[2, 2], [4, 4]]), texts=texts)
    # 'Anna' is right; 'Aldora in' has one word of two in 'Aldora' (2/3) and two of three in 'Aldora in 1950' (4/5).
    assert found["f1"] == pytest.approx(100 * (1 + 4 / 5) / 2)
    assert found["em"] == 50.0
    # Neither the question nor an end before the start is an answer; of equals the first counts.
    backwards = spans((0, 1), (6, 3))
    backwards[1, 0, 4], backwards[1, 1, 4] = 4.0, 4.0
    found = ANSWERS.metrics(backwards, torch.tensor([[2, 2], [4, 4]]), texts=texts)
    assert found["em"] == 100.0


def test_the_best_window_answers():
    item = Question("who ?", CONTEXT, ((0, 4),))
    texts = Passages((item,), torch.tensor([0, 0]), torch.tensor([[(-1, -1), *SPANS[:2]], [(-1, -1), *SPANS[3:]]]))
    scores = torch.zeros(2, 2, 3)
    scores[0, :, 1], scores[1, :, 2] = 3.0, 2.0
    assert ANSWERS.metrics(scores, torch.zeros(2, 2).long(), texts=texts)["em"] == 100.0
    scores[1, :, 2] = 4.0
    assert ANSWERS.metrics(scores, torch.zeros(2, 2).long(), texts=texts)["em"] == 0.0


def test_a_gap_is_filled_with_a_name():
    item = Question("@placeholder left", CONTEXT, ((0, 4),), (SPANS[0], SPANS[2], SPANS[4]))
    scores = spans((3, 3), (4, 4))  # 'left' is no name, so the first of the others counts
    scores[0, :, 2] = 1.0
    found = GAPS.metrics(scores, torch.tensor([[2, 2], [2, 2]]), texts=passages([item, item]))
    assert found["accuracy"] == 50.0
    assert set(found) == {"accuracy", "loss"}


def test_the_loss_of_a_span_is_the_mean_of_both_ends():
    scores = torch.tensor([[[0.8, 0.2], [0.3, 0.7]]]).log()
    assert ANSWERS.loss(scores, torch.tensor([[0, 0]])).item() == pytest.approx(-(math.log(0.8) + math.log(0.3)) / 2)


def test_answers_need_their_texts():
    with pytest.raises(TrainingError, match="holds its passages"):
        ANSWERS.metrics(spans((2, 2)), torch.zeros(1, 2).long())
    with pytest.raises(TrainingError, match="2 outputs, but the passages have 1"):
        ANSWERS.metrics(spans((2, 2), (2, 2)), torch.zeros(2, 2).long(),
                        texts=passages([Question("?", CONTEXT, ((0, 4),))]))  # fmt: skip


def test_another_metric_can_be_watched():
    assert CLASSES.watching("mcc").primary == "mcc"
    assert CLASSES.watching(None) is CLASSES is CLASSES.watching("accuracy")
    assert CLASSES.primary == "accuracy"
    with pytest.raises(ConfigError, match="metric 'macc' is not one of this task: did you mean 'mcc'"):
        CLASSES.watching("macc")


def test_a_network_is_measured_on_named_inputs():
    class Spans(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input_ids, attention_mask):
            outputs = nn.Module()
            outputs.start_logits = outputs.end_logits = self.scale * input_ids * attention_mask
            return outputs

    item = Question("where ?", CONTEXT, ((10, 16),))
    ids = torch.tensor([[9, 9, 1, 2, 7, 2, 1]])
    split = Split("test", Named({"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
                  torch.tensor([[4, 4]]), passages([item]))  # fmt: skip
    assert ANSWERS.evaluate(Spans(), split, 4)["em"] == 100.0


def test_a_task_names_the_outputs_that_it_reads_and_no_others():
    states = {"encoder_last_hidden_state": torch.ones(1, 2, 3)}
    assert CLASSES.outputs({"logits": torch.ones(1, 2), **states}) == ("logits",)
    assert ANSWERS.outputs({"start_logits": torch.ones(1, 2), "end_logits": torch.ones(1, 2), **states}) == (
        "start_logits", "end_logits",
    )  # fmt: skip
    for task in (CLASSES, ANSWERS, TASKS.get("classification"), TASKS.get("detection")):
        assert task.outputs(torch.ones(1, 2)) is None  # a network that names none: everything stays
    assert TASKS.get("text_regression").reads == CLASSES.reads
    assert TASKS.get("cloze").reads == ANSWERS.reads
