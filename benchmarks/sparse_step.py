"""What a training step with masks costs over a dense one: masks save no time, and must not cost much."""

from __future__ import annotations

import torch

from benchmarks.ratio import Ratio, compare, report, timed
from ifap.data import Split
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.rivals import RiglOptions
from ifap.study.models import MODELS
from ifap.study.rivals.controller import MaskController
from ifap.study.rivals.density import counts, erdos_renyi_kernel, maskable
from ifap.study.rivals.ranking import random_masks
from ifap.study.rivals.rigl import RiglController
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit

BATCH = 64
STEPS = 20
SIZE = 28
DENSITY = 0.1
LIMIT = 1.3
RECIPE = TrainingOptions(
    epochs=1, batch_size=BATCH, optimizer="sgd", lr=0.01, weight_decay=0.0005, warmup_epochs=0, label_smoothing=0.0,
    augment=False,
)  # fmt: skip


def measure(name: str, every: int | None) -> Ratio:
    """Compare an epoch with masks that stay, or that RigL moves every few steps, with a dense epoch."""
    train, validation = split("train", STEPS * BATCH), split("validation", BATCH)

    def epoch(*, masked: bool) -> float:
        torch.manual_seed(0)
        model = MODELS.get("resnet_tiny")(num_classes=10, in_channels=1, image_size=SIZE)
        controller = _controller(model, every) if masked else None
        return timed(
            lambda: fit(model, train, validation, RECIPE, TASKS.get("classification"), seed=0, controller=controller)
        )

    quantity = f"{name}, resnet_tiny, {STEPS} steps of {BATCH}, {SIZE} px"
    return compare(quantity, lambda: epoch(masked=True), lambda: epoch(masked=False), limit=LIMIT)


def _controller(model: torch.nn.Module, every: int | None) -> MaskController:
    shapes = {name: weight.shape for name, weight in maskable(model).items()}
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    masks = random_masks(shapes, counts(erdos_renyi_kernel(shapes, DENSITY), sizes), seed=0)
    return MaskController(masks) if every is None else RiglController(masks, RiglOptions(update_every=every))


def split(role: str, samples: int) -> Split:
    """Return random images and classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 1, SIZE, SIZE, generator=generator)
    return Split(role, inputs, torch.randint(0, 10, (samples,), generator=generator))  # type: ignore[arg-type]


def main() -> None:
    """Print and record the ratios."""
    torch.set_num_threads(1)
    rows = [measure("fixed masks", None), measure("RigL, moved every 10 steps", 10)]
    report("sparse_step", "Training with masks against dense training (one thread)", "dense", rows)


if __name__ == "__main__":
    main()
