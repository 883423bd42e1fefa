"""What pruning a small language model costs in accuracy: movement pruning, PDP and RFP against random choice.

A BERT of two layers learns a made-up task: two key tokens stand anywhere among others, and the class is the
sum of their numbers modulo 3, so that one key alone says nothing. Then every method prunes it, for several
seeds, at the same budget as a random choice. Synthetic: it says that the methods work, not how well they do
on text.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.ratio import RESULTS
from ifap.costs import cost
from ifap.data import Role, Split
from ifap.files import write_csv
from ifap.forward import private_copy
from ifap.results import Target
from ifap.seeds import seeded
from ifap.study.config.recipes import TrainingOptions
from ifap.study.config.rivals import MaskOptions, MvpOptions, PdpOptions, RfpOptions
from ifap.study.machine.provenance import provenance
from ifap.study.rivals import SPARSE, Context
from ifap.study.rivals.blocks import block_weights, find_groups
from ifap.study.rivals.controller import MaskController, counted
from ifap.study.rivals.density import maskable, prices
from ifap.study.rivals.ranking import random_masks
from ifap.study.rivals.rfp import Decision, fold_and_cut
from ifap.study.rivals.rfp_search import budget_of, search
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit

TASK = TASKS.get("classification")
LENGTH = 12
KEYS = 3
VOCABULARY = 24
EPOCHS = 24
MORE = 8  # of what starts from the trained network
SAMPLES = 1024
SEEDS = (0, 1, 2)
REMAINING = 0.15
CONSTRAINTS = (0.6, 0.5)
PLACE = RESULTS / "transformer_methods.csv"
COLUMNS = ("method", "budget", "seed", "top1", "top1_dense", "macs_left", "weights_left", "training_macs", "torch",
           "python", "commit", "dirty")  # fmt: skip
Row = dict[str, Any]


class Tokens:
    """Inputs of a language model held in memory: named tensors of equal length."""

    decodes = False

    def __init__(self, **named: Tensor) -> None:
        self.named = named

    def __len__(self) -> int:
        return len(self.named["input_ids"])

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.named.items()}

    def augmented(self, rows: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the inputs as they are."""
        return self[rows]


def token_split(role: Role, samples: int, seed: int) -> Split:
    """Return samples of the task: 0 pads, 1 begins, 2 to 4 and 5 to 7 are the keys, 8 ends, the rest says nothing."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (samples,), generator=draw)
    tokens = torch.randint(9, VOCABULARY, (samples, LENGTH), generator=draw)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    keys = torch.randint(0, KEYS, (samples, 2), generator=draw)
    inside = [1 + torch.randperm(int(length) - 2, generator=draw)[:2] for length in lengths]
    rows = torch.arange(samples)
    tokens[:, 0] = 1
    tokens[rows, lengths - 1] = 8
    tokens[rows[:, None], torch.stack(inside)] = keys + torch.tensor([2, 2 + KEYS])
    return Split(role, Tokens(input_ids=tokens * mask, attention_mask=mask), keys.sum(dim=1) % KEYS)


def example() -> dict[str, Tensor]:
    """Return inputs of one forward, of full length."""
    tokens = torch.ones(1, LENGTH, dtype=torch.int64)
    tokens[:, -1] = 8
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def small_bert(seed: int = 0) -> nn.Module:
    """Return an untrained BERT of two layers."""
    from transformers import BertConfig, BertForSequenceClassification

    with seeded(seed, torch.device("cpu")):
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=LENGTH,
                num_labels=KEYS,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )


def recipe(epochs: int = EPOCHS, lr: float = 1e-3) -> TrainingOptions:
    """Return how all of them are trained."""
    return TrainingOptions(
        epochs=epochs, batch_size=32, optimizer="adamw", lr=lr, weight_decay=0.01, warmup_epochs=1,
        label_smoothing=0.0, augment=False,
    )  # fmt: skip


def weights_target(model: nn.Module, remaining: float) -> Target:
    """Return the reduction of all parameters that leaves this share of the weights of the blocks."""
    found = prices(model, example(), "params", block_weights(model))
    return Target(params=(1 - remaining) * (found.whole - found.fixed) / found.whole)


def units_target(model: nn.Module, constraint: float) -> Target:
    """Return the reduction of all MACs that leaves this share of those of heads and neurons."""
    whole = budget_of(model, find_groups(model), example(), Target(macs=1e-6))
    return Target(macs=(1 - constraint) * whole.units / whole.whole)


@dataclasses.dataclass
class Bench:
    """One seed: its data and its trained network."""

    seed: int

    def __post_init__(self) -> None:
        self.train, self.validation = token_split("train", SAMPLES, 10 + self.seed), token_split("validation", 512, 9)
        self.dense = small_bert(self.seed)
        rows = self.fit(self.dense)
        self.dense.eval()
        self.top1 = rows[-1].validation_metric

    def fit(self, model: nn.Module, epochs: int = EPOCHS, controller: MaskController | None = None) -> Any:
        """Train a network on the task."""
        return fit(model, self.train, self.validation, recipe(epochs), TASK, seed=self.seed, controller=controller)

    def context(self, options: MaskOptions, target: Target, epochs: int = EPOCHS) -> Context:
        """Return what a method is given."""
        return Context(
            build=lambda: small_bert(self.seed), baseline=lambda: private_copy(self.dense), example_inputs=example(),
            train=self.train, validation=self.validation, task=TASK, options=options, target=target,
            recipe=recipe(epochs), seed=self.seed,
        )  # fmt: skip

    def measure(self, model: nn.Module) -> float:
        """Return the accuracy in percent."""
        return TASK.evaluate(model, self.validation, 128)["top1"]

    def masked(self, method: str, options: MaskOptions, epochs: int) -> Row:
        """Prune single weights by a method."""
        target = weights_target(self.dense, REMAINING)
        made = SPARSE.get(method)(self.context(options, target, epochs))
        left = sum(counted(made.masks).values()) / sum(mask.numel() for mask in made.masks.values())
        return self.row(method, f"{REMAINING:.0%} of the weights", self.measure(made.model), 1.0, left,
                        made.training_macs)  # fmt: skip

    def random_masked(self) -> Row:
        """Mask random weights of the trained network, and train it on for as long as MvP."""
        model = private_copy(self.dense)
        shapes = {name: weight.shape for name, weight in maskable(model).items()}
        kept = {name: round(REMAINING * shape.numel()) for name, shape in shapes.items()}
        controller = MaskController(random_masks(shapes, kept, self.seed), prices(model, example(), "macs", shapes))
        self.fit(model, MORE, controller)
        left = sum(kept.values()) / sum(shape.numel() for shape in shapes.values())
        spent, _ = controller.training_macs(len(self.train))
        return self.row("random", f"{REMAINING:.0%} of the weights", self.measure(model), 1.0, left, spent)

    def removed(self, constraint: float, options: RfpOptions, name: str) -> Row:
        """Remove heads and neurons by RFP."""
        target = units_target(self.dense, constraint)
        made = SPARSE.get("rfp")(self.context(options, target))
        assert made.cut is not None
        return self.row(name, f"{constraint:.0%} of the MACs", self.measure(made.model),
                        self.left(made.model), 1.0, made.training_macs)  # fmt: skip

    def random_removed(self, constraint: float, draw: int) -> Row:
        """Remove random heads and neurons for the same budget."""
        model = private_copy(self.dense)
        groups = find_groups(model)
        budget = budget_of(model, groups, example(), units_target(self.dense, constraint))
        generator = torch.Generator().manual_seed(draw)
        values = [torch.rand(group.units, generator=generator) for group in groups]
        # Worth in proportion to cost, or the search would give all to neurons, which are cheap.
        worth = [value * price for value, price in zip(values, budget.prices, strict=True)]
        kept = search(worth, budget.prices, [group.kind for group in groups], budget.allowed)
        scales = {p.reader: mask.double() for group, mask in zip(groups, kept, strict=True) for p in group.parts}
        fold_and_cut(model, groups, Decision(kept, scales, []))
        return self.row("random", f"{constraint:.0%} of the MACs", self.measure(model), self.left(model), 1.0, 0)

    def left(self, model: nn.Module) -> float:
        """Return the share of the MACs of the whole network."""
        return cost(model, example()).macs / cost(self.dense, example()).macs

    def row(self, method: str, budget: str, top1: float, macs: float, weights: float, spent: int) -> Row:
        """Return a line of the table."""
        return {
            "method": method, "budget": budget, "seed": self.seed, "top1": round(top1, 2),
            "top1_dense": round(self.top1, 2), "macs_left": round(macs, 4), "weights_left": round(weights, 4),
            "training_macs": spent,
        }  # fmt: skip


def runs(bench: Bench) -> list[Callable[[], Row]]:
    """Return what is measured of one seed."""
    found: list[Callable[[], Row]] = [
        partial(bench.masked, "mvp", MvpOptions(), MORE),
        partial(bench.masked, "pdp", PdpOptions(), EPOCHS + MORE),
        bench.random_masked,
    ]
    plain = RfpOptions(samples=SAMPLES // 2)
    searched = plain.model_copy(update={"tune": False, "rearrange": False})
    for share in CONSTRAINTS:
        found.append(partial(bench.removed, share, plain, "rfp"))
        found.append(partial(bench.removed, share, plain.model_copy(update={"tune": False}), "rfp, not tuned"))
        found.append(partial(bench.removed, share, searched, "rfp, search only"))
        found += [partial(bench.random_removed, share, 100 * bench.seed + draw) for draw in range(5)]
    return found


def main() -> None:
    """Measure every method for every seed, print the means and write the table."""
    torch.set_num_threads(1)
    where = provenance()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "commit": where["commit"],
               "dirty": where["dirty"]}  # fmt: skip
    rows: list[Row] = []
    for seed in SEEDS:
        bench = Bench(seed)
        for run in runs(bench):
            rows.append({**run(), **machine})
            print({key: rows[-1][key] for key in COLUMNS[:7]}, file=sys.stderr)
        write_csv(PLACE, rows, COLUMNS)
    Console(width=120).print(summary(rows))


def summary(rows: list[Row]) -> Table:
    """Return means over seeds and draws."""
    table = Table(title="A small BERT on a made-up task", title_justify="left")
    for heading in ("method", "budget", "runs", "top-1", "lowest", "highest", "unpruned"):
        table.add_column(heading, justify="left" if heading in {"method", "budget"} else "right")
    for method, budget in dict.fromkeys((row["method"], row["budget"]) for row in rows):
        own = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
        values = [row["top1"] for row in own]
        dense = sum(row["top1_dense"] for row in own) / len(own)
        table.add_row(method, budget, str(len(own)), f"{sum(values) / len(values):.1f}", f"{min(values):.1f}",
                      f"{max(values):.1f}", f"{dense:.1f}")  # fmt: skip
    return table


if __name__ == "__main__":
    main()
