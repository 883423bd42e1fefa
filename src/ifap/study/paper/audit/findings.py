"""What a check says: a finding, of one of the kinds that are listed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ifap.study.paper.audit.printed import SLACK

SEVERITIES = ("major", "minor", "info")


class Kind(NamedTuple):
    """One check: its heading, and what it looks at."""

    title: str
    about: str


KINDS = {
    "metric-delta": Kind(
        "Metric changes that do not follow",
        "A printed change of the metric must be the relative change in percent, or the difference in points, of the "
        f"printed base and pruned values, within {SLACK} and their rounding.",
    ),
    "metric-convention": Kind(
        "Two conventions in one column", "One column should hold either relative changes or differences in points."
    ),
    "cost-delta": Kind(
        "Cost changes that do not follow",
        "A printed change of MACs or parameters must be reachable from values that round to the printed ones.",
    ),
    "equal-values": Kind(
        "Equal values in unrelated cells",
        "Results on different data sets are expected to differ in the last digit; equal ones may be a coincidence.",
    ),
    "across-tables": Kind(
        "One cell, different values",
        "The same network on the same data set is printed in several tables; the values should agree when rounded.",
    ),
    "parameter-count": Kind(
        "Parameters against the architecture",
        "Parameter counts computed from the standard configuration, and the part that pruning heads and feed-forward "
        "units cannot remove: the embeddings.",
    ),
    "reach": Kind(
        "Reductions beyond the stated rule",
        "By the method's stated rule no 1x1 convolution is pruned: it keeps its outputs and loses only inputs. The "
        "bound removes every output of every other dense convolution; by the rule no network can be smaller.",
    ),
    "trace": Kind("The pruning trace", "Table IV, step by step: what the differences between steps look like."),
    "base-macs": Kind(
        "Base MACs against the architecture",
        "Multiply-accumulates of torchvision's network at the input size of its published weights, 1000 classes.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something in the published numbers that does not fit together."""

    kind: str  # One of `KINDS`.
    severity: str  # ``major`` (a claim cannot hold as printed beside another), ``minor`` or ``info``.
    title: str  # One line.
    arithmetic: str  # The numbers, line by line.
    claims: tuple[str, ...]  # Ids of the claims concerned.
    name: str = ""  # Kind and number, for reference.
