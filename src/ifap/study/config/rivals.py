"""Options of the methods that prune in a training of their own."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ifap.study.config.values import TEXT_TASKS, Fraction, Section


class MaskOptions(Section):
    """Options of a method that prunes in a training of its own, and what must be known of it before torch is loaded."""

    start: ClassVar[Literal["baseline", "init"]] = "init"
    structure: ClassVar[Literal["channels", "weights"]] = "weights"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    pretrained_first: ClassVar[bool] = False
    """Whether it starts from the untrained network after all where that has pre-trained weights."""
    retrains: ClassVar[bool] = True
    """Whether its network is trained on after pruning."""


class RankingOptions(MaskOptions):
    """Options of a method that ranks the weights of all layers together."""

    layer_floor: float = Field(default=0.01, ge=0, lt=1, description="Share of its weights that every layer keeps.")


class LthOptions(RankingOptions):
    """Iterative magnitude pruning with rewinding: the lottery ticket hypothesis."""

    tasks: ClassVar[frozenset[str]] = MaskOptions.tasks | TEXT_TASKS

    rate: Fraction = Field(default=0.2, description="Share of the kept weights that goes after each training.")
    levels: int | None = Field(
        default=None, ge=1, description="Prunings in equal shares; as many of `rate` as the target needs by default."
    )
    rewind_epochs: int = Field(default=1, ge=0, description="Epochs after which weights are kept to go back to.")


class RiglOptions(MaskOptions):
    """Sparse training whose masks move: RigL."""

    update_every: int | None = Field(
        default=None, ge=2, description="Steps from one change of the masks to the next; 100, or a 20th of a short run."
    )
    drop_fraction: Fraction = Field(default=0.3, description="Share of a layer's weights that moves at first.")
    end_share: Fraction = Field(default=0.75, description="Share of the run after which the masks stay.")


class GranetOptions(RankingOptions):
    """Gradual pruning with regeneration: GraNet."""

    initial_density: float = Field(default=0.5, gt=0, le=1, description="Share of the weights that is kept at first.")
    update_every: int | None = Field(
        default=None, ge=1, description="Steps from one change of the masks to the next; a 56th of the run by default."
    )
    regrow: Fraction = Field(default=0.5, description="Share of a layer's weights that is regenerated at first.")
    window_share: Fraction = Field(default=0.5, description="Share of the run after which pruning is done.")


class PdpOptions(RankingOptions):
    """Soft masks that follow from the weights: PDP."""

    tasks: ClassVar[frozenset[str]] = MaskOptions.tasks | TEXT_TASKS

    warmup_share: float = Field(default=0.16, ge=0, lt=1, description="Share of the epochs before pruning begins.")
    ramp_share: Fraction = Field(default=0.67, description="Share of the epochs in which sparsity rises.")
    temperature: float = Field(default=0.05, gt=0, description="Softness of the masks; its unit is `temperature_of`.")
    temperature_of: Literal["threshold", "weights"] = Field(
        default="threshold", description="Times the layer's squared threshold, or a squared weight for all layers."
    )

    @model_validator(mode="after")
    def _fit_the_run(self) -> Self:
        if self.warmup_share + self.ramp_share > 1:
            raise ValueError("warmup_share and ramp_share together must not exceed 1")
        return self


class PdpChannelOptions(MaskOptions):
    """PDP over channels, from the trained network."""

    start: ClassVar[Literal["baseline", "init"]] = "baseline"
    structure: ClassVar[Literal["channels", "weights"]] = "channels"

    warmup_share: float = Field(default=0.16, ge=0, lt=1, description="Share of the steps before pruning begins.")
    ramp_share: Fraction = Field(default=0.67, description="Share of the steps in which more and more channels go.")
    sharpness: float = Field(default=0.05, gt=0, description="Softness of the gates, times their squared threshold.")

    @model_validator(mode="after")
    def _fit_the_run(self) -> Self:
        if self.warmup_share + self.ramp_share > 1:
            raise ValueError("warmup_share and ramp_share together must not exceed 1")
        return self


class MvpOptions(MaskOptions):
    """Movement pruning of language models: MvP."""

    start: ClassVar[Literal["baseline", "init"]] = "baseline"
    tasks: ClassVar[frozenset[str]] = TEXT_TASKS
    pretrained_first: ClassVar[bool] = True

    scores: Literal["hard", "soft"] = Field(
        default="hard", description="Keep the target's share of the scores, or those above a threshold."
    )
    score_lr: float = Field(default=0.01, ge=0, description="Peak learning rate of the scores.")
    warmup_steps: int | None = Field(
        default=None, ge=1, description="Steps in which learning rates rise; a tenth of the run by default."
    )
    initial_warmup: float = Field(default=1, ge=0, description="Warm-ups before pruning begins.")
    final_warmup: float = Field(default=2, ge=0, description="Warm-ups after pruning is done.")
    initial: float = Field(default=1.0, gt=0, le=1, description="Share of each layer's scores that is kept at first.")
    block_rows: int = Field(default=1, ge=1, description="Output rows of a weight that share a score.")
    block_columns: int = Field(default=1, ge=1, description="Input columns of a weight that share a score.")
    final_threshold: Fraction = Field(default=0.1, description="Threshold of soft scores after their sigmoid.")
    penalty: float = Field(default=400, ge=0, description="Final weight of the penalty on soft scores.")
    grad_clip: float | None = Field(default=1.0, gt=0, description="Largest norm of all gradients, scores included.")


class RfpOptions(MaskOptions):
    """Removal of heads and neurons of a trained language model without training: RFP."""

    start: ClassVar[Literal["baseline", "init"]] = "baseline"
    structure: ClassVar[Literal["channels", "weights"]] = "channels"
    tasks: ClassVar[frozenset[str]] = TEXT_TASKS
    retrains: ClassVar[bool] = False

    samples: int = Field(default=2048, ge=1, description="Training samples that are drawn, with replacement.")
    batch_size: int = Field(default=32, ge=1, description="Samples of one gradient of the masks.")
    per_sample: bool = Field(default=False, description="One gradient a sample instead, whatever the batch.")
    rearrange: bool = Field(default=True, description="Exchange units within a layer after the search.")
    tune: bool = Field(default=True, description="Scale the kept units by least squares, layer by layer.")
    damping: float = Field(default=1.0, gt=0, description="Damping of the least squares.")
    largest_scale: float = Field(default=10.0, gt=1, description="Scales beyond this, of either sign, end the tuning.")


class SmallDenseOptions(MaskOptions):
    """A network with fewer channels, trained from scratch: nothing is left to choose."""

    structure: ClassVar[Literal["channels", "weights"]] = "channels"


class MethodOptions(Section):
    """Options of the methods that have some of their own."""

    lth: LthOptions = LthOptions()
    rigl: RiglOptions = RiglOptions()
    granet: GranetOptions = GranetOptions()
    pdp: PdpOptions = PdpOptions()
    pdp_channel: PdpChannelOptions = PdpChannelOptions()
    small_dense: SmallDenseOptions = SmallDenseOptions()
    mvp: MvpOptions = MvpOptions()
    rfp: RfpOptions = RfpOptions()
