"""The reductions that the paper prints, as targets of our own runs."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Literal

from ifap.errors import ConfigError
from ifap.study.paper.vocabulary import DATASETS, MODELS, published_model
from ifap.study.paths import Cell, published_claims


def published_reduction(cell: Cell, kind: Literal["macs", "params"]) -> float:
    """Return the share of MACs or parameters that the paper removes for a data set and model, in (0, 1).

    Raises a ConfigError if it prints none.
    """
    found = _reductions(published_claims()).get((cell.dataset, published_model(cell.model), kind))
    if found is None:
        raise ConfigError(
            f"the paper prints no reduction of {kind} for {cell.model} on {cell.dataset}: set target.{kind}"
        )
    return found


@cache
def published_networks(table: int) -> frozenset[tuple[str, str]]:
    """Return the data sets and models of one of the paper's tables, by the names that they have here."""
    with published_claims().open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["table"]) == table]
    return frozenset((DATASETS[row["dataset"]].name, MODELS[row["model"]]) for row in rows)


@cache
def _reductions(path: Path) -> dict[tuple[str, str, str], float]:
    kinds = {"gmacs_delta": "macs", "params_delta": "params"}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["quantity"] in kinds]
    # Tables II and III print some pairs of data set and network twice, and not alike: Table II is the one that has all.
    rows.sort(key=lambda row: int(row["table"]), reverse=True)
    return {
        (DATASETS[row["dataset"]].name, MODELS[row["model"]], kinds[row["quantity"]]): -float(row["value"]) / 100
        for row in rows
    }
