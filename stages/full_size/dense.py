"""Count the detectors, segmenters and generators of Table III at full size, unpruned and pruned.

Costs follow from shapes: the networks are built and cut without weights, which takes no memory, and the
units that go are chosen at random. Then each is built once more with random weights, for small images where it
takes any size, pruned by flow in three iterations, run forward and backward, saved and loaded.
"""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ifap
from ifap.errors import IfapError
from ifap.forward import tensors
from ifap.study.machine.determinism import configure
from ifap.study.models import MODELS
from ifap.study.models.detection import Detector
from ifap.study.paper.vocabulary import STAND_INS
from ifap.study.report import FULL_SIZE_VERSIONS
from ifap.study.report.full_size import CLOSE, SIZE_STEPS, Dense, DenseCount

SEED = 0
STEPS = 3
MIN_UNITS, MAX_LAYER_RATIO = 4, 0.95
LARGEST = 1280
DCGAN_SIZES = (8, 16, 32, 64, 128, 256)
SMALL = {"faster_rcnn_resnet50": 128, "stable_diffusion_v1_5": 16, "yolov4_shufflenet_v2": 128}
"""Sizes for the run with weights; 64 for all others."""
CHANNELS = {"stable_diffusion_v1_5": 4}
STANDS_FOR = {published: smaller for smaller, published in STAND_INS.items()}
"""What is run instead of a network that asks too much of a machine."""


def measure(networks: Iterable[Dense]) -> Iterator[DenseCount]:
    """Count networks, prune them without weights, and run them with weights."""
    yield from map(count, networks)


def count(network: Dense) -> DenseCount:
    """Count one network, prune it without weights, and run it with weights."""
    configure(SEED)
    counts, ran = counted(network), run(network)
    notes = [counts.pop("note"), ran.pop("note")]
    note, version = "; ".join(filter(None, notes)), FULL_SIZE_VERSIONS[network.KIND]
    row = DenseCount(**network.model_dump(), **counts, **ran, note=note, version=version)
    return row if row.is_reachable else row.model_copy(update={"note": "; ".join(filter(None, (_far(row), row.note)))})


def _far(row: DenseCount) -> str:
    return (
        f"no {row.sizes_tried} brings the unpruned network to within {100 * CLOSE:g} % of the printed "
        f"{row.published:g} GMACs: {row.nearest_size} px cost {row.macs_nearest / 1e9:.4g}"
    )


def counted(network: Dense) -> dict[str, Any]:
    """Return what one network costs at full size, unpruned and pruned without weights."""
    model, images = _without_weights(network.model, network.classes, network.image_size)
    base, nearest = ifap.cost(model, images), nearest_size(network)
    found: dict[str, Any] = {
        "macs_base": base.macs,
        "params_base": base.params,
        "nearest_size": nearest,
        "macs_nearest": _macs(network.model, network.classes, nearest),
        "macs_pruned": None,
        "params_pruned": None,
        "reduction": None,
        "note": "",
    }
    try:
        # Without weights there is nothing to compare; `run` proves the cut.
        after = _pruned(network, model, images, [], method="random", prove=False).after
    except IfapError as error:
        return {**found, "note": " ".join(str(error).split())}
    found |= {"macs_pruned": after.macs, "params_pruned": after.params}
    found["reduction"] = round(after.reduction(base, "macs"), 9)
    if abs(found["reduction"] - network.reduction_published) > CLOSE:
        found["note"] = f"reached {100 * found['reduction']:.1f} %, more than 1 point off"
    return found


def nearest_size(network: Dense) -> int:
    """Return the side of an image for which the unpruned network costs nearly what is printed; costs grow with it."""
    step = SIZE_STEPS.get(network.model, 32)
    sizes: Sequence[int] = DCGAN_SIZES if network.model == "dcgan" else range(step, LARGEST + 1, step)

    def giga(size: int) -> float:
        return _macs(network.model, network.classes, size) / 1e9

    above = bisect.bisect_left(sizes, network.published, key=giga)
    return min(sizes[max(0, above - 1) : above + 1], key=lambda size: abs(giga(size) - network.published))


def run(network: Dense) -> dict[str, Any]:
    """Prune one network with weights, train it for a step, save it and load it."""
    name = STANDS_FOR.get(network.model, network.model)
    size, channels = SMALL.get(network.model, 64), _channels(network.model)
    found: dict[str, Any] = {"ran": f"{name} at {size}", "ran_reduction": None, "trains": "", "reloads": "", "note": ""}
    build = partial(MODELS.get(name), num_classes=network.classes, in_channels=channels, image_size=size)
    model, images = build().eval(), torch.randn(2, channels, size, size)
    try:
        pruned = _pruned(network, model, images[:1], [images])
    except IfapError as error:
        return {**found, "note": " ".join(str(error).split())}
    del model
    found["ran_reduction"] = round(pruned.after.reduction(pruned.before, "macs"), 9)
    if abs(found["ran_reduction"] - network.reduction_published) > CLOSE:
        found["note"] = f"reached {100 * found['ran_reduction']:.1f} % with weights, more than 1 point off"
    found["reloads"] = "yes" if _reloads(pruned, images, build) else "no"
    found["trains"] = "yes" if _trains(pruned.model, images) else "no"
    return found


def _pruned(network: Dense, model: nn.Module, example: Tensor, data: list[Tensor], **options: Any) -> ifap.Pruned:
    return ifap.prune(
        model,
        example,
        data,
        target=ifap.Target(macs=network.reduction_published),
        steps=STEPS,
        seed=SEED,
        min_units=MIN_UNITS,
        max_layer_ratio=MAX_LAYER_RATIO,
        **{"method": "ifap", **options},
    )


def _reloads(pruned: ifap.Pruned, images: Tensor, build: Any) -> bool:
    """Whether the network, saved and loaded, returns the same outputs to the bit."""
    pruned.model.eval()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        ifap.save(pruned, Path(scratch) / "network")
        loaded = ifap.load(Path(scratch) / "network", build).eval()
        pairs = zip(tensors(loaded(images)), tensors(pruned.model(images)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def _trains(model: nn.Module, images: Tensor) -> bool:
    """Whether forward and backward in training give every weight a finite gradient."""
    side = images.shape[-1]
    box = torch.tensor([[side / 8, side / 8, side / 2, side / 2]])
    targets = [{"boxes": box, "labels": torch.zeros(1, dtype=torch.long)} for _ in images]
    model.train()
    outputs = model(images, targets) if isinstance(model, Detector) else model(images)
    torch.stack([value.square().mean() for value in tensors(outputs)]).sum().backward()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@cache
def _macs(model: str, classes: int, size: int) -> int:
    return ifap.cost(*_without_weights(model, classes, size)).macs


def _without_weights(model: str, classes: int, size: int) -> tuple[nn.Module, Tensor]:
    channels = _channels(model)
    with torch.device("meta"):
        network = MODELS.get(model)(num_classes=classes, in_channels=channels, image_size=size).eval()
        return network, torch.zeros(1, channels, size, size)


def _channels(model: str) -> int:
    return CHANNELS.get(model, 3)
