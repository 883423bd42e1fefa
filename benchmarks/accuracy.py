"""Accuracy of this project's methods, controls and Torch-Pruning's pruners under one protocol, on Fashion-MNIST.

Three small networks (residual, depthwise, transformer) at three reductions of their MACs. Each method goes one way
from the trained network: two iterations with an epoch of distillation each to -50 %, two more to -70 %, two more to
-85 %. At each stop a copy is fine-tuned for two epochs and tested. Every method has the same networks, data, seeds and
epochs. *Before recovery* is the same way without any training, and without a look at labels but by Taylor's methods.

Choices were made on the validation split at seed 0. The test split is read here alone.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch_pruning as tp
import typer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import ifap
from benchmarks.accuracy_setting import BATCH, TASK, TEST, TRAIN, VALIDATION, Recover, Setting, top1
from benchmarks.fastnas import NAME as FASTNAS
from benchmarks.fastnas import FastNas
from benchmarks.ratio import RESULTS, machine, read_rows
from ifap.costs import count_params
from ifap.data import Split
from ifap.recovery.distillation import Distillation
from ifap.saving.legacy import refresh_widths
from ifap.seeds import seeded
from ifap.study.config.recipes import TrainingOptions
from ifap.study.data.fashion_mnist import read
from ifap.study.data.images import random_shift
from ifap.study.machine.determinism import configure
from ifap.study.machine.provenance import forget_peak_memory, peak_memory_mb
from ifap.study.methods import flows
from ifap.study.models import MODELS
from ifap.study.training.fit import fit

DATA = Path("/usr/share/datasets/fashion-mnist")
FILE = RESULTS / "accuracy.csv"
SHARES, STEPS = (0.5, 0.7, 0.85), 2
SIZES = {"resnet_tiny": 28, "mobilenet_tiny": 28, "vit_tiny": 32}
_RECIPE = partial(TrainingOptions, batch_size=BATCH, label_smoothing=0.0, augment=True)
BASELINES = {
    "resnet_tiny": _RECIPE(epochs=12, optimizer="sgd", lr=0.05, weight_decay=5e-4, warmup_epochs=1),
    "mobilenet_tiny": _RECIPE(epochs=15, optimizer="adamw", lr=0.003, weight_decay=0.01, warmup_epochs=1),
    "vit_tiny": _RECIPE(epochs=40, optimizer="adamw", lr=0.002, weight_decay=0.05, warmup_epochs=4),
}
FINETUNING = {
    "resnet_tiny": _RECIPE(epochs=2, optimizer="sgd", lr=0.02, weight_decay=5e-4, warmup_epochs=0),
    "mobilenet_tiny": _RECIPE(epochs=2, optimizer="adamw", lr=0.001, weight_decay=0.01, warmup_epochs=0),
    "vit_tiny": _RECIPE(epochs=2, optimizer="adamw", lr=0.0005, weight_decay=0.05, warmup_epochs=0),
}
OURS: dict[str, dict[str, Any]] = {
    "flow": {"method": "flow"},
    "ifap_readers, compensated": {"method": flows.flow_into_readers, "compensate": True},
    "ifap_centered, compensated": {"method": flows.centered_flow, "compensate": True},
    "ifap": {"method": "ifap"},
    "taylor": {"method": "taylor"},
    "magnitude": {"method": "magnitude"},
    "random": {"method": "random"},
    "activation": {"method": "activation"},
    "bn_scale": {"method": "bn_scale"},
    "magnitude, compensated": {"method": "magnitude", "compensate": True},
    "taylor, compensated": {"method": "taylor", "compensate": True},
}
PEERS = (
    "tp: group magnitude",
    "tp: group taylor",
    "tp: bn scale",
    "tp: group norm",
    "tp: group magnitude, isomorphic",
)
COLUMNS = (
    "network", "seed", "method", "share", "macs_left", "before_recovery", "validation", "test", "dense_test", "seconds",
    "peak_mb",
)  # fmt: skip


def splits(size: int) -> tuple[Split, Split, Split]:
    """Return train, validation and test images; the first two do not depend on the seed."""
    raw = read(DATA)
    rows = torch.randperm(len(raw["train"].images), generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    mean, deviation = 0.2860, 0.3530  # of the training images

    def part(role: Any, source: Any, chosen: Tensor) -> Split:
        images = (source.images[chosen].float() / 255 - mean) / deviation
        margin = (size - images.shape[-1]) // 2
        padded = nn.functional.pad(images, (margin,) * 4, value=-mean / deviation)
        return Split(role, padded, source.targets[chosen].long())

    return (
        part("train", raw["train"], rows[:TRAIN]),
        part("validation", raw["train"], rows[TRAIN : TRAIN + VALIDATION]),
        part("test", raw["test"], torch.arange(TEST)),
    )


def setting(name: str, seed: int) -> Setting:
    """Train a network."""
    train, validation, test = splits(SIZES[name])
    with seeded(seed, torch.device("cpu")):
        network = MODELS.get(name)(num_classes=10, in_channels=1, image_size=SIZES[name])
    fit(network, train, validation, BASELINES[name], TASK, seed=seed, augment=random_shift)
    return Setting(name, seed, network.eval(), train, validation, test)


class Ours:
    """One of this project's methods on its way to ever fewer MACs."""

    def __init__(self, case: Setting, options: dict[str, Any], recover: Recover) -> None:
        self.network, self._case, self._options, self._recover = case.network, case, options, recover

    def prune(self, macs: float) -> None:
        """Go on until at most `macs` are left."""
        batches = self._case.calibration
        present = ifap.cost(self.network, self._case.image).macs
        self.network = ifap.prune(
            self.network,
            self._case.image,
            batches,
            target=ifap.Target(macs=1 - macs / present),
            steps=STEPS,
            seed=self._case.seed,
            recover=self._recover,
            labelled=batches.labelled,
            loss=TASK.loss,
            **self._options,
        ).model


class Peer:
    """One of Torch-Pruning's pruners on the same way; its widths shrink in small steps until the MACs are met."""

    def __init__(self, case: Setting, name: str, recover: Recover) -> None:
        self.network = copy.deepcopy(case.network)
        self._case, self._name, self._recover = case, name, recover
        last = [module for module in self.network.modules() if isinstance(module, nn.Linear)][-1]
        # Told of heads, it leaves the width between blocks alone; as in its own examples, widths are rounded to them.
        heads = [module.num_heads for module in self.network.modules() if isinstance(module, nn.MultiheadAttention)]
        importance, kind = _peer(name)
        self._pruner = kind(
            self.network,
            case.image,
            importance=importance,
            global_pruning=True,
            pruning_ratio=0.95,
            max_pruning_ratio=0.95,
            iterative_steps=200,
            ignored_layers=[last],
            round_to=heads[0] if heads else None,
            isomorphic="isomorphic" in name,
        )

    def prune(self, macs: float) -> None:
        """Go on until at most `macs` are left, in as many iterations as ours."""
        present = ifap.cost(self.network, self._case.image).macs
        for step in range(1, STEPS + 1):
            goal = present * (macs / present) ** (step / STEPS)
            if "taylor" in self._name:
                self._differentiate()
            while ifap.cost(self.network, self._case.image).macs > goal:
                before = count_params(self.network)
                self._pruner.step()
                refresh_widths(self.network)
                if self._pruner.current_step >= 200 or count_params(self.network) > before:
                    raise RuntimeError(f"{self._name} does not reach {macs:.0f} MACs")
            self.network.zero_grad(set_to_none=True)
            if self._recover is not None:
                is_penalised = self._name == "tp: group norm"
                with _regularised(self._pruner, self.network) if is_penalised else nullcontext():
                    self._recover(self.network, self._case.network, step)

    def _differentiate(self) -> None:
        self.network.zero_grad(set_to_none=True)
        for images, labels in self._case.calibration.labelled:
            TASK.loss(self.network(images), labels).backward()


def _peer(name: str) -> tuple[Any, Any]:
    if "taylor" in name:
        return tp.importance.GroupTaylorImportance(), tp.pruner.BasePruner
    if "bn scale" in name:
        return tp.importance.BNScaleImportance(), tp.pruner.BNScalePruner
    if "group norm" in name:
        return tp.importance.GroupMagnitudeImportance(), tp.pruner.GroupNormPruner
    return tp.importance.GroupMagnitudeImportance(), tp.pruner.BasePruner


@contextmanager
def _regularised(pruner: Any, network: nn.Module) -> Iterator[None]:
    """Have the pruner's own penalty added to the gradients of every step inside the block."""
    pruner.update_regularizer()
    handle = register_optimizer_step_pre_hook(lambda *_: pruner.regularize(network))
    try:
        yield
    finally:
        handle.remove()


def applies(method: str, name: str) -> bool:
    """Return whether a method can cut a network: scales need batch norms, FastNAS cannot count a transformer."""
    return name != "vit_tiny" or method not in ("tp: bn scale", FASTNAS)


def way(case: Setting, method: str, recover: Recover) -> Ours | Peer | FastNas:
    """Return what takes the network to ever fewer MACs by a method."""
    if method in OURS:
        return Ours(case, OURS[method], recover)
    return FastNas(case, STEPS, recover) if method == FASTNAS else Peer(case, method, recover)


def run(case: Setting, method: str) -> list[dict[str, Any]]:
    """Take one method all the way, without and with training; one row a stop."""
    distil = Distillation(case.train, case.validation, augment=random_shift, seed=case.seed)

    def recover(network: nn.Module, _teacher: nn.Module, step: int) -> None:
        distil(network, case.network, step)

    forget_peak_memory()
    start = time.process_time()
    bare, trained = (way(case, method, each) for each in (None, recover))
    dense, full, rows = top1(case.network, case.test), ifap.cost(case.network, case.image).macs, []
    for share in SHARES:
        for network in (bare, trained):
            network.prune(full * (1 - share))
        final = copy.deepcopy(trained.network)
        fit(final, case.train, case.validation, FINETUNING[case.name], TASK, seed=case.seed, augment=random_shift)
        rows.append({
            "network": case.name, "seed": case.seed, "method": method, "share": share,
            "macs_left": round(ifap.cost(final, case.image).macs / full, 4),
            "before_recovery": round(top1(bare.network, case.test), 2),
            "validation": round(top1(final, case.validation), 2),
            "test": round(top1(final, case.test), 2),
            "dense_test": round(dense, 2),
            "seconds": round(time.process_time() - start, 1),
            "peak_mb": round(peak_memory_mb()),
        })  # fmt: skip
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Add rows to the results."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    where, is_new = machine("python -m benchmarks.accuracy"), not FILE.exists()
    with FILE.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS, *where], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


def main(
    network: Annotated[list[str], typer.Option(help="Networks to run.")] = list(SIZES),  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seeds to run.")] = [0, 1, 2],  # noqa: B006
    method: Annotated[list[str], typer.Option(help="Methods to run.")] = [*OURS, *PEERS],  # noqa: B006
) -> None:
    """Run what results/bench/accuracy.csv does not hold yet: about half a minute a network, seed and method."""
    configure(0)
    done = {(row["network"], int(row["seed"]), row["method"]) for row in read_rows(FILE)}
    for own_seed in seed:
        for name in network:
            missing = [each for each in method if applies(each, name) and (name, own_seed, each) not in done]
            if not missing:
                continue
            case = setting(name, own_seed)
            for each in missing:
                try:
                    rows = run(case, each)
                except Exception as error:  # one method that fails does not end the others
                    typer.echo(f"{name} {own_seed} {each}: {type(error).__name__}: {error}", err=True)
                    continue
                write(rows)
                typer.echo(f"{name} {own_seed} {each}: " + ", ".join(f"{row['test']:.1f}" for row in rows))


if __name__ == "__main__":
    typer.run(main)
