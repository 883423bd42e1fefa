"""``params.yaml`` as types: every key is known, typed and checked before any job starts."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ifap.study.config.data import DatasetOptions, ModelOptions
from ifap.study.config.recipes import EvaluateOptions, PruneOptions, TrainingOptions
from ifap.study.config.rivals import MethodOptions
from ifap.study.config.values import Fraction, Name, Section, Seed, StepName, StepOfCell, TableName, Version


class Part(Section):
    """The part of a grid that a method runs on; what is left out is whole."""

    datasets: list[Name] | None = Field(default=None, min_length=1)
    models: list[Name] | None = Field(default=None, min_length=1)
    seeds: int | None = Field(default=None, ge=1, description="How many of the scale's seeds, from the first.")


class TaskGrid(Section):
    """The axes of one task's grid; their product, or a part of it, is the list of cells."""

    datasets: list[Name] = Field(min_length=1)
    models: list[Name] = Field(min_length=1)
    methods: list[Name] = Field(min_length=1)
    only: dict[Name, Part] = Field(default={}, description="Methods that run on a part of the axes.")
    models_of: dict[Name, list[Name]] = Field(
        default={}, description="Data sets that run with some of the models only, and these."
    )

    def runs(self, method: str, dataset: str, model: str) -> bool:
        """Return whether a method runs on a data set and a model."""
        if model not in self.models_of.get(dataset, self.models):
            return False
        part = self.only.get(method, Part())
        return dataset in (part.datasets or self.datasets) and model in (part.models or self.models)

    def seeds(self, method: str) -> int | None:
        """Return how many seeds a method runs under; None for all."""
        return self.only.get(method, Part()).seeds


class Variant(Section):
    """A method under options of its own, run beside the others: another target, another score."""

    method: Name = Field(description="The registered method.")
    prune: dict[str, Any] = Field(default={}, description="Keys of the pruning block that differ.")
    recovery: dict[str, Any] = Field(default={}, description="Keys of the recovery block that differ.")
    options: dict[str, Any] = Field(default={}, description="Keys of the method's own options that differ.")
    like: Name | None = Field(
        default=None, description="A method of the grid whose networks' widths are taken, whatever the target."
    )


class TargetLists(Section):
    """Targets that every method of the grid is run at, beside its own: the points of a trade-off curve."""

    macs: list[Fraction] = Field(default=[], description="Shares of the MACs to remove.")
    params: list[Fraction] = Field(default=[], description="Shares of the parameters to remove.")

    @model_validator(mode="after")
    def _each_once(self) -> TargetLists:
        for values in (self.macs, self.params):
            if len(set(values)) < len(values):
                raise ValueError(f"a target is named twice: {values}")
        return self

    @property
    def named(self) -> dict[str, dict[str, float]]:
        """The targets by the ending of the names that they give: ``{"m30": {"macs": 0.3}}``."""
        lists = {"macs": self.macs, "params": self.params}
        return {
            f"{kind[0]}{100 * value:.6g}".replace(".", "_"): {kind: value}
            for kind, values in lists.items()
            for value in values
        }


# Blocks of defaults that a model's own block refines, and then a data set's; parsed after the merge, so raw here.
Refined = dict[str, dict[str, Any]]


class ScaleParams(Section):
    """Everything that defines one scale."""

    left_out: ClassVar[Collection[str] | None] = ("paper_data", "goals")

    seeds: list[Seed] = Field(min_length=1)
    grid: dict[Name, TaskGrid] = Field(min_length=1)
    datasets: dict[Name, DatasetOptions]
    models: Refined
    baseline: Refined
    prune: Refined
    finetune: Refined
    evaluate: EvaluateOptions
    methods: MethodOptions = MethodOptions()
    variants: dict[Name, Variant] = Field(default={}, description="Further methods of the grid, by their own names.")
    targets: TargetLists = Field(
        default=TargetLists(), description="Further targets of every method: METHOD_m30 removes 30 % of the MACs."
    )
    tables: dict[TableName, dict[str, Any]] = Field(default={}, description="Keys of tables that differ here.")
    keep_checkpoints: bool = Field(default=True, description="Keep saved networks once nothing needs them any more.")
    resume: bool = Field(
        default=True, description="Write what a killed job needs to go on; jobs of a minute need none."
    )
    paper_data: bool = Field(
        default=False,
        description="Its data are the paper's own, whole: verdicts say so, and the page opens with what follows.",
    )
    goals: dict[Name, float] = Field(
        default={}, description="Accuracies (%) that unpruned networks should reach; the page says where one does not."
    )

    @model_validator(mode="after")
    def _whole_data(self) -> ScaleParams:
        for name, options in self.datasets.items():
            if self.paper_data and (options.synthetic is not None or options.train_samples is not None):
                raise ValueError(f"paper_data: data set '{name}' is not whole: leave out synthetic and train_samples")
        return self

    @cached_property
    def points(self) -> dict[str, dict[str, Variant]]:
        """The variants that `targets` makes of each method of the grid, by their names.

        A variant that names a target of its own is a point already and is not multiplied.
        """
        made: dict[str, dict[str, Variant]] = {}
        for method in dict.fromkeys(method for grid in self.grid.values() for method in grid.methods):
            base = self.variants.get(method, Variant(method=method))
            ends = {} if "target" in base.prune else self.targets.named
            made[method] = {
                f"{method}_{end}": base.model_copy(
                    update={"prune": {**base.prune, "target": target}, "like": base.like and f"{base.like}_{end}"}
                )
                for end, target in ends.items()
            }
        return made

    @cached_property
    def every_variant(self) -> dict[str, Variant]:
        """The variants by name, those that `targets` makes included."""
        return {**self.variants, **{name: made for points in self.points.values() for name, made in points.items()}}


class TableParams(Section):
    """One table of the report."""

    title: str
    task: Name | None = None
    dataset: Name | None = None
    model: Name | None = None
    method: Name | None = None
    seed: int | None = None


class VerdictParams(Section):
    """How far a measured value may be from the published one and still count as reproduced (or reachable)."""

    accuracy_points: float = Field(ge=0, description="Accuracies: percentage points.")
    accuracy_sds: float = Field(ge=0, description="Accuracies: standard deviations over seeds; the larger counts.")
    cost_percent: float = Field(ge=0, description="MACs and parameters: percent, beside rounding of the printed one.")


class Params(Section):
    """The whole of ``params.yaml``."""

    scale: Name
    published: Name
    versions: dict[StepName, Version]
    versions_of: dict[Name, dict[StepOfCell, Version]] = Field(default={}, description="Added for single models.")
    scales: dict[Name, ScaleParams] = Field(min_length=1)
    verdicts: VerdictParams = VerdictParams(accuracy_points=0.5, accuracy_sds=2.0, cost_percent=1.0)
    tables: dict[TableName, TableParams]


SECTIONS: dict[str, type[Section]] = {
    "models": ModelOptions,
    "baseline": TrainingOptions,
    "prune": PruneOptions,
    "finetune": TrainingOptions,
}
"""The refined blocks of a scale, one merged section a model each."""


def json_schema() -> str:
    """Return the JSON schema of ``params.yaml`` (committed under ``schemas/`` for editors)."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"
