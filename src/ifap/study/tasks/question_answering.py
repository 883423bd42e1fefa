"""Answers that are a part of a passage: exact match and F1 of their words, as SQuAD measures them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.data import logits
from ifap.errors import TrainingError
from ifap.study.data.passages import Passages, Question
from ifap.study.tasks.base import TASKS, Task

LONGEST = 30  # tokens of an answer (Devlin et al. 2019)


class QuestionAnswering(Task):
    """The first and the last token of an answer."""

    primary = "f1"
    names: tuple[str, ...] = ("f1", "em")
    reads = ("start_logits", "end_logits")

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy of start and end in nats; `targets` are tokens, shape (batch, 2)."""
        scores = logits(outputs)
        parts = [F.cross_entropy(scores[:, k], targets[:, k], label_smoothing=label_smoothing) for k in (0, 1)]
        return torch.stack(parts).mean()

    def metrics(self, outputs: Any, targets: Any, *, bins: int | None = None, texts: Any = None) -> dict[str, float]:
        """Return ``f1`` and ``em`` in percent, means over questions, and ``loss`` in nats, a mean over windows.

        The answer to a question is the best part of its passage over all windows, of at most 30 tokens;
        it is compared with each accepted one, and the best counts.

        Raises
        ------
        TrainingError
            If `texts`, the questions and passages of the split, are not given.
        """
        scores, passages = spans_and_passages(outputs, texts)
        answers = [best_part(scores, passages, windows, item)
                   for item, windows in zip(passages.questions, passages.windows(), strict=True)]  # fmt: skip
        accepted = [[item.text(span) for span in item.answers] for item in passages.questions]
        pairs = list(zip(answers, accepted, strict=True))
        return {
            "f1": 100 * _mean(max(word_f1(answer, other) for other in known) for answer, known in pairs),
            "em": 100 * _mean(float(same_as_any(answer, known)) for answer, known in pairs),
            "loss": float(self.loss(scores, targets.cpu())),
        }


def spans_and_passages(outputs: Any, texts: Any) -> tuple[Tensor, Passages]:
    """Return the scores, shape (windows, 2, tokens), and the passages that they belong to."""
    if not isinstance(texts, Passages):
        raise TrainingError("answers are compared as texts: measure on a split that holds its passages")
    scores = logits(outputs).detach().float().cpu()
    if len(scores) != len(texts.owner):
        raise TrainingError(f"{len(scores)} outputs, but the passages have {len(texts.owner)} windows")
    return scores, texts


def best_part(scores: Tensor, passages: Passages, windows: Iterable[int], item: Question) -> str:
    """Return the part of a passage with the largest sum of the scores of its first and last token."""
    best, answer = -torch.inf, ""
    for window in windows:
        offsets = passages.offsets[window]
        rows = (offsets[:, 0] >= 0).nonzero()[:, 0]
        start, end = scores[window][:, rows]
        allowed = torch.ones(len(rows), len(rows), dtype=torch.bool).triu().tril(LONGEST - 1)
        sums = (start[:, None] + end[None, :]).masked_fill(~allowed, -torch.inf)
        if sums.numel() and float(sums.max()) > best:
            best, (first, last) = float(sums.max()), divmod(int(sums.argmax()), len(rows))
            answer = item.text((int(offsets[rows[first], 0]), int(offsets[rows[last], 1])))
    return answer


def normalised(answer: str) -> str:
    """Return an answer in small letters, without punctuation, articles and superfluous spaces."""
    plain = "".join(sign for sign in answer.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def same_as_any(answer: str, accepted: Iterable[str]) -> bool:
    """Return whether an answer is one of the accepted ones, but for what `normalised` takes away."""
    return normalised(answer) in {normalised(other) for other in accepted}


def word_f1(answer: str, accepted: str) -> float:
    """Return the harmonic mean of precision and recall of the words of an answer, from 0 to 1."""
    ours, theirs = normalised(answer).split(), normalised(accepted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


TASKS.register("question_answering")(QuestionAnswering())
