"""Gaps that one of the names in a passage fills, as ReCoRD asks: the share that is filled rightly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ifap.study.data.passages import Passages, Question, tokens_of
from ifap.study.tasks.base import TASKS
from ifap.study.tasks.question_answering import QuestionAnswering, same_as_any, spans_and_passages


class Cloze(QuestionAnswering):
    """The first and the last token of the name that fills the gap; names alone are chosen among."""

    primary = "accuracy"
    names = ("accuracy",)

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return ``accuracy`` in percent, a mean over statements, and ``loss`` in nats, a mean over windows.

        The name with the largest sum of the scores of its first and last token is chosen, wherever the
        passage has it.
        """
        scores, passages = spans_and_passages(outputs, texts)
        chosen = [best_name(scores, passages, windows, item)
                  for item, windows in zip(passages.questions, passages.windows(), strict=True)]  # fmt: skip
        right = [
            same_as_any(name, [item.text(span) for span in item.answers])
            for name, item in zip(chosen, passages.questions, strict=True)
        ]
        return {"accuracy": 100 * sum(right) / len(right), "loss": float(self.loss(scores, targets.cpu()))}


def best_name(scores: Tensor, passages: Passages, windows: Iterable[int], item: Question) -> str:
    """Return the candidate with the largest score; empty if no window holds any."""
    best, name = -torch.inf, ""
    for window in windows:
        for span in item.candidates:
            tokens = tokens_of(span, passages.offsets[window])
            if tokens is None:
                continue
            value = float(scores[window, 0, tokens[0]] + scores[window, 1, tokens[1]])
            if value > best:
                best, name = value, item.text(span)
    return name


TASKS.register("cloze")(Cloze())
