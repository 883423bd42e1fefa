"""What the networks of the paper cost at full size, unpruned and pruned: ``results/full_size.csv``.

Multiply-accumulates and parameters do not depend on training. `stages.full_size` builds each network with random
weights, or with none, prunes it to the printed cost and counts; no data are needed, so these numbers stand beside
the published ones at every scale. There are three kinds of networks: the classifiers of Table II, the language
models of Table V, and the detectors, segmenters and generators of Table III.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ifap.errors import ResultsError, nearest
from ifap.study import paths
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.report.csv_files import as_csv, check_header, read_lines
from ifap.study.report.record import Blank, first_problem

CLOSE = 0.01
"""How far the reached reduction may be from the printed one, as a share, before the row says so."""
IMAGE_SIZES = {"inception_v3": 299, "efficientnet_b4": 380, "efficientnet_v2_s": 384}
USUAL_SIZE = 224
DENSE_SIZES = {
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
SIZE_STEPS = {"detr_vit_b_16": 16, "segformer_vit_b_16": 16, "stable_diffusion_v1_5": 8, "vqgan": 16}
"""What the sizes that are tried are multiples of; 32 for all others. DCGAN is tried at powers of two."""
DENSE_CLASSES = {
    "ade20k": 150, "cityscapes": 19, "objects365": 365, "open_images": 601, "pascal_voc": 20, "coco2017": 80,
}  # fmt: skip
"""Classes of objects; a segmenter of the last two has one more for what no object covers. Others have none to read."""
BACKGROUND = ("pascal_voc", "coco2017")
SEGMENTERS = ("fcn_vgg19_bn", "unet_resnet50", "segformer_vit_b_16")
HEADS: dict[str, tuple[Literal["classification", "span"], int]] = {
    "mnli": ("classification", 3),
    "record": ("span", 2),
    "squad": ("span", 2),
    "stsb": ("classification", 1),
}
"""What the network of a data set ends in, and its outputs; two classes for all others."""
USUAL_HEAD: tuple[Literal["classification", "span"], int] = ("classification", 2)
PARTS: tuple[Literal["heads and units"], Literal["width too"]] = ("heads and units", "width too")

Key = tuple[str, str]


class Network(BaseModel):
    """A network to count: a row of a table of the paper. `classes` are the outputs of its head."""

    model_config = ConfigDict(frozen=True)
    KIND: ClassVar[str]

    dataset: str = Field(min_length=1)
    model: str = Field(min_length=1)
    classes: int = Field(gt=0)

    @property
    def subject(self) -> tuple[Any, ...]:
        """What decides the numbers: two networks with the same one are measured once."""
        return self.dataset, self.model


class Count(Network, ABC):
    """One row of the file. What could not be pruned has no numbers of a pruned network and a `note`.

    A subclass is a kind of networks; its fields, but for those of the kind, are columns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    TABLE: ClassVar[int]
    MISSED: ClassVar[str] = "reduction"  # what a network could not be pruned to
    CUT: ClassVar[frozenset[str]] = frozenset({"gmacs_pruned", "gmacs_delta"})  # what is said of pruned networks
    ASKED: ClassVar[frozenset[str]] = frozenset({"gmacs_delta"})  # what holds by construction

    macs_base: int = Field(gt=0)
    params_base: int = Field(gt=0)
    macs_pruned: Blank[int]
    params_pruned: Blank[int]
    note: str
    version: int

    @abstractmethod
    def measured(self, claim: Mapping[Any, Any]) -> float | None:
        """Return what the count says about a claim, in the claim's unit; None where it says nothing."""

    @abstractmethod
    def about(self, quantity: str) -> str:
        """Say what was counted for a claim's quantity."""

    def refusal(self, claim: Mapping[Any, Any]) -> str | None:
        """Say that the network could not be pruned to what a claim prints; None where the claim asks no such thing."""
        if claim["table"] != self.TABLE or claim["quantity"] not in self.CUT:
            return None
        size = getattr(self, "image_size", None)
        at = f" at {size} px" if size else ""
        return f"the full-size network{at} could not be pruned to the printed {self.MISSED}; {self.note}"

    @model_validator(mode="after")
    def _check_pruned(self) -> Count:
        column, value, exact, tolerance = self._reached()
        pruned = (self.macs_pruned, self.params_pruned, value)
        if value is None or None in pruned:
            if any(each is not None for each in pruned) or not self.note:
                raise ValueError("column note: says why a network was not pruned, then all its numbers are empty")
        elif abs(exact - value) > tolerance:
            raise ValueError(f"column {column}: is not what the counts give")
        return self

    @abstractmethod
    def _reached(self) -> tuple[str, float | None, float, float]:
        """Return the column that repeats the counts, its value, the exact one and how far off it may be."""


class ToReduction(Network):
    """A network that is pruned to a printed reduction of its multiply-accumulates: 0.65 leaves 35 %."""

    image_size: int = Field(gt=0)
    reduction_published: float = Field(gt=0, lt=1)


class Classifier(ToReduction):
    """A network to count: a row of Table II."""

    KIND: ClassVar[str] = "classifier"

    @property
    def subject(self) -> tuple[Any, ...]:
        """Data sets with as many classes share a network."""
        return self.model, self.classes, self.image_size, self.reduction_published


class ReductionCount(ToReduction, Count):
    """The count of a network that was pruned to a reduction."""

    reduction: Blank[float]

    def _reached(self) -> tuple[str, float | None, float, float]:
        return "reduction", self.reduction, 1 - (self.macs_pruned or 0) / self.macs_base, 1e-6

    def _cut(self, quantity: str) -> float | None:
        if self.macs_pruned is None or self.reduction is None:
            return None
        return {"gmacs_pruned": self.macs_pruned / 1e9, "gmacs_delta": -100 * self.reduction}.get(quantity)


class ClassifierCount(Classifier, ReductionCount):
    """The count of a row of Table II."""

    TABLE: ClassVar[int] = 2

    def measured(self, claim: Mapping[Any, Any]) -> float | None:
        """See `Count.measured`.

        Table III prints some networks of Table II again: only its unpruned ones count here, since its
        reductions are not always the same. Of Table IV it is the first step, the unpruned network.
        """
        table, quantity = claim["table"], str(claim["quantity"])
        macs, params = self.macs_base / 1e9, self.params_base / 1e6
        if table == 4:
            return {"gmacs": macs, "params": params}.get(quantity) if claim["step"] == 1 else None
        if table in (2, 3) and quantity == "gmacs_base":
            return macs
        return self._cut(quantity) if table == 2 else None

    def about(self, quantity: str) -> str:
        """See `Count.about`."""
        text = f"full-size network at {self.image_size} px, no training needed"
        if quantity == "gmacs_pruned":
            text += ", pruned to the printed reduction"
        if quantity == "gmacs_delta":
            text += ", pruned to this very reduction, 1x1 convolutions included: "
            text += "it can be reached, at whatever accuracy"
        return text


class Dense(ToReduction):
    """A network to count: a row of Table III that Table II has not; `published` are the printed GMACs."""

    KIND: ClassVar[str] = "dense"
    published: float = Field(gt=0)


class DenseCount(Dense, ReductionCount):
    """The count of a row of Table III.

    `nearest_size` is the size of an image, of those in steps that `sizes_tried` names, for which the
    unpruned network costs most nearly what is printed, and `macs_nearest` what it costs then. `ran` names
    the network that was run with weights and the size of its images: pruned in three iterations
    (`ran_reduction`), trained for a step (`trains`), saved, and loaded with the same outputs to the bit
    (`reloads`).
    """

    TABLE: ClassVar[int] = 3

    nearest_size: int = Field(gt=0)
    macs_nearest: int = Field(gt=0)
    ran: str
    ran_reduction: Blank[float]
    trains: Literal["yes", "no", ""]
    reloads: Literal["yes", "no", ""]

    @property
    def sizes_tried(self) -> str:
        """The sizes that were tried, in words."""
        return "power of two" if self.model == "dcgan" else f"multiple of {SIZE_STEPS.get(self.model, 32)} px"

    @property
    def is_reachable(self) -> bool:
        """Whether one of these sizes brings the unpruned network to within 1 % of the printed cost."""
        return abs(self.macs_nearest / 1e9 - self.published) <= CLOSE * self.published

    def measured(self, claim: Mapping[Any, Any]) -> float | None:
        """See `Count.measured`."""
        if claim["table"] != self.TABLE:
            return None
        return self.macs_base / 1e9 if claim["quantity"] == "gmacs_base" else self._cut(str(claim["quantity"]))

    def about(self, quantity: str) -> str:
        """Say what was counted, and which size would bring the network nearer to the printed cost."""
        text = f"full-size network at {self.image_size} px, a usual size as the paper says none"
        if quantity == "gmacs_delta":
            return f"{text}, pruned to this very reduction: it can be reached, at whatever accuracy"
        if quantity == "gmacs_pruned":
            return f"{text}, pruned to the printed reduction"
        nearest = f"{self.nearest_size} px cost {self.macs_nearest / 1e9:.4g}"
        if self.is_reachable:
            return f"{text}; {nearest}, which is within 1 % of what is printed"
        return f"{text}; no {self.sizes_tried} comes within 1 % of what is printed: {nearest}"


class Language(Network):
    """A network to prune: a row of Table V; `published` is in millions of parameters."""

    KIND: ClassVar[str] = "language"
    head: Literal["classification", "span"]
    published: float = Field(gt=0)


class LanguageCount(Language, Count):
    """The count of a row of Table V.

    Parameters are counted one by one, but for `published`. `least` is what heads and feed-forward units leave at
    least; where it is more than `published`, the width of the network was cut too, and the `note` says by how much.
    `distance` is that of `params_pruned` from the published number, in percent of it. The pruned network was
    trained for a step (`trains`), saved, and loaded with the same outputs to the bit (`reloads`).
    """

    TABLE: ClassVar[int] = 5
    MISSED: ClassVar[str] = "size"
    CUT: ClassVar[frozenset[str]] = frozenset({"params_pruned", "params_delta"})
    ASKED: ClassVar[frozenset[str]] = CUT
    CLOSE: ClassVar[float] = 1.0
    """How far the reached number of parameters may be from the printed one, in percent."""

    least: int = Field(gt=0)
    parts: Literal["heads and units", "width too"]
    distance: Blank[float]
    trains: Literal["yes", "no", ""]
    reloads: Literal["yes", "no", ""]

    def measured(self, claim: Mapping[Any, Any]) -> float | None:
        """See `Count.measured`."""
        quantity = str(claim["quantity"])
        if claim["table"] != self.TABLE:
            return None
        if quantity == "params_base":
            return self.params_base / 1e6
        if self.params_pruned is None:
            return None
        delta = 100 * (self.params_pruned / self.params_base - 1)
        return {"params_pruned": self.params_pruned / 1e6, "params_delta": delta}.get(quantity)

    def about(self, quantity: str) -> str:
        """Say what was counted, and whether heads and units alone would have done."""
        text = "full-size network, no training needed"
        if quantity == "params_base":
            return text
        text += ", pruned to the printed number of parameters: it can be reached, at whatever accuracy"
        return f"{text} ({self.note})" if self.note else text

    def _reached(self) -> tuple[str, float | None, float, float]:
        return "distance", self.distance, distance(self.params_pruned or 0, self.published), 1e-3


KINDS: dict[str, type[Count]] = {each.KIND: each for each in (ClassifierCount, LanguageCount, DenseCount)}
COLUMNS = (
    *("kind", "dataset", "model", "head", "classes", "image_size", "published", "reduction_published"),
    *("macs_base", "params_base", "least", "parts", "nearest_size", "macs_nearest", "macs_pruned", "params_pruned"),
    *("reduction", "distance", "ran", "ran_reduction", "trains", "reloads", "note", "version"),
)


def distance(params: int, published: float) -> float:
    """Return how far a number of parameters is from the published millions, in percent of these."""
    return 100 * (params / (published * 1e6) - 1)


def classifiers(claims: pd.DataFrame) -> list[Classifier]:
    """Return the networks of Table II, in its order."""
    from ifap.study.data import DATASETS as SPECS  # loads torch, which reading the file does not need

    own = claims[(claims["table"] == ClassifierCount.TABLE) & (claims["quantity"] == "gmacs_delta")]
    return [
        Classifier(
            dataset=dataset,
            model=model,
            classes=SPECS.get(dataset).classes,
            image_size=IMAGE_SIZES.get(model, USUAL_SIZE),
            reduction_published=round(-number / 100, 6),
        )
        for dataset, model, number in _named(own)
    ]


def language_models(claims: pd.DataFrame) -> list[Language]:
    """Return the networks of Table V, in its order."""
    own = claims[(claims["table"] == LanguageCount.TABLE) & (claims["quantity"] == "params_pruned")]
    found = []
    for dataset, model, number in _named(own):
        head, classes = HEADS.get(dataset, USUAL_HEAD)
        found.append(Language(dataset=dataset, model=model, classes=classes, head=head, published=number))
    return found


def dense_networks(claims: pd.DataFrame) -> list[Dense]:
    """Return the networks of Table III that Table II has not, in its order."""
    own = claims[claims["table"] == DenseCount.TABLE]
    bases, deltas = (
        {(dataset, model): number for dataset, model, number in _named(own[own["quantity"] == name])}
        for name in ("gmacs_base", "gmacs_delta")
    )
    return [
        Dense(
            dataset=dataset,
            model=model,
            classes=DENSE_CLASSES.get(dataset, 1) + (model in SEGMENTERS and dataset in BACKGROUND),
            image_size=DENSE_SIZES[model],
            published=published,
            reduction_published=round(-deltas[dataset, model] / 100, 6),
        )
        for (dataset, model), published in bases.items()
        if model in DENSE_SIZES
    ]


def _named(claims: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return data set and model, by this project's names, and the printed number of each claim."""
    return [
        (DATASETS[claim["dataset"]].name, MODELS[claim["model"]], float(claim["number"]))
        for claim in claims.to_dict("records")
    ]


def kind_of(table: int, model: str) -> str:
    """Return the kind of a network that a table of the paper prints, by the model's name in this project."""
    if table == LanguageCount.TABLE:
        return Language.KIND
    return (Dense if model in DENSE_SIZES else Classifier).KIND


def load_counts(*, root: Path = Path()) -> dict[Key, tuple[int, Count]]:
    """Read ``results/full_size.csv``; nothing if there is none.

    Returns for each data set and model the line in the file, counted from 1, and its content. Raises a ResultsError
    that names file, row and column of the first problem.
    """
    shown = paths.full_size_csv()
    if not (root / shown).exists():
        return {}
    lines = read_lines(root / shown, shown)
    check_header(lines[0], COLUMNS, shown)
    rows: dict[Key, tuple[int, Count]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(COLUMNS):
            raise ResultsError(f"malformed {shown}: row {number}: {len(line)} values for {len(COLUMNS)} columns")
        try:
            row = _row(dict(zip(COLUMNS, line, strict=True)))
        except ValidationError as error:
            raise ResultsError(f"malformed {shown}: row {number}, {first_problem(error)}") from None
        except ValueError as error:
            raise ResultsError(f"malformed {shown}: row {number}, {error}") from None
        key = row.dataset, row.model
        if key in rows:
            raise ResultsError(f"malformed {shown}: row {number}, column model: {'/'.join(key)} is doubled")
        rows[key] = number, row
    return rows


def _row(values: dict[str, str]) -> Count:
    kind = values.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"column kind: unknown kind '{kind}': {nearest(kind, KINDS)}")
    own = KINDS[kind].model_fields
    return KINDS[kind].model_validate({name: value for name, value in values.items() if value or name in own})


def counts_table(rows: Iterable[Count]) -> str:
    """Lay out rows as CSV text."""
    return as_csv(COLUMNS, ({"kind": row.KIND, **row.model_dump()} for row in rows))
