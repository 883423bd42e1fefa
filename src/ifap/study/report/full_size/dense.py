"""What the networks of Table III that Table II has not cost at full size: ``results/dense_structure.csv``.

Costs follow from shapes. `stages.dense_structure` builds each network at a usual size of images, counts it and
prunes it to the printed reduction without weights; then it runs it with random weights on small images. No data
are needed, so these numbers stand beside the published ones at every scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ifap.study import paths
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.report.full_size.classifiers import CLOSE, Key, counts_table, read_counts
from ifap.study.report.record import Blank

TABLE = 3
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
"""Pixels a side, which the paper does not say: usual ones; of Stable Diffusion those of latents."""
STEPS = {"detr_vit_b_16": 16, "segformer_vit_b_16": 16, "stable_diffusion_v1_5": 8, "vqgan": 16}
"""What the sizes that are tried are multiples of; 32 for all others. DCGAN is tried at powers of two."""
CLASSES = {
    "ade20k": 150, "cityscapes": 19, "objects365": 365, "open_images": 601, "pascal_voc": 20, "coco2017": 80,
}  # fmt: skip
"""Classes of objects; a segmenter of the last two has one more for what no object covers. Others have none to read."""
BACKGROUND = ("pascal_voc", "coco2017")
SEGMENTERS = ("fcn_vgg19_bn", "unet_resnet50", "segformer_vit_b_16")


class WantedDense(BaseModel):
    """A network to count: a row of Table III; `published` are the printed GMACs, the reduction is a share."""

    model_config = ConfigDict(frozen=True)

    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    classes: int = Field(gt=0)
    image_size: int = Field(gt=0)
    published: float = Field(gt=0)
    reduction_published: float = Field(gt=0, lt=1)


class DenseStructure(WantedDense):
    """One row of ``results/dense_structure.csv``; the fields are its columns, in order.

    `nearest_size` is the size of an image, of those in steps that `sizes_tried` names, for which the
    unpruned network costs most nearly what is printed, and `macs_nearest` what it costs then. `ran` names
    the network that was run with weights and the size of its images: pruned in three iterations
    (`ran_reduction`), trained for a step (`trains`), saved, and loaded with the same outputs to the bit
    (`reloads`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    macs_base: int = Field(gt=0)
    params_base: int = Field(gt=0)
    nearest_size: int = Field(gt=0)
    macs_nearest: int = Field(gt=0)
    macs_pruned: Blank[int]
    params_pruned: Blank[int]
    reduction: Blank[float]
    ran: str
    ran_reduction: Blank[float]
    trains: Literal["yes", "no", ""]
    reloads: Literal["yes", "no", ""]
    note: str
    version: int

    @property
    def sizes_tried(self) -> str:
        """The sizes that were tried, in words."""
        return "power of two" if self.model == "dcgan" else f"multiple of {STEPS.get(self.model, 32)} px"

    @property
    def is_reachable(self) -> bool:
        """Whether one of these sizes brings the unpruned network to within 1 % of the printed cost."""
        return abs(self.macs_nearest / 1e9 - self.published) <= CLOSE * self.published

    @model_validator(mode="after")
    def _check_pruned(self) -> DenseStructure:
        pruned = (self.macs_pruned, self.params_pruned, self.reduction)
        if None in pruned:
            if any(value is not None for value in pruned) or not self.note:
                raise ValueError("column note: says why a network was not pruned, then all its numbers are empty")
        elif abs(1 - self.macs_pruned / self.macs_base - self.reduction) > 1e-6:  # type: ignore[operator]
            raise ValueError("column reduction: is not what macs_base and macs_pruned give")
        return self


def wanted_dense(claims: pd.DataFrame) -> list[WantedDense]:
    """Return the networks of Table III that Table II has not, in its order."""
    printed: dict[Key, dict[str, float]] = {}
    for claim in claims[claims["table"] == TABLE].to_dict("records"):
        key = DATASETS[claim["dataset"]].name, MODELS[claim["model"]]
        if key[1] in SIZES and str(claim["quantity"]).startswith("gmacs"):
            printed.setdefault(key, {})[claim["quantity"]] = float(claim["number"])
    return [
        WantedDense(
            dataset=dataset,
            model=model,
            classes=_classes(dataset, model),
            image_size=SIZES[model],
            published=numbers["gmacs_base"],
            reduction_published=round(-numbers["gmacs_delta"] / 100, 6),
        )
        for (dataset, model), numbers in printed.items()
    ]


def _classes(dataset: str, model: str) -> int:
    return CLASSES.get(dataset, 1) + (model in SEGMENTERS and dataset in BACKGROUND)


def load_dense_structure(*, root: Path = Path()) -> dict[Key, tuple[int, DenseStructure]]:
    """Read ``results/dense_structure.csv``; nothing if there is none.

    Parameters
    ----------
    root : Path
        The project's root.

    Returns
    -------
    dict of (str, str) to (int, DenseStructure)
        Data set and model to the line in the file, from 1, and its content.

    Raises
    ------
    ResultsError
        One line that names the file, row and column of the first problem.
    """
    return read_counts(paths.dense_structure_csv(), DenseStructure, root)


def dense_structure_table(rows: Iterable[DenseStructure]) -> str:
    """Lay out rows as CSV text."""
    return counts_table(DenseStructure, rows)


def counted_dense(claim: Mapping[Any, Any], row: DenseStructure) -> float | None:
    """Return what a network's count says about a claim of Table III, in the claim's unit; None where nothing."""
    quantity = str(claim["quantity"])
    if claim["table"] != TABLE:
        return None
    if quantity == "gmacs_base":
        return row.macs_base / 1e9
    if row.macs_pruned is None or row.reduction is None:
        return None
    return {"gmacs_pruned": row.macs_pruned / 1e9, "gmacs_delta": -100 * row.reduction}.get(quantity)


def about_dense(claim: Mapping[Any, Any], row: DenseStructure) -> str:
    """Say what was counted for a claim of Table III, and which size would bring it nearer to the printed cost."""
    text = f"full-size network at {row.image_size} px, a usual size as the paper says none"
    if claim["quantity"] == "gmacs_delta":
        return f"{text}, pruned to this very reduction: it can be reached, at whatever accuracy"
    if claim["quantity"] == "gmacs_pruned":
        return f"{text}, pruned to the printed reduction"
    nearest = f"{row.nearest_size} px cost {row.macs_nearest / 1e9:.4g}"
    if row.is_reachable:
        return f"{text}; {nearest}, which is within 1 % of what is printed"
    return f"{text}; no {row.sizes_tried} comes within 1 % of what is printed: {nearest}"
