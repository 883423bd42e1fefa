"""What the networks of Table II cost at full size, unpruned and pruned: ``results/structure.csv``.

Multiply-accumulates and parameters do not depend on training. `stages.structure` builds each network with
random weights at its own input size, prunes it to the printed reduction and counts; no data are needed,
so these numbers stand beside the published ones at every scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.report.csv_files import as_csv, check_header, read_lines
from ifap.study.report.record import Blank, first_problem

CLOSE = 0.01
"""How far the reached reduction may be from the printed one, as a share, before the row says so."""
IMAGE_SIZES = {"inception_v3": 299, "efficientnet_b4": 380, "efficientnet_v2_s": 384}
USUAL_SIZE = 224
Row = TypeVar("Row", bound=BaseModel)


class Structure(BaseModel):
    """One row of ``results/structure.csv``; the fields are its columns, in order.

    Reductions are shares: 0.65 leaves 35 %. What could not be pruned has no numbers and a `note`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    classes: int = Field(gt=0)
    image_size: int = Field(gt=0)
    macs_base: int = Field(gt=0)
    params_base: int = Field(gt=0)
    reduction_published: float = Field(gt=0, lt=1)
    macs_pruned: Blank[int]
    params_pruned: Blank[int]
    reduction: Blank[float]
    note: str
    version: int

    @property
    def subject(self) -> tuple[str, int, int, float]:
        """What decides the numbers: two rows with the same one are measured once."""
        return self.model, self.classes, self.image_size, self.reduction_published

    @model_validator(mode="after")
    def _check_pruned(self) -> Structure:
        pruned = (self.macs_pruned, self.params_pruned, self.reduction)
        if None in pruned:
            if any(value is not None for value in pruned) or not self.note:
                raise ValueError("column note: says why a network was not pruned, then all its numbers are empty")
        elif abs(1 - self.macs_pruned / self.macs_base - self.reduction) > 1e-6:  # type: ignore[operator]
            raise ValueError("column reduction: is not what macs_base and macs_pruned give")
        return self


class Wanted(BaseModel):
    """A network to count: a row of Table II."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    model: str
    classes: int
    image_size: int
    reduction: float

    @property
    def subject(self) -> tuple[str, int, int, float]:
        """See `Structure.subject`."""
        return self.model, self.classes, self.image_size, self.reduction


def wanted(claims: pd.DataFrame) -> list[Wanted]:
    """Return the networks of Table II, in its order."""
    from ifap.study.data import DATASETS as SPECS  # loads torch, which reading the file does not need

    own = claims[(claims["table"] == 2) & (claims["quantity"] == "gmacs_delta")]
    found = []
    for claim in own.to_dict("records"):
        dataset, model = DATASETS[claim["dataset"]].name, MODELS[claim["model"]]
        found.append(
            Wanted(
                dataset=dataset,
                model=model,
                classes=SPECS.get(dataset).classes,
                image_size=IMAGE_SIZES.get(model, USUAL_SIZE),
                reduction=round(-claim["number"] / 100, 6),
            )
        )
    return found


Key = tuple[str, str]


def load_structure(*, root: Path = Path()) -> dict[Key, tuple[int, Structure]]:
    """Read ``results/structure.csv``; nothing if there is none.

    Parameters
    ----------
    root : Path
        The project's root.

    Returns
    -------
    dict of (str, str) to (int, Structure)
        Data set and model to the line in the file, from 1, and its content.

    Raises
    ------
    ResultsError
        One line that names the file, row and column of the first problem.
    """
    return read_counts(paths.structure_csv(), Structure, root)


def structure_table(rows: Iterable[Structure]) -> str:
    """Lay out rows as CSV text."""
    return counts_table(Structure, rows)


def read_counts(shown: Path, kind: type[Row], root: Path) -> dict[Key, tuple[int, Row]]:
    """Read a file of counted networks; nothing if there is none.

    Parameters
    ----------
    shown : Path
        The file, below `root`.
    kind : type
        What a row is: its fields are the columns, in order, ``dataset`` and ``model`` among them.
    root : Path
        The project's root.

    Returns
    -------
    dict of (str, str) to (int, row)
        Data set and model to the line in the file, from 1, and its content.

    Raises
    ------
    ResultsError
        One line that names the file, row and column of the first problem.
    """
    if not (root / shown).exists():
        return {}
    lines = read_lines(root / shown, shown)
    header = tuple(kind.model_fields)
    check_header(lines[0], header, shown)
    rows: dict[Key, tuple[int, Row]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise ResultsError(f"malformed {shown}: row {number}: {len(line)} values for {len(header)} columns")
        values = dict(zip(header, line, strict=True))
        try:
            row = kind.model_validate(values)
        except ValidationError as error:
            raise ResultsError(f"malformed {shown}: row {number}, {first_problem(error)}") from None
        key = values["dataset"], values["model"]
        if key in rows:
            raise ResultsError(f"malformed {shown}: row {number}, column model: {'/'.join(key)} is doubled")
        rows[key] = number, row
    return rows


def counts_table(kind: type[BaseModel], rows: Iterable[BaseModel]) -> str:
    """Lay out the rows of a file of counted networks as CSV text."""
    return as_csv(tuple(kind.model_fields), (row.model_dump() for row in rows))


def counted(claim: Mapping[Any, Any], row: Structure) -> float | None:
    """Return what a network's count says about a claim, in the claim's unit; None where it says nothing.

    Table III prints some networks of Table II again: only its unpruned ones count here, since its
    reductions are not always the same. Of Table IV it is the first step, the unpruned network.
    """
    table, quantity = claim["table"], str(claim["quantity"])
    macs, params = row.macs_base / 1e9, row.params_base / 1e6
    if table == 4:
        return {"gmacs": macs, "params": params}.get(quantity) if claim["step"] == 1 else None
    if table in (2, 3) and quantity == "gmacs_base":
        return macs
    if table != 2 or row.macs_pruned is None or row.reduction is None:
        return None
    return {"gmacs_pruned": row.macs_pruned / 1e9, "gmacs_delta": -100 * row.reduction}.get(quantity)
