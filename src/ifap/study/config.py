"""``params.yaml`` as types: every key is known, typed and checked before any job starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ifap.choices import Precision
from ifap.errors import ConfigError, nearest
from ifap.files import read_bounded
from ifap.registry import entry_names

Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TableName = Annotated[str, Field(pattern=r"^table-[1-5]$")]
# A parameter file may come from anyone: bounds on its bytes, on what its aliases stand for and on its grid.
_MAX_BYTES = 2**18
_MAX_VALUES = 100_000
_MAX_CELLS = 1_000_000
# What YAML values with a type of their own, such as dates, fail with.
_VALUE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
StepName = Literal["fetch", "baseline", "prune", "finetune", "evaluate"]
StepOfCell = Literal["baseline", "prune", "finetune", "evaluate"]


class Section(BaseModel):
    """A block of ``params.yaml``: unknown keys are errors and values are never coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SyntheticOptions(Section):
    """A generated twin of a data set, in the real one's on-disk format."""

    classes: int = Field(ge=2)
    per_class: int = Field(ge=2, description="Training samples of each class; the test split gets half as many.")
    seed: Seed


class DatasetOptions(Section):
    """How a data set is found, prepared and split."""

    validation: Fraction | None = Field(
        default=None, description="Share of the training samples for validation; only if the data set has none."
    )
    test: Fraction | None = Field(
        default=None, description="Share of the training samples for the test split; only if the data set has none."
    )
    split_seed: Seed = Field(description="Seed of the stratified split; the same for every run.")
    channels: Literal[1, 3] | None = Field(
        default=None, description="3 repeats a grey image; the set's own by default."
    )
    root: str | None = Field(default=None, description="Folder of the raw data; data/raw/NAME by default.")
    download: bool = Field(default=False, description="Fetch the data where their makers offer them freely.")
    max_undecodable: float = Field(default=0.0, ge=0, lt=1, description="Share of image files that may be damaged.")
    max_bad_annotations: float = Field(
        default=0.0, ge=0, lt=1, description="Share of boxes or masks that may be damaged, of each kind of damage."
    )
    synthetic: SyntheticOptions | None = Field(default=None, description="Generate the data instead.")
    train_samples: int | None = Field(
        default=None, ge=1, description="Training samples to keep, every class in proportion; all by default."
    )

    @model_serializer(mode="wrap")
    def _leave_out_newer_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The configuration of a result has had no such keys: at their defaults they make no result stale.
        newer = (("train_samples", None), ("max_bad_annotations", 0.0))
        return {key: value for key, value in handler(self).items() if (key, value) not in newer}

    @model_validator(mode="after")
    def _leave_training_data(self) -> DatasetOptions:
        if (self.validation or 0) + (self.test or 0) >= 1:
            raise ValueError("validation and test together must leave training data (sum below 1)")
        return self


class ModelOptions(Section):
    """What a network is given and starts from."""

    image_size: int = Field(gt=0, description="Side of the square network input, in pixels.")
    pretrained: str | None = Field(
        default=None, description="Weights to start from (.safetensors); none: initialised at random."
    )


class TextOptions(Section):
    """What a network for text is given and starts from."""

    max_length: int = Field(gt=0, description="Tokens of an input; longer texts are cut, passages read in windows.")
    tokenizer: str = Field(
        description="'word', made of the training texts; or a folder or hub name of a pretrained one."
    )
    vocab_size: int | None = Field(
        default=None, gt=0, description="Most words of a trained tokenizer; rows of a pretrained network's table."
    )
    pretrained: str | None = Field(
        default=None, description="Weights to start from (.safetensors); none: initialised at random."
    )
    layers: int | None = Field(
        default=None, ge=1, description="Depth of the network, for a trial run; none: the published one."
    )

    @model_validator(mode="after")
    def _depth_of_a_trained_one(self) -> Self:
        if self.layers and self.pretrained:
            raise ValueError("layers: pretrained weights have their own depth, leave it out")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_the_published_depth(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As in `StepOptions`: a new option makes no result stale.
        return {key: value for key, value in handler(self).items() if key != "layers" or value is not None}

    @model_validator(mode="after")
    def _size_of_a_trained_one(self) -> Self:
        if self.tokenizer == "word" and (self.vocab_size is None or self.pretrained):
            raise ValueError(f"tokenizer '{self.tokenizer}' is trained here: it needs vocab_size, and no pretrained")
        return self


class StepOptions(Section):
    """How the steps of a training are computed; the defaults are the plain ones."""

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

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The configuration of a result holds no optional key at its default: a new one makes no result stale.
        fields = type(self).model_fields
        return {
            key: value
            for key, value in handler(self).items()
            if fields[key].is_required() or value != fields[key].get_default(call_default_factory=True)
        }


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
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum of sgd; adamw has none.")
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

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The configuration of a result has had no such keys: at their defaults they make no result stale.
        later = {"pace": "units", "compensate": False}
        return {key: value for key, value in handler(self).items() if later.get(key, ...) != value}


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


LIMITS = ("min_units", "max_layer_ratio", "round_to", "spatial_only")
"""The pruning options that bound what may be cut, whatever chooses it."""


TEXT_TASKS = frozenset({"text_classification", "text_regression", "question_answering", "cloze"})
"""The tasks whose networks are given text."""
DENSE_TASKS = ("detection", "segmentation", "generation")
"""The tasks of images whose networks answer with more than classes; in the order of the tables."""


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


class EvaluateOptions(Section):
    """What the only reader of the test split measures."""

    batch_size: int = Field(gt=0)
    calibration_bins: int = Field(gt=0, description="Bins of the expected calibration error.")
    latency_batch: int = Field(gt=0)
    latency_warmup: int = Field(ge=0)
    latency_runs: int = Field(gt=0)
    batch_sizes: dict[Name, Annotated[int, Field(gt=0)]] = Field(
        default={}, description="Samples of a batch in some tasks, by the names of their blocks."
    )

    @model_serializer(mode="wrap")
    def _leave_out_batch_sizes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The configuration of a result has had no such key: at its default it makes no result stale.
        return {key: value for key, value in handler(self).items() if (key, value) != ("batch_sizes", {})}

    def samples(self, task: str) -> int:
        """Return how many samples a batch of a task has."""
        return self.batch_sizes.get(family(task), self.batch_size)


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
                    update={
                        "prune": {**base.prune, "target": target},
                        "like": base.like and f"{base.like}_{end}",
                    }
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
    """How far a measured value may be from the published one and still count as reproduced."""

    accuracy_points: float = Field(ge=0, description="Accuracies: percentage points.")
    accuracy_sds: float = Field(ge=0, description="Accuracies: standard deviations over seeds; the larger counts.")
    cost_percent: float = Field(ge=0, description="MACs and parameters: percent, beside rounding of the printed one.")


Version = Annotated[int, Field(ge=1)]


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


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check ``params.yaml``.

    Raises
    ------
    ConfigError
        One line that names the key and the nearest valid choice.
    """
    path = Path(path)
    try:
        raw = _parse_yaml(read_bounded(path, _MAX_BYTES).decode())
    except FileNotFoundError:
        raise ConfigError(f"{path} not found: run from the project's root") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, *_VALUE_ERRORS, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_first_line(error)}") from None
    return parse_params(raw, source=str(path))


def _parse_yaml(text: str) -> Any:
    """Read YAML of plain values in which no key stands twice and aliases do not multiply it."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, every alias written out; `sizes` holds those that are known."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError(f"an alias inside of what it stands for, line {node.start_mark.line + 1}")
        return sizes[id(node)]
    sizes[id(node)], size = 0, 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            size += _expanded(key, sizes) + _expanded(value, sizes)
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise ValueError(f"key '{key.value[:40]}' stands twice, again in line {key.start_mark.line + 1}")
                keys.add(key.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded(item, sizes) for item in node.value)
    if size > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES} values, aliases written out, by line {node.start_mark.line + 1}")
    sizes[id(node)] = size
    return size


def parse_params(raw: object, source: str = "params.yaml") -> Params:
    """Check a mapping as ``params.yaml`` would be; see `load_params`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected a mapping at the top, got {type(raw).__name__}")
    params = validated(Params, raw, source)
    for key in ("scale", "published"):
        if getattr(params, key) not in params.scales:
            name = getattr(params, key)
            raise ConfigError(f"{source}: {key}: unknown scale '{name}': {nearest(name, params.scales)}")
    for step in get_args(StepName):
        if step not in params.versions:
            raise ConfigError(f"{source}: versions: {step}: key is missing")
    _check_names(f"{source}: versions_of", params.versions_of, "model", entry_names("ifap.study.models"))
    for scale, block in params.scales.items():
        _check_scale(block, f"{source}: scales.{scale}")
    return params


def select_scale(params: Params, scale: str | None) -> str:
    """Return `scale`, or the default of `params`, after checking that it exists."""
    chosen = scale or params.scale
    if chosen not in params.scales:
        raise ConfigError(f"unknown scale '{chosen}': {nearest(chosen, params.scales)}")
    return chosen


def refine(
    block: Refined, model: str, section: type[Section], where: str, changes: Mapping[str, Any] | None = None
) -> Any:
    """Merge the ``default`` block with the one of `model` and further changes, and check the result."""
    merged = {**block.get("default", {}), **block.get(model, {}), **(changes or {})}
    return validated(section, merged, where)


def options_type(step: str, task: str) -> type[Section]:
    """Return the type of the options of a step, for the networks of a task."""
    return TextOptions if step == "models" and task in TEXT_TASKS else SECTIONS[step]


def family(task: str) -> str:
    """Return the name of the blocks that are read for the networks of a task: ``text``, or the task's own."""
    return "text" if task in TEXT_TASKS else task


def for_task(step: str, block: Refined, task: str) -> Refined:
    """Return a block as the networks of a task see it: their family's refines ``default``.

    Under ``models`` the one for texts replaces it: what a network for text is given is of another kind.
    """
    first = {} if step == "models" and task in TEXT_TASKS else block.get("default", {})
    return {**block, "default": {**first, **block.get(family(task), {})}}


def refine_recovery(block: Refined, task: str, where: str, changes: Mapping[str, Any] | None = None) -> RecoveryOptions:
    """Return the options of the distillation for the networks of a task, whose family may have keys of its own."""
    block = block.get("recovery", {})
    families = set(map(family, entry_names("ifap.study.tasks")))
    common = {key: value for key, value in block.items() if key not in families}
    own = block.get(family(task), {})
    if not isinstance(own, dict):
        raise ConfigError(f"{where}.{family(task)}: expected a mapping, got {type(own).__name__}")
    options: RecoveryOptions = validated(RecoveryOptions, {**common, **own, **(changes or {})}, where)
    return options


def method_names() -> frozenset[str]:
    """Return the names of all methods: those that score units and those that train with masks."""
    return entry_names("ifap.methods") | entry_names("ifap.study.rivals")


def mask_options(method: str) -> type[MaskOptions] | None:
    """Return the type of a method's own options if it trains with masks, else None."""
    field = MethodOptions.model_fields.get(method)
    section = field.annotation if field is not None else None
    return section if isinstance(section, type) and issubclass(section, MaskOptions) else None


def refine_method(block: MethodOptions, method: str, changes: Mapping[str, Any], where: str) -> Section | None:
    """Return a method's own options with some changed; None if it has none."""
    if method in MethodOptions.model_fields:
        own: Section = getattr(block, method)
        return validated(type(own), {**own.model_dump(), **changes}, f"{where}.options") if changes else own
    if changes:
        raise ConfigError(f"{where}.options: method '{method}' has no options of its own")
    return None


def json_schema() -> str:
    """Return the JSON schema of ``params.yaml`` (committed under ``schemas/`` for editors)."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"


def _check_parts(where: str, scale: ScaleParams, grid: TaskGrid) -> None:
    _check_names(f"{where}.models_of", grid.models_of, "data set of the grid", grid.datasets)
    for name, models in grid.models_of.items():
        _check_names(f"{where}.models_of.{name}", models, "model of the grid", grid.models)
    where = f"{where}.only"
    _check_names(where, grid.only, "method of the grid", grid.methods)
    for name, part in grid.only.items():
        _check_names(f"{where}.{name}.datasets", part.datasets or (), "data set of the grid", grid.datasets)
        _check_names(f"{where}.{name}.models", part.models or (), "model of the grid", grid.models)
        if (part.seeds or 0) > len(scale.seeds):
            raise ConfigError(f"{where}.{name}.seeds: the scale has {len(scale.seeds)} seeds, not {part.seeds}")


def _check_like(where: str, name: str, scale: ScaleParams, grid: TaskGrid) -> None:
    """Refuse widths of what is not in the grid, does not cut channels by itself, or has fewer seeds."""
    like = scale.variants[name].like if name in scale.variants else None
    if like is None:
        return
    _check_names(where, [like], "method of the grid", set(grid.methods) - {name})
    other = scale.variants.get(like, Variant(method=like))
    if other.like is not None or mask_options(other.method) is not None or mask_options(scale.variants[name].method):
        raise ConfigError(f"{where}: only widths that a score has chosen can be taken, by a method that scores units")
    if grid.only.get(like) not in (None, grid.only.get(name)):
        raise ConfigError(f"{where}: '{like}' runs on a part of the grid only, '{name}' on another (only)")


def _check_scale(scale: ScaleParams, where: str) -> None:
    for task, grid in scale.grid.items():
        points = 1 + len(scale.targets.macs) + len(scale.targets.params)
        cells = points * len(grid.datasets) * len(grid.models) * len(grid.methods) * len(scale.seeds)
        if cells > _MAX_CELLS:
            raise ConfigError(f"{where}.grid.{task}: more than {_MAX_CELLS:,} cells: split the scale")
        _check_names(where + ".grid", [task], "task", entry_names("ifap.study.tasks"))
        _check_names(f"{where}.grid.{task}.datasets", grid.datasets, "data set", entry_names("ifap.study.data"))
        _check_names(f"{where}.grid.{task}.datasets", grid.datasets, "data set with options", scale.datasets)
        _check_names(f"{where}.grid.{task}.models", grid.models, "model", entry_names("ifap.study.models"))
        _check_names(f"{where}.grid.{task}.methods", grid.methods, "method", {*method_names(), *scale.variants})
        _check_parts(f"{where}.grid.{task}", scale, grid)
        for name in grid.methods:
            method = scale.variants[name].method if name in scale.variants else name
            _check_task(f"{where}.grid.{task}.methods", method, task)
            _check_like(f"{where}.variants.{name}.like", name, scale, grid)
    _check_steps(scale, where)
    for task in scale.grid:
        refine_recovery(scale.prune, task, f"{where}.prune.recovery")
    _check_names(f"{where}.evaluate.batch_sizes", scale.evaluate.batch_sizes, "task", set(map(family, scale.grid)))
    for name, variant in scale.variants.items():
        _check_variant(scale, variant, f"{where}.variants.{name}")
    known = {*method_names(), *scale.variants}
    for name in (name for points in scale.points.values() for name in points):
        if name in known:
            raise ConfigError(f"{where}.targets: '{name}' is the name of a method already: rename it under variants")
    for table, block in scale.tables.items():
        validated(TableParams, {"title": "", **block}, f"{where}.tables.{table}")


def _check_steps(scale: ScaleParams, where: str) -> None:
    models = {model for grid in scale.grid.values() for model in grid.models}
    for step in SECTIONS:
        block: Refined = getattr(scale, step)
        families = {"text", *map(family, scale.grid)}
        allowed = {"default", *families, *models, *scale.datasets, *({"recovery"} if step == "prune" else ())}
        _check_names(f"{where}.{step}", block, "model", allowed)
        for task, grid in scale.grid.items():
            own = for_task(step, block, task)
            section = options_type(step, task)
            for model in sorted(grid.models):
                refine(own, model, section, f"{where}.{step}.{model}")
                for name in sorted(set(block) & {*grid.datasets}):
                    refine(own, model, section, f"{where}.{step}.{name}", block[name])


def _check_variant(scale: ScaleParams, variant: Variant, where: str) -> None:
    _check_names(where, [variant.method], "method", method_names())
    refine_method(scale.methods, variant.method, variant.options, where)
    validated(PruneOptions, {**scale.prune.get("default", {}), **variant.prune}, f"{where}.prune")
    for task in scale.grid:
        refine_recovery(scale.prune, task, f"{where}.recovery", variant.recovery)


def _check_task(where: str, method: str, task: str) -> None:
    options = mask_options(method)
    if options is not None and task not in options.tasks:
        raise ConfigError(f"{where}: method '{method}' is not defined for task '{task}': not attempted")


def _check_names(where: str, names: Any, kind: str, valid: Any) -> None:
    for name in names:
        if name not in valid:
            raise ConfigError(f"{where}: unknown {kind} '{name}': {nearest(name, valid)}")


def validated(section: type[Section], raw: dict[str, Any], where: str) -> Any:
    """Return a block as its type; a wrong one raises one `ConfigError` that names `where` and the key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, section, where)) from None


def _explain(error: ValidationError, section: type[Section], where: str) -> str:
    # A misspelt key is both unknown and missing: name the one that the user wrote.
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = ".".join(str(part) for part in first["loc"])
    key = f"{where}: {location}" if location else where
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key: {nearest(str(first['loc'][-1]), _sibling_keys(section, first['loc']))}"
    if first["type"] == "missing":
        return f"{key}: key is missing"
    shown = repr(first["input"])
    value = f" (got {shown if len(shown) < 60 else shown[:57] + '...'})"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{value}"


def _sibling_keys(section: type[Section], location: tuple[int | str, ...]) -> list[str]:
    current: Any = section
    for part in location[:-1]:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            break
        field = current.model_fields.get(str(part))
        current = _inner_model(field.annotation) if field else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _inner_model(annotation: Any) -> Any:
    """Return the section inside ``dict[..., Section]`` or ``Section | None``, else the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_model(argument)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return annotation


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
