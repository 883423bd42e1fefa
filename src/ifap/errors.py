"""Errors that a user can act on: one line that names the key, file or layer and the nearest valid choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST, _LONGEST_LINE = 2000, 300  # characters


def printable(text: str) -> str:
    """Return a text without control characters: those of a stranger's file could change what a terminal shows."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def first_line(error: BaseException) -> str:
    """Return the first line that an error says, cut to 300 characters; the name of its kind if it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST_LINE] for line in lines if line), type(error).__name__)


def kind_and_line(error: BaseException) -> str:
    """Return the kind of an error with its first line, such as ``"RuntimeError: out of range"``."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


class IfapError(ValueError):
    """Base of every error that this package raises for a user's mistake.

    Its text is one line of bounded length without control characters, whatever a file has put into it.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class ConfigError(IfapError):
    """A key or value of ``params.yaml`` or of a command line is wrong."""


class SplitError(IfapError):
    """A data split was handed to a step that must not see it."""


class ScoreError(IfapError):
    """Units cannot be scored: no calibration data, or activations that are not finite."""


class GraphError(IfapError):
    """The dependency graph of a network cannot be built, or nothing in it can be pruned."""


class TargetError(IfapError):
    """The wanted reduction is out of range or cannot be reached."""


class PlanError(IfapError):
    """A saved network is damaged, incomplete or does not belong to the builder."""


class ExportError(IfapError):
    """A network cannot be exported, or what was exported computes something else."""


class TrainingError(IfapError):
    """Training cannot go on, for example because the loss is not finite."""


class ResultsError(IfapError):
    """Results are missing, stale or malformed."""


_SHOWN_NAMES = 12


def counted(number: int, one: str, many: str | None = None) -> str:
    """Say how many of something there are, such as ``"1 class"`` and ``"2 classes"``.

    By default `many` is `one` with an s at its end.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def installation(extra: str) -> str:
    """Return the command that installs the packages of an extra of this project."""
    return f"pip install '.[{extra}]' in a checkout of ifap"


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return which of some names a misspelt one is most like, if it is like any."""
    return next(iter(difflib.get_close_matches(name, choices, n=1, cutoff=0.4)), None)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which choices exist and which is closest to a misspelt name.

    Returns a clause such as ``"did you mean 'ifap'? Valid: ifap, random"``.
    """
    names = sorted(choice for choice in choices if choice)
    close = closest(name, names)
    hint = f"did you mean '{close}'? " if close else ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN_NAMES else ""
    return f"{hint}Valid: {', '.join(names[:_SHOWN_NAMES]) or 'none'}{more}"
