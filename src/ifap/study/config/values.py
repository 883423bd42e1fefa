"""Kinds of values that ``params.yaml`` holds, and the base of its sections."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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
    left_out: ClassVar[Collection[str] | None] = ()
    """Optional keys that a configuration holds only where they are not at their default; None for all of them.

    A key that came later is one of them: at its default it makes no recorded result stale.
    """

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, names = type(self).model_fields, self.left_out
        optional = {name for name in (fields if names is None else names) if not fields[name].is_required()}
        return {
            key: value
            for key, value in handler(self).items()
            if key not in optional or value != fields[key].get_default(call_default_factory=True)
        }


def family(task: str) -> str:
    """Return the name of the blocks that are read for the networks of a task: ``text``, or the task's own."""
    return "text" if task in TEXT_TASKS else task
