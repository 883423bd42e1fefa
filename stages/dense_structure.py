"""Count the detectors, segmenters and generators of Table III at full size, unpruned and pruned; no data, no training.

Costs follow from shapes: the networks are built and cut without weights, which takes no memory, and the
units that go are chosen at random. Then each is built once more with random weights, for small images where it
takes any size, pruned by flow, run forward and backward, saved and loaded. The paper does not say how large
images are: `SIZES` are usual ones, and beside them stands the size whose cost comes nearest to the printed one.
"""

from __future__ import annotations

import bisect
import logging
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import typer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import ifap
from ifap import paths
from ifap.claims.names import DATASETS, MODELS
from ifap.claims.published import load_claims
from ifap.claims.records import as_csv
from ifap.errors import IfapError
from ifap.files import atomic_write_text
from ifap.models import MODELS as BUILDERS
from ifap.models.detection import Detector
from ifap.program import run_stage
from ifap.runtime import configure
from ifap.tracing import tensors

log = logging.getLogger("stages.dense_structure")

SEED = 0
STEPS = 3
SIZES = {
    "dcgan": 32,
    "detr_vit_b_16": 512,
    "faster_rcnn_resnet50": 800,
    "fcn_vgg19_bn": 512,
    "segformer_vit_b_16": 512,
    "stable_diffusion_v1_5": 64,
    "unet_resnet50": 512,
    "vqgan": 256,
    "yolov4_shufflenet_v2": 608,
}
"""Pixels a side; of Stable Diffusion those of latents, an eighth of an image's."""
STEP = {"detr_vit_b_16": 16, "segformer_vit_b_16": 16, "stable_diffusion_v1_5": 8, "vqgan": 16}
"""What the sizes that are tried are multiples of; 32 for all others."""
LARGEST = 1280
SMALL = {"faster_rcnn_resnet50": 128, "stable_diffusion_v1_5": 16, "yolov4_shufflenet_v2": 128}
"""Sizes for the run with weights; 64 for all others."""
CHANNELS = {"stable_diffusion_v1_5": 4}
CLASSES = {
    "ade20k": 150, "cityscapes": 19, "objects365": 365, "open_images": 601, "pascal_voc": 20, "coco2017": 80,
}  # fmt: skip
"""Classes of objects; a segmenter of the last two has one more for what no object covers. Others have none to read."""
BACKGROUND = ("pascal_voc", "coco2017")
STANDS_FOR = {"stable_diffusion_v1_5": "stable_diffusion_half"}
"""What is run instead of a network that does not fit into the memory of a usual machine."""


class Wanted(BaseModel):
    """A row of Table III: printed costs are GMACs, the reduction is a share."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    model: str
    classes: int
    printed: float
    reduction_printed: float


class Row(Wanted):
    """One row of ``results/dense_structure.csv``; the fields are its columns, in order."""

    image_size: int
    macs_base: int
    params_base: int
    nearest_size: int
    macs_nearest: int
    macs_pruned: int | None = None
    params_pruned: int | None = None
    reduction: float | None = None
    ran: str = Field(default="", description="The network that was run with weights, and the size of its images.")
    ran_reduction: float | None = None
    trains: bool | None = None
    reloads: bool | None = None
    note: str = ""


def main() -> None:
    """Write results/dense_structure.csv."""
    rows: list[Row] = []
    ran: dict[tuple[str, int, float], dict[str, Any]] = {}
    for network in wanted(load_claims(paths.published_claims())):
        configure(SEED)
        row = counted(network)
        subject = network.model, network.classes, network.reduction_printed
        if subject not in ran:
            ran[subject] = run(network)
        rows.append(row.model_copy(update={**ran[subject], "note": row.note or ran[subject]["note"]}))
        atomic_write_text(paths.dense_structure_csv(), as_csv(tuple(Row.model_fields), (r.model_dump() for r in rows)))
        log.info("%s on %s: %s", row.model, row.dataset, row.reduction)
    typer.echo(f"wrote {paths.dense_structure_csv()}: {len(rows)} networks, {sum(bool(r.note) for r in rows)} noted")


def wanted(claims: pd.DataFrame) -> list[Wanted]:
    """Return the networks of Table III that Table II has not, in its order."""
    own = claims[claims["table"] == 3]
    by_cell: dict[tuple[str, str], dict[str, float]] = {}
    for claim in own.to_dict("records"):
        cell = DATASETS[claim["dataset"]].name, MODELS[claim["model"]]
        if cell[1] in SIZES and str(claim["quantity"]).startswith("gmacs"):
            by_cell.setdefault(cell, {})[claim["quantity"]] = float(claim["number"])
    return [
        Wanted(
            dataset=dataset,
            model=model,
            classes=_classes(dataset, model),
            printed=numbers["gmacs_base"],
            reduction_printed=round(-numbers["gmacs_delta"] / 100, 6),
        )
        for (dataset, model), numbers in by_cell.items()
    ]


def counted(network: Wanted) -> Row:
    """Count one network at full size, and prune it without weights."""
    size = SIZES[network.model]
    model, images = _without_weights(network, size)
    base = ifap.cost(model, images)
    nearest = nearest_size(network)
    row = Row(
        **network.model_dump(),
        image_size=size,
        macs_base=base.macs,
        params_base=base.params,
        nearest_size=nearest,
        macs_nearest=ifap.cost(*_without_weights(network, nearest)).macs,
    )
    target = ifap.Target(macs=network.reduction_printed)
    try:
        after = ifap.prune(model, images, [], target=target, steps=STEPS, seed=SEED, method="random").after
    except IfapError as error:
        return row.model_copy(update={"note": " ".join(str(error).split())})
    reduction = round(after.reduction(base, "macs"), 9)
    return row.model_copy(update={"macs_pruned": after.macs, "params_pruned": after.params, "reduction": reduction})


def nearest_size(network: Wanted) -> int:
    """Return the side of an image for which the unpruned network costs nearly what is printed; costs grow with it."""
    step = STEP.get(network.model, 32)
    sizes = [8, 16, 32, 64, 128, 256] if network.model == "dcgan" else list(range(step, LARGEST + 1, step))
    above = bisect.bisect_left(sizes, network.printed, key=lambda size: _giga(network, size))
    return min(sizes[max(0, above - 1) : above + 1], key=lambda size: abs(_giga(network, size) - network.printed))


def run(network: Wanted) -> dict[str, Any]:
    """Prune one network with weights, train it for a step, save it and load it."""
    name = STANDS_FOR.get(network.model, network.model)
    size = SMALL.get(network.model, 64)
    found: dict[str, Any] = {"ran": f"{name} at {size}", "note": ""}
    configure(SEED)
    arguments = {"num_classes": network.classes, "in_channels": _channels(network), "image_size": size}
    model = BUILDERS.get(name)(**arguments).eval()
    images = torch.randn(2, _channels(network), size, size)
    target = ifap.Target(macs=network.reduction_printed)
    try:
        pruned = ifap.prune(model, images[:1], [images], target=target, steps=STEPS, seed=SEED)
    except IfapError as error:
        return {**found, "note": " ".join(str(error).split())}
    found["ran_reduction"] = round(pruned.after.reduction(pruned.before, "macs"), 9)
    found["trains"] = _trains(pruned.model, images)
    pruned.model.eval()
    with tempfile.TemporaryDirectory() as scratch:
        ifap.save(pruned, Path(scratch) / "network")
        loaded = ifap.load(Path(scratch) / "network", lambda: BUILDERS.get(name)(**arguments))
    with torch.no_grad():
        pairs = zip(tensors(loaded(images)), tensors(pruned.model(images)), strict=True)
        found["reloads"] = all(torch.equal(one, other) for one, other in pairs)
    return found


def _trains(model: nn.Module, images: Tensor) -> bool:
    """Whether forward and backward in training give every weight a finite gradient."""
    side = images.shape[-1]
    box = torch.tensor([[side / 8, side / 8, side / 2, side / 2]])
    targets = [{"boxes": box, "labels": torch.zeros(1, dtype=torch.long)} for _ in images]
    model.train()
    outputs = model(images, targets) if isinstance(model, Detector) else model(images)
    torch.stack([value.square().mean() for value in tensors(outputs)]).sum().backward()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def _without_weights(network: Wanted, size: int) -> tuple[nn.Module, Tensor]:
    channels = _channels(network)
    with torch.device("meta"):
        model = BUILDERS.get(network.model)(num_classes=network.classes, in_channels=channels, image_size=size).eval()
        return model, torch.zeros(1, channels, size, size)


def _giga(network: Wanted, size: int) -> float:
    return ifap.cost(*_without_weights(network, size)).macs / 1e9


def _channels(network: Wanted) -> int:
    return CHANNELS.get(network.model, 3)


def _classes(dataset: str, model: str) -> int:
    classes = CLASSES.get(dataset, 1)
    is_segmenter = model in ("fcn_vgg19_bn", "unet_resnet50", "segformer_vit_b_16")
    return classes + (is_segmenter and dataset in BACKGROUND)


if __name__ == "__main__":
    run_stage(main)
