"""What a method is that prunes in a training of its own: what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ifap.data import Augment, Split, refuse_test
from ifap.forward import Inputs
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.rivals import MaskOptions
from ifap.study.rivals.attention import split_attention
from ifap.study.tasks.base import Task
from ifap.study.training.fit import Progress
from ifap.study.training.history import EpochRow

if TYPE_CHECKING:
    from ifap.results import Pruned, Target

Masks = dict[str, Tensor]
"""Name of a weight to a boolean tensor of its shape; True is kept."""


@dataclass(frozen=True)
class Context:
    """What a method may use.

    Parameters
    ----------
    build : callable
        Returns the untrained network, the same in every call, on its device.
    baseline : callable
        Returns the trained, unpruned network.
    example_inputs : Tensor, tuple, list or dict
        Inputs of one forward, for counting.
    train, validation : Split
        What to learn from and what to watch; the test split is refused.
    task : Task
        Loss and metrics.
    options : MaskOptions
        The method's own options.
    target : Target
        The wanted reduction, counted over the whole network: MACs of products with a weight that
        is kept, or parameters that are kept.
    recipe : TrainingOptions
        How to train; its epochs are the whole budget of one training.
    seed : int
        Source of order, augmentation, dropout and random masks.
    augment : bool or callable, optional
        See `ifap.study.training.fit.fit`.
    limits : mapping, optional
        For methods that cut channels: `min_units`, `max_layer_ratio` and so on, as `ifap.prune` has them.
    state : Path, optional
        Folder of the resume state.
    guard : str, optional
        What else the result depends on; a state with another one is discarded.
    pretrained : bool, optional
        Whether `build` returns a network with pre-trained weights.
    """

    build: Callable[[], nn.Module]
    baseline: Callable[[], nn.Module]
    example_inputs: Inputs
    train: Split
    validation: Split
    task: Task
    options: MaskOptions
    target: Target
    recipe: TrainingOptions
    seed: int
    augment: bool | Augment = False
    limits: Mapping[str, Any] = field(default_factory=dict)
    state: Path | None = None
    guard: str = ""
    pretrained: bool = False

    def __post_init__(self) -> None:
        refuse_test(self.train, "training")
        refuse_test(self.validation, "watching the training")

    def network(self) -> tuple[nn.Module, list[str]]:
        """Build the untrained network, its attention split into linear layers; returns the names of those modules too.

        Fused projections are neither layers with a weight of their own nor counted as such.
        """
        model = self.build()
        return model, split_attention(model)


@dataclass(frozen=True)
class Event:
    """The state of a run after an epoch, or after a whole training where a method trains repeatedly."""

    number: int  # 0 is the start.
    kept: int  # Weights that are kept, of those that can be masked.
    density: float  # Their share.
    macs: int  # Theoretical MACs of one forward over the example inputs: products with a kept weight.
    validation: EpochRow | None = None  # The last epoch; None at the start.


@dataclass(frozen=True)
class Outcome:
    """A network with masked weights or fewer channels, and how it came to be.

    Parameters
    ----------
    model : nn.Module
        The network: in its unpruned shape with masked weights exactly zero, or a smaller one.
    masks : dict of str to Tensor
        Weight to mask; an active weight may be zero as well. Empty where channels were cut.
    split_attention : list of str
        Attention modules that were split; see `ifap.study.rivals.attention`.
    history : list of EpochRow
        Every epoch, in order; numbers repeat where a method trains repeatedly.
    events : list of Event
        From the start to the end, of masks.
    training_macs : int
        Theoretical MACs of the whole training: three forwards a sample and step, without products
        with masked weights where the method needs none.
    dense_training_macs : int
        What the same steps cost with dense kernels, which is what they took here.
    progress : Progress
        What earlier, interrupted sessions contributed.
    cut : Pruned or None
        Plan, receipts and costs of a network with fewer channels; None where weights are masked.
    """

    model: nn.Module
    masks: Masks
    split_attention: list[str]
    history: list[EpochRow]
    events: list[Event]
    training_macs: int
    dense_training_macs: int
    progress: Progress = field(default_factory=Progress)
    cut: Pruned | None = None


SparseMethod = Callable[[Context], Outcome]
"""A method that prunes in a training of its own; its `MaskOptions` say what it removes and what it starts from.

It trains and masks, or cuts. It raises a TargetError if the target cannot be met; the message gives the reachable
range. It raises a ConfigError if the options do not fit the length of the training, and a TrainingError if the loss is
not finite; the message names the step and the last good state.
"""


def options_of(context: Context, section: type[MaskOptions]) -> Any:
    """Return the options of a method, after checking that they are its own."""
    assert isinstance(context.options, section), f"{type(context.options).__name__} is not {section.__name__}"
    return context.options
