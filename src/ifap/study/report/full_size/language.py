"""How small the language models of Table V can be made at full size: ``results/text_structure.csv``.

Parameters do not depend on training. `stages.text_structure` builds each network with random weights,
prunes it to the printed number of parameters, runs it forward and backward, saves it and loads it again in a
new process; no data are needed, so these numbers stand beside the published ones at every scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ifap.study import paths
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.report.full_size.classifiers import Key, counts_table, read_counts
from ifap.study.report.record import Blank

TABLE = 5
CLOSE = 1.0
"""How far the reached number of parameters may be from the printed one, in percent."""
HEADS: dict[str, tuple[Literal["classification", "span"], int]] = {
    "mnli": ("classification", 3),
    "record": ("span", 2),
    "squad": ("span", 2),
    "stsb": ("classification", 1),
}
"""What the network of a data set ends in, and its outputs; two classes for all others."""
USUAL_HEAD: tuple[Literal["classification", "span"], int] = ("classification", 2)
PARTS: tuple[Literal["heads and units"], Literal["width too"]] = ("heads and units", "width too")


class TextStructure(BaseModel):
    """One row of ``results/text_structure.csv``; the fields are its columns, in order.

    Parameters are counted one by one, but for `published`, which is in millions as printed. `least` is
    what heads and feed-forward units leave at least; where it is more than `published`, the width of the
    network was cut too, and the `note` says by how much. `distance` is that of `params_pruned` from the
    published number, in percent of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    head: Literal["classification", "span"]
    labels: int = Field(gt=0)
    macs_base: int = Field(gt=0)
    params_base: int = Field(gt=0)
    published: float = Field(gt=0)
    least: int = Field(gt=0)
    parts: Literal["heads and units", "width too"]
    macs_pruned: Blank[int]
    params_pruned: Blank[int]
    distance: Blank[float]
    runs: Literal["yes", "no", ""]
    reloads: Literal["yes", "no", ""]
    note: str
    version: int

    @model_validator(mode="after")
    def _check_pruned(self) -> TextStructure:
        if self.params_pruned is None or self.distance is None:
            if self.params_pruned is not None or self.distance is not None or not self.note:
                raise ValueError("column note: says why a network was not pruned, then all its numbers are empty")
        elif abs(distance(self.params_pruned, self.published) - self.distance) > 1e-3:
            raise ValueError("column distance: is not what params_pruned and published give")
        return self


class WantedText(BaseModel):
    """A network to prune: a row of Table V; `published` is in millions of parameters."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    model: str
    head: Literal["classification", "span"]
    labels: int
    published: float


def distance(params: int, published: float) -> float:
    """Return how far a number of parameters is from the published millions, in percent of these."""
    return 100 * (params / (published * 1e6) - 1)


def wanted_text(claims: pd.DataFrame) -> list[WantedText]:
    """Return the networks of Table V, in its order."""
    own = claims[(claims["table"] == TABLE) & (claims["quantity"] == "params_pruned")]
    found = []
    for claim in own.to_dict("records"):
        dataset = DATASETS[claim["dataset"]].name
        head, labels = HEADS.get(dataset, USUAL_HEAD)
        model = MODELS[claim["model"]]
        found.append(
            WantedText(dataset=dataset, model=model, head=head, labels=labels, published=float(claim["number"]))
        )
    return found


def load_text_structure(*, root: Path = Path()) -> dict[Key, tuple[int, TextStructure]]:
    """Read ``results/text_structure.csv``; nothing if there is none.

    Parameters
    ----------
    root : Path
        The project's root.

    Returns
    -------
    dict of (str, str) to (int, TextStructure)
        Data set and model to the line in the file, from 1, and its content.

    Raises
    ------
    ResultsError
        One line that names the file, row and column of the first problem.
    """
    return read_counts(paths.text_structure_csv(), TextStructure, root)


def text_structure_table(rows: Iterable[TextStructure]) -> str:
    """Lay out rows as CSV text."""
    return counts_table(TextStructure, rows)


def counted_text(claim: Mapping[Any, Any], row: TextStructure) -> float | None:
    """Return what a network's count says about a claim of Table V, in the claim's unit; None where nothing."""
    quantity = str(claim["quantity"])
    if claim["table"] != TABLE:
        return None
    if quantity == "params_base":
        return row.params_base / 1e6
    if row.params_pruned is None:
        return None
    delta = 100 * (row.params_pruned / row.params_base - 1)
    return {"params_pruned": row.params_pruned / 1e6, "params_delta": delta}.get(quantity)


def about_text(claim: Mapping[Any, Any], row: TextStructure) -> str:
    """Say what was counted for a claim of Table V, and whether heads and units alone would have done."""
    text = "full-size network, no training needed"
    if claim["quantity"] == "params_base":
        return text
    text += ", pruned to the printed number of parameters: it can be reached, at whatever accuracy"
    return f"{text} ({row.note})" if row.note else text
