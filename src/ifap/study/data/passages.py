"""Questions about a passage: the texts, and where in them the tokens of a network's windows lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ifap.errors import ResultsError

Span = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True)
class Question:
    """One question about one passage."""

    question: str  # The question, or a statement with a gap.
    context: str  # The passage.
    answers: tuple[Span, ...]  # Where in the passage the accepted answers are; the first one is learned from.
    candidates: tuple[Span, ...] = ()  # Where the passage names what may be chosen; empty if any part of it may be.

    def text(self, span: Span) -> str:
        """Return a part of the passage."""
        return self.context[span[0] : span[1]]


@dataclass(frozen=True)
class Questions:
    """Raw questions of one role.

    Parameters
    ----------
    items : tuple of Question
        The questions.
    """

    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def strata(self) -> Tensor:
        """What a split keeps in proportion: nothing."""
        return torch.zeros(len(self.items), dtype=torch.int64)

    def take(self, rows: Tensor) -> Questions:
        """Return some of the questions."""
        return Questions(tuple(self.items[int(row)] for row in rows))

    def texts(self) -> list[str]:
        """Return every text once, to make a vocabulary of."""
        return list(dict.fromkeys(text for item in self.items for text in (item.question, item.context)))


@dataclass(frozen=True)
class Passages:
    """What an answer is compared in: the questions, and the passage's characters behind each token.

    A passage that is too long for the network is read in overlapping windows, each one a sample.
    """

    questions: tuple[Question, ...]
    owner: Tensor  # int64, shape (windows,): which question each window belongs to.
    # Shape (windows, tokens, 2): span of the passage behind each token; -1 where a token is not the passage's.
    offsets: Tensor

    def windows(self) -> list[list[int]]:
        """Return the windows of each question."""
        found: list[list[int]] = [[] for _ in self.questions]
        for window, question in enumerate(self.owner.tolist()):
            found[question].append(window)
        return found


def tokens_of(span: Span, offsets: Tensor) -> Span | None:
    """Return the first and last token that cover a part of the passage; None if the window does not hold all of it.

    Parameters
    ----------
    span : Span
        Characters of the passage.
    offsets : Tensor, shape (tokens, 2)
        Of one window, see `Passages`.
    """
    inside = (offsets[:, 0] >= 0) & (offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1])
    held = inside.nonzero()[:, 0].tolist()
    # A token may begin with the space before a word, so the edges may lie outside the span, not inside it.
    if not held or int(offsets[held[0], 0]) > span[0] or int(offsets[held[-1], 1]) < span[1]:
        return None
    return held[0], held[-1]


def to_lines(questions: Sequence[Question]) -> bytes:
    """Return questions as JSON lines."""
    return "\n".join(json.dumps(asdict(question), sort_keys=True) for question in questions).encode()


def from_lines(text: bytes) -> tuple[Question, ...]:
    """Read what `to_lines` wrote.

    Raises
    ------
    ResultsError
        If a line is no question.
    """
    found = []
    for number, line in enumerate(text.decode().split("\n"), start=1):
        try:
            values = json.loads(line)
            answers, candidates = (
                tuple((int(first), int(end)) for first, end in values[key]) for key in ("answers", "candidates")
            )
            found.append(Question(str(values["question"]), str(values["context"]), answers, candidates))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"line {number} of the stored questions is malformed ({error})") from None
    return tuple(found)
