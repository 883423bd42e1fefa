"""The record of one cell and of one pruning iteration: what may stand in their files."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ifap.errors import nearest
from ifap.study.paper.vocabulary import METRICS

SCHEMA_VERSION = 2
"""Version 1 had times and provenance in the same file: see `stages.migrate_records`."""


CELL_COLUMNS = ("scale", "task", "dataset", "model", "method", "seed")


Percent = Annotated[float, Field(ge=0, le=100)]


Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """Part of a record: unknown keys, wrong types and values that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CellName(_Strict):
    """The cell that a record says it belongs to."""

    scale: str
    task: str
    dataset: str
    model: str
    method: str
    seed: int


class Measured(_Strict):
    """A metric on the test split, measured once."""

    value: float
    unit: str
    split: Literal["test"]


class SplitSizes(_Strict):
    """Samples in each split."""

    train: Count
    validation: Count
    test: Count


class Record(_Strict):
    """One ``metrics.json``."""

    schema_version: Literal[2]
    cell: CellName
    config: dict[str, Any]
    primary: str = "top1"
    metrics: dict[str, Measured]
    validation: dict[str, float]
    split_sizes: SplitSizes
    data_checksum: str
    synthetic: bool
    macs: Annotated[int, Field(gt=0)]
    macs_nonzero: Count
    params: Annotated[int, Field(gt=0)]
    params_nonzero: Count
    training_macs: Count | None = None
    dense_training_macs: Count | None = None

    @model_validator(mode="after")
    def _know_the_metrics(self) -> Record:
        for name, found in self.metrics.items():
            if name not in METRICS:
                raise ValueError(f"unknown metric '{name}': {nearest(name, METRICS)}")
            if found.unit != METRICS[name].unit:
                raise ValueError(f"metrics.{name}.unit is '{found.unit}', not '{METRICS[name].unit}'")
        test = {name: found.value for name, found in self.metrics.items()}
        for where, values in (("metrics", test), ("validation", self.validation)):
            for name in (self.primary, "loss", *(("top5",) if self.primary == "top1" else ())):
                if name not in values:
                    raise ValueError(f"{where}.{name} is missing")
            for name, value in values.items():
                metric = METRICS.get(name)
                if metric is None or not metric.low <= value <= metric.high:
                    raise ValueError(
                        f"{where}.{name} is {value:g}, not from {metric.low:g} to {metric.high:g}"
                        if metric
                        else f"{where}.{name}: unknown metric: {nearest(name, METRICS)}"
                    )
        return self

    @property
    def score(self) -> float:
        """The metric that is watched, on the test split."""
        return self.metrics[self.primary].value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


_Item = TypeVar("_Item")


Blank = Annotated[_Item | None, BeforeValidator(_empty_is_none)]


class Receipt(BaseModel):
    """One row of ``receipts.csv``; the fields are the columns of the file, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    iteration: Count
    accepted: Blank[bool]
    rho: Blank[float]
    units_asked: Blank[Count]
    units_removed: Blank[Count]
    macs_asked: Blank[float]
    macs: Count
    params: Count
    score_low: Blank[float]
    score_high: Blank[float]
    metric_before: Blank[float]
    metric_after: Blank[float]
    top1: Blank[Percent]
    top5: Blank[Percent]
    loss: Blank[float]
    refused: Blank[str]


RECEIPT_FIELDS = tuple(Receipt.model_fields)
EPOCH_FIELDS = ("epoch", "lr", "train_loss", "validation_loss", "validation_metric")
"""The columns of ``history.csv`` of a cell, as `ifap.study.training.history` writes them."""
RECORD_COLUMNS = (
    *CELL_COLUMNS,
    *("base_method", "structure", "start", "target_kind", "target"),
    *("macs_base", "macs", "macs_nonzero", "macs_reduction", "macs_theoretical_reduction"),
    *("params_base", "params", "params_nonzero", "params_reduction", "nonzero_params_reduction", "sparsity"),
    *("training_macs", "training_macs_theoretical"),
    *("metric", "baseline_metric", "test_metric", "metric_delta", "validation_metric"),
    *(f"{split}_{name}" for split in ("test", "validation") for name in METRICS),
    *("validation_before_recovery", "validation_after_recovery"),
    *("train_size", "validation_size", "test_size", "synthetic", "data_checksum", "config_hash"),
)
HISTORY_COLUMNS = (*CELL_COLUMNS, "stage", *EPOCH_FIELDS)
MISSING_COLUMNS = (*CELL_COLUMNS, "reason")
TRACE_COLUMNS = (*CELL_COLUMNS, *RECEIPT_FIELDS)
WIDTHS_COLUMNS = (*CELL_COLUMNS, "layer", "before", "after", "flow", "kept")
"""A row counts the output units of a layer, or lists their flow, the highest first, and which of them were kept."""


OPTIONAL_NUMBERS = frozenset(
    {
        *("target", "baseline_metric", "metric_delta"),
        *("macs_base", "macs_reduction", "macs_theoretical_reduction"),
        *("params_base", "params_reduction", "nonzero_params_reduction"),
        *("training_macs", "training_macs_theoretical"),
        *(f"{split}_{name}" for split in ("test", "validation") for name in METRICS),
        *("validation_before_recovery", "validation_after_recovery"),
        *("before", "after"),
        *(name for name in RECEIPT_FIELDS if name not in {"iteration", "macs", "params"}),
    }
)


def first_problem(error: ValidationError) -> str:
    """Say in one line which value is wrong and why."""
    first = error.errors(include_url=False, include_context=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"])
    got = f" (got {shown if len(shown) < 60 else shown[:57] + '...'})"
    said = first["msg"].removeprefix("Value error, ")
    return f"{location}: {said}{got}" if location else said
