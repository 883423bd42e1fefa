"""What measuring the published cells would take, before a scale that does so is written down.

Hours follow from the printed MACs (or parameters) and from `Recipe`, which is stated and not
measured. Nothing is started and no network is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ifap.study.paper.vocabulary import DATASETS, METHODS, MODELS


@dataclass(frozen=True)
class Recipe:
    """How a published cell is assumed to be run; every number is for one current data-centre GPU.

    Parameters
    ----------
    macs_per_second : float
        Multiply-accumulates of forward passes in training: 800 images a second at 4 GMACs.
    baseline_epochs, finetune_epochs : int
        Training from pretrained weights, and after pruning.
    iterations, recovery_epochs : int
        Pruning iterations as in Table IV, and epochs of recovery after each.
    distillation : float
        A recovery pass with its teacher, in training passes.
    rival_epochs : int
        Training of a cell of any other method, masks included.
    tokens : int
        Tokens of one text, each costing about one MAC a parameter.
    parameters : float
        Parameters of a network whose number is not printed; its checkpoint takes 4 bytes each.
    job_seconds : float
        Start of one job.
    samples : mapping of str to int
        Training samples by registry name.
    sample_bytes : float
        Disk of one image on average; texts count as 1 kB.
    """

    macs_per_second: float = 800.0 * 4e9
    baseline_epochs: int = 30
    finetune_epochs: int = 10
    iterations: int = 30
    recovery_epochs: int = 1
    distillation: float = 4 / 3
    rival_epochs: int = 60
    tokens: int = 128
    parameters: float = 50e6
    job_seconds: float = 30.0
    sample_bytes: float = 100e3
    samples: Mapping[str, int] = field(
        default_factory=lambda: {
            "cifar10": 50_000, "cifar100": 50_000, "fashion_mnist": 60_000, "imagenet": 1_281_167,
            "stanford_cars": 8_144, "inaturalist": 437_513, "food101": 75_750, "oxford_pet": 3_680, "fer2013": 28_709,
            "pascal_voc": 16_551, "coco2017": 118_287, "coco_stuff": 118_287, "open_images": 1_743_042,
            "objects365": 1_742_292, "cityscapes": 2_975, "ade20k": 20_210,
            "sst2": 67_349, "mrpc": 3_668, "qqp": 363_846, "rte": 2_490, "qnli": 104_743, "mnli": 392_702,
            "cola": 8_551, "stsb": 5_749, "squad": 87_599, "record": 100_730,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class PublishedCost:
    """What the cells of one published table take from pretrained weights.

    Parameters
    ----------
    cells, jobs : int
        Networks (unpruned ones included) and jobs of the workflow.
    gpu_hours : float
        Hours of one GPU.
    disk : float
        Bytes of data sets and checkpoints.
    """

    cells: int
    jobs: int
    gpu_hours: float
    disk: float


def published_costs(claims: pd.DataFrame, recipe: Recipe | None = None) -> dict[str, PublishedCost]:
    """Estimate what the cells of each published table take.

    Parameters
    ----------
    claims : DataFrame
        From `ifap.study.paper.published.load_claims`.
    recipe : Recipe, optional
        How cells are run.

    Returns
    -------
    dict
        ``table-1`` to ``table-5``, and ``all`` with every cell once.
    """
    recipe = recipe or Recipe()
    sizes = _sizes(claims, recipe)
    cells = {f"table-{number}": _cells(claims[claims.table == number]) for number in range(1, 6)}
    cells["all"] = set().union(*cells.values())
    return {name: _total(found, sizes, recipe) for name, found in cells.items()}


def published_lines(claims: pd.DataFrame) -> list[str]:
    """Lay out the estimate as text, with what it rests on."""
    recipe = Recipe()
    lines = [f"{'':<7}  cells   jobs  GPU hours  disk (GB)"]
    for name, cost in published_costs(claims, recipe).items():
        lines.append(f"{name:<7}  {cost.cells:>5}  {cost.jobs:>5}  {cost.gpu_hours:>9,.0f}  {cost.disk / 1e9:>9,.0f}")
    lines.append("Tables share cells; 'all' counts each once. One seed. Stated, not measured:")
    lines.append(
        f"a GPU trains {recipe.macs_per_second / 1e12:.1f} T multiply-accumulates of forward passes a second; "
        f"{recipe.baseline_epochs} epochs from pretrained weights, {recipe.iterations} iterations of "
        f"{recipe.recovery_epochs} epoch of recovery at {recipe.distillation:.2f} training passes, "
        f"{recipe.finetune_epochs} epochs after that; any other method {recipe.rival_epochs} epochs."
    )
    return lines


_Cell = tuple[str, str, str]  # data set, model and method by their names in the registries


def _cells(claims: pd.DataFrame) -> set[_Cell]:
    found: set[_Cell] = set()
    for row in claims[["dataset", "model", "method"]].drop_duplicates().itertuples():
        method = METHODS[row.method] if isinstance(row.method, str) and row.method else "ifap"
        dataset, model = DATASETS[str(row.dataset)].name, MODELS[str(row.model)]
        found |= {(dataset, model, method), (dataset, model, "baseline")}
    return found


def _sizes(claims: pd.DataFrame, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Return the MACs of one sample and the parameters of each model, as printed where they are."""
    sizes: dict[str, tuple[float, float]] = {}
    for row in claims[claims.quantity.isin(["gmacs_base", "params_base"])].itertuples():
        model, number = MODELS[str(row.model)], _number(row)
        if row.quantity == "gmacs_base":
            sizes[model] = (number * 1e9, recipe.parameters)
        else:
            sizes.setdefault(model, (number * 1e6 * recipe.tokens, number * 1e6))
    return sizes


def _number(row: Any) -> float:
    return float(row.number)


def _total(cells: set[_Cell], sizes: Mapping[str, tuple[float, float]], recipe: Recipe) -> PublishedCost:
    seconds = disk = 0.0
    for dataset, model, method in sorted(cells):
        macs, parameters = sizes[model]
        pass_seconds = recipe.samples[dataset] * macs / recipe.macs_per_second
        seconds += _epochs(method, recipe) * pass_seconds + _jobs(method) * recipe.job_seconds
        disk += 4 * parameters * (2 if method == "ifap" else 1)
    datasets = {dataset for dataset, _, _ in cells}
    texts = {entry.name for entry in DATASETS.values() if "GLUE" in entry.content or "SQuAD" in entry.content}
    disk += sum(recipe.samples[name] * (1e3 if name in texts else recipe.sample_bytes) for name in datasets)
    jobs = len(datasets) + sum(_jobs(method) for _, _, method in cells)
    return PublishedCost(len(cells), jobs, seconds / 3600, disk)


def _epochs(method: str, recipe: Recipe) -> float:
    if method == "baseline":
        return recipe.baseline_epochs
    if method == "ifap":
        return recipe.iterations * recipe.recovery_epochs * recipe.distillation + recipe.finetune_epochs
    return recipe.rival_epochs


def _jobs(method: str) -> int:
    return {"baseline": 2, "ifap": 3}.get(method, 2)
