"""Kinds of values that ``params.yaml`` holds, and the base of its sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TableName = Annotated[str, Field(pattern=r"^table-[1-5]$")]
StepName = Literal["fetch", "baseline", "prune", "finetune", "evaluate"]
StepOfCell = Literal["baseline", "prune", "finetune", "evaluate"]
TEXT_TASKS = frozenset({"text_classification", "text_regression", "question_answering", "cloze"})
"""The tasks whose networks are given text."""
DENSE_TASKS = ("detection", "segmentation", "generation")
"""The tasks of images whose networks answer with more than classes; in the order of the tables."""
Version = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A block of ``params.yaml``: unknown keys are errors and values are never coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def family(task: str) -> str:
    """Return the name of the blocks that are read for the networks of a task: ``text``, or the task's own."""
    return "text" if task in TEXT_TASKS else task
