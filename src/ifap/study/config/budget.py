"""One rule for how long every method may train, so that no method wins by training longer.

A method that prunes the trained network has the baseline's training behind it, and is then given
recovery after every pruning iteration and fine-tuning. A method that starts from the untrained
network gets the same number of epochs in one run, by the baseline's recipe, and no fine-tuning.
Iterative magnitude pruning repeats that run once a level, which its training cost says. Movement pruning
does the same from pre-trained weights, and prunes the trained network only where there are none. A
method that is made to need no training gets none: neither recovery nor fine-tuning.
"""

from __future__ import annotations

from ifap.study.config.recipes import PruneOptions, RecoveryOptions, TrainingOptions
from ifap.study.config.rivals import MaskOptions


def starts_untrained(method: type[MaskOptions] | None, *, pretrained: bool = False) -> bool:
    """Return whether a method with such options starts from the untrained network, pre-trained or not."""
    return method is not None and (method.start == "init" or (method.pretrained_first and pretrained))


def is_finetuned(method: type[MaskOptions] | None, *, pretrained: bool = False) -> bool:
    """Return whether the network of a method with such options is trained on after pruning."""
    return method is None or (method.retrains and not starts_untrained(method, pretrained=pretrained))


def total_epochs(
    baseline: TrainingOptions, prune: PruneOptions, recovery: RecoveryOptions, finetune: TrainingOptions
) -> int:
    """Return the epochs that a pruned network has seen in all: baseline, recovery of every iteration, fine-tuning."""
    return baseline.epochs + prune.steps * recovery.epochs + finetune.epochs


def one_run(
    baseline: TrainingOptions, prune: PruneOptions, recovery: RecoveryOptions, finetune: TrainingOptions
) -> TrainingOptions:
    """Return the recipe of a method that starts from the untrained network: the baseline's, for longer."""
    return baseline.model_copy(update={"epochs": total_epochs(baseline, prune, recovery, finetune)})


def after_pruning(finetune: TrainingOptions, *, finetuned: bool) -> TrainingOptions:
    """Return the recipe of the fine-tuning; without epochs for what has used its budget or needs none."""
    return finetune if finetuned else finetune.model_copy(update={"epochs": 0})


def masked_run(
    method: type[MaskOptions],
    baseline: TrainingOptions,
    prune: PruneOptions,
    recovery: RecoveryOptions,
    finetune: TrainingOptions,
    *,
    pretrained: bool = False,
) -> TrainingOptions:
    """Return the recipe by which a method trains with masks.

    From the trained network it trains as long as recovery does, by the recipe of the fine-tuning that follows.
    """
    if starts_untrained(method, pretrained=pretrained):
        return one_run(baseline, prune, recovery, finetune)
    return finetune.model_copy(update={"epochs": prune.steps * recovery.epochs})
