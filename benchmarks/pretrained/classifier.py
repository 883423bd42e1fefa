"""EfficientNet-Lite0 with the weights of ImageNet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrained import images, splits
from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.case import Case, Measures
from benchmarks.pretrained.measures import agreement, divergence, outputs_of
from benchmarks.pretrained.splits import Images, Split


def lite0(folder: Path) -> nn.Module:
    """Return the trained network."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(path_of("efficientnet_lite0", "weights.pth", folder), weights_only=True)
    # The keys are others, their order is the same.
    own = network.state_dict()
    network.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    module: nn.Module = network.eval().to(memory_format=torch.channels_last)
    return module


def enlarged(folder: Path, split: Split) -> list[Case]:
    """Return the case of 512 images for calibration."""
    which = splits.enlarged(split)
    return [_case(folder, which, split, range(splits.REAL_IMAGES))]


def folds(folder: Path, split: Split) -> list[Case]:
    """Return a case for each fold of the real images; what is measured on is in no calibration of the same case."""
    return [_case(folder, which, split, which.tested_real) for which in splits.folds(split)]


def _case(folder: Path, which: Images, split: Split, real: range | list[int]) -> Case:
    network = lite0(folder)
    calibration = images.calibration(folder, which)
    tested = images.batches(images.tested(folder, which, split))
    known = images.labels()
    labelled = torch.stack([images.real(folder, number) for number in real]) if len(real) else None
    classes = torch.tensor([known[number] for number in real])
    wanted = torch.cat(outputs_of(network, tested))

    def measure(model: nn.Module) -> Measures:
        found = torch.cat(outputs_of(model, tested))
        measured = {"kl": float(divergence(wanted, found).mean()), "agreement": float(agreement(wanted, found).mean())}
        if labelled is not None:
            measured["metric"] = float((outputs_of(model, [labelled])[0].argmax(dim=1) == classes).float().mean())
        return measured

    def targets(batch: Tensor) -> Tensor:
        return outputs_of(network, [batch])[0].argmax(dim=1)

    return Case(network, calibration[0][:1], calibration, targets, _loss, measure)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)
