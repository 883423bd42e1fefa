"""Options of the steps of a cell: training, pruning, recovery, evaluation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ifap.choices import Precision
from ifap.study.config.values import Fraction, Name, Section, family

LIMITS = ("min_units", "max_layer_ratio", "round_to", "spatial_only")
"""The pruning options that bound what may be cut, whatever chooses it."""


class StepOptions(Section):
    """How the steps of a training are computed; the defaults are the plain ones."""

    left_out: ClassVar[Collection[str] | None] = None

    batch_size: int = Field(gt=0, description="Samples of one step of the optimiser, whatever they are split into.")
    precision: Precision = Field(default="fp32", description="Mixed precision of forward and backward.")
    accumulate: int = Field(default=1, ge=1, description="Parts that a batch is split into to save memory.")
    channels_last: bool = Field(default=False, description="Channels last in memory: faster on recent GPUs.")
    compile: bool = Field(default=False, description="Compile the network with torch.compile.")

    @model_validator(mode="after")
    def _split_evenly(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} must divide batch_size {self.batch_size}")
        return self


class TrainingOptions(StepOptions):
    """A training recipe: baseline training and fine-tuning use the same kind."""

    epochs: int = Field(ge=0)
    optimizer: Literal["adamw", "sgd"]
    lr: float = Field(gt=0, description="Peak learning rate, from which the schedule falls.")
    weight_decay: float = Field(ge=0)
    warmup_epochs: int = Field(ge=0, description="Epochs of linear warm-up before the schedule.")
    label_smoothing: float = Field(ge=0, lt=1)
    augment: bool
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="Half a cosine towards zero, or a factor gamma at every milestone."
    )
    milestones: list[Fraction] = Field(
        default_factory=list, description="Shares of the run at which schedule 'step' lowers the learning rate."
    )
    gamma: Fraction = Field(default=0.1, description="Factor of schedule 'step' at every milestone.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum of sgd; adamw has beta1.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of adamw's mean gradient; sgd has momentum.")
    decay_norms: bool = Field(default=False, description="Decay biases and the parameters of norms as well.")
    grad_clip: float | None = Field(default=None, gt=0, description="Largest norm of the gradient of a step.")
    ema_decay: Fraction | None = Field(
        default=None, description="Return a moving average of the weights, which keeps this share of itself each step."
    )

    @model_validator(mode="after")
    def _fit_the_schedule(self) -> Self:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones belong to schedule 'step', which needs at least one (such as [0.5, 0.75])")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, without repetition: {self.milestones}")
        return self


class TargetOptions(Section):
    """The wanted reduction; exactly one of the keys."""

    macs: Fraction | None = None
    params: Fraction | None = None
    published: Literal["macs", "params"] | None = Field(
        default=None, description="The reduction that the paper prints for the cell's data set and model."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> TargetOptions:
        if [self.macs, self.params, self.published].count(None) != 2:
            raise ValueError("name exactly one of macs, params and published")
        return self


class PruneOptions(Section):
    """The pruning loop (Algorithm 1 of the paper) and the limits it respects."""

    left_out: ClassVar[Collection[str] | None] = ("pace", "compensate")

    target: TargetOptions
    steps: int = Field(ge=1, description="Number of pruning iterations T.")
    alpha: float = Field(ge=0, description="Exponent of the schedule rho_k = rho_0 (1 + k/T)^alpha.")
    normalize: Literal["layer", "volume", "none"]
    site: Literal["output", "activation"]
    aggregate: Literal["mean", "sum", "max"]
    min_units: int = Field(ge=1, description="Channels that every layer keeps.")
    max_layer_ratio: Fraction = Field(description="Largest share of a layer's units that may go.")
    spatial_only: bool = Field(
        default=False, description="Remove nothing for the sake of a 1x1 convolution or a linear layer, as the paper."
    )
    round_to: int | None = Field(default=None, ge=1, description="Keep widths a multiple of this.")
    max_drop: float | None = Field(
        default=None, ge=0, description="Largest fall of validation top-1, in percentage points."
    )
    calibration_samples: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    pace: Literal["units", "macs"] = Field(
        default="units", description="What an iteration removes its share of: the units that are left, or their MACs."
    )
    compensate: bool = Field(
        default=False, description="Let what stays stand in for what goes, by least squares on the calibration samples."
    )


class RecoveryOptions(StepOptions):
    """Distillation after each pruning iteration."""

    epochs: int = Field(ge=0)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    feature_weight: float = Field(ge=0, description="Weight of the L1 feature loss.")
    logit_weight: float = Field(ge=0, description="Weight of the KL loss between the outputs.")
    temperature: float = Field(gt=0)
    teacher: Literal["original", "previous"]
    patience: int = Field(ge=1, description="Epochs without a better validation loss before stopping.")
    augment: bool
    samples: int | None = Field(
        default=None, ge=1, description="Training samples of an epoch, drawn anew for each; all by default."
    )


class EvaluateOptions(Section):
    """What the only reader of the test split measures."""

    left_out: ClassVar[Collection[str] | None] = ("batch_sizes",)

    batch_size: int = Field(gt=0)
    calibration_bins: int = Field(gt=0, description="Bins of the expected calibration error.")
    latency_batch: int = Field(gt=0)
    latency_warmup: int = Field(ge=0)
    latency_runs: int = Field(gt=0)
    batch_sizes: dict[Name, Annotated[int, Field(gt=0)]] = Field(
        default={}, description="Samples of a batch in some tasks, by the names of their blocks."
    )

    def samples(self, task: str) -> int:
        """Return how many samples a batch of a task has."""
        return self.batch_sizes.get(family(task), self.batch_size)
