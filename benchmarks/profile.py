"""Where the time of scoring, of cutting and of recovery goes: processor time of each part, on one thread."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
import typer

import ifap
from benchmarks import scoring, sparse_step, surgery
from benchmarks.ratio import RESULTS, machine, read_rows
from ifap import view
from ifap.data import batches
from ifap.files import write_csv
from ifap.recovery import distillation
from ifap.recovery.train_step import Engine
from ifap.scores import flow
from ifap.study.models import MODELS
from ifap.study.report.figures.drawing import use_shipped_fonts

RUNS = 3  # after one that is not counted
STEPS = 20
REST = "the rest"
TABLE = RESULTS / "profile.csv"
FIGURE = Path("docs") / "figures" / "profile.svg"
COLUMNS = ("work", "part", "seconds", "share")
LABELLED = 0.07  # share from which a part has room for its name

Part = tuple[Any, str, str]
"""Where a function is found, the name it has there, and the part of the work that it is."""


class Watch:
    """Processor time by part; what a part spends in another one counts for that one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = [REST]
        self._since = time.process_time()

    def _lap(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, whose time counts for a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._lap()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._lap()
                self._running.pop()

        return run

    def read(self, part: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield items; what making them takes counts for a part."""
        step, end = self.timed(part, lambda: next(reading, end)), object()
        reading = iter(items)
        while (item := step()) is not end:
            yield item

    def measure(self, work: Callable[[], object], parts: Sequence[Part]) -> None:
        """Run `work` with the functions of its parts timed."""
        with ExitStack() as stack:
            for owner, name, part in parts:
                stack.enter_context(patch.object(owner, name, self._wrapped(part, getattr(owner, name))))
            self._since = time.process_time()
            work()
            self._lap()

    def _wrapped(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if function is batches:  # a generator, whose call itself does nothing
            return lambda *args, **kwargs: self.read(part, function(*args, **kwargs))
        return self.timed(part, function)


def scoring_of(name: str) -> Callable[[], Callable[[], object]]:
    """Return what prepares scoring of one batch."""
    score = scoring.scorer(*scoring.network(name))
    return lambda: score


def cutting_of(name: str) -> Callable[[], Callable[[], object]]:
    """Return what prepares a first iteration of cutting."""
    original, inputs = surgery.network(name)

    def prepare() -> Callable[[], object]:
        model = copy.deepcopy(original)
        return lambda: surgery.our_step(model, inputs)

    return prepare


def recovery() -> Callable[[], Callable[[], object]]:
    """Return what prepares an epoch of distilling a network into one of half its MACs."""
    torch.manual_seed(0)
    teacher = MODELS.get("resnet_tiny")(num_classes=10, in_channels=1, image_size=sparse_step.SIZE).eval()
    train = sparse_step.split("train", STEPS * sparse_step.BATCH)
    image = torch.zeros(1, 1, sparse_step.SIZE, sparse_step.SIZE)
    pruned = ifap.prune(teacher, image, [], target=ifap.Target(macs=0.5), steps=1, method="magnitude").model
    teach = ifap.Distillation(train, train, batch_size=sparse_step.BATCH)

    def prepare() -> Callable[[], object]:
        student = copy.deepcopy(pruned)
        return lambda: teach(student, teacher, 1)

    return prepare


SCORING: list[Part] = [
    (flow, "run_batch", "forward"),
    (flow, "unit_norms", "norms of activations"),
    (flow, "_head_norms", "norms of attention"),
    (flow, "weight_norms", "norms of weights"),
    (flow, "head_weights", "norms of weights"),
]
CUTTING: list[Part] = [
    (view, "trace_axes", "axes through the forward"),
    (surgery, "trace", "from axes to units"),
    (surgery, "lowest", "scores and ranking"),
    (surgery, "cut_units", "cutting tensors"),
    (surgery, "check", "check"),
]
RECOVERY: list[Part] = [
    (distillation, "batches", "data"),
    (Engine, "forward", "student's forward"),
    (Engine, "run", "teacher's forward"),
    (distillation.Distillation, "_batch_loss", "losses"),
    (Engine, "backward", "backward"),
    (Engine, "step", "optimiser"),
]
WORK: dict[str, tuple[Callable[[], Callable[[], Callable[[], object]]], list[Part]]] = {
    "scoring resnet50, batch 8": (lambda: scoring_of("resnet50"), SCORING),
    "scoring vit_b_16, batch 8": (lambda: scoring_of("vit_b_16"), SCORING),
    "first cut of mobilenet_v3_large": (lambda: cutting_of("mobilenet_v3_large"), CUTTING),
    f"recovery of resnet_tiny, {STEPS} steps": (recovery, RECOVERY),
}


def rows_of(work: str) -> list[dict[str, object]]:
    """Measure one kind of work: a row a part, with the mean over the runs."""
    make, parts = WORK[work]
    prepare = make()
    prepare()()
    watch = Watch()
    for _ in range(RUNS):
        watch.measure(prepare(), parts)
    total = sum(watch.seconds.values())
    names = [*dict.fromkeys(part for _, _, part in parts), REST]
    return [
        {
            "work": work,
            "part": name,
            "seconds": round(watch.seconds[name] / RUNS, 6),
            "share": round(watch.seconds[name] / total, 4),
        }
        for name in names
        if watch.seconds[name]
    ]


def draw(rows: Sequence[dict[str, Any]], place: Path) -> None:
    """Draw a bar for each kind of work, divided into its parts."""
    use_shipped_fonts()
    plt.rcParams["svg.hashsalt"] = "ifap"  # the same figure is the same file
    works = list(dict.fromkeys(row["work"] for row in rows))
    figure, axis = plt.subplots(figsize=(10, 0.8 * len(works) + 0.6), layout="constrained")
    colors = plt.get_cmap("Pastel1").colors
    for height, work in enumerate(works):
        start = 0.0
        for number, row in enumerate(each for each in rows if each["work"] == work):
            share = float(row["share"])
            axis.barh(height, share, left=start, color=colors[number], edgecolor="white")
            if share >= LABELLED:
                text = f"{row['part'].replace(' ', chr(10))}\n{share:.0%}"
                axis.text(start + share / 2, height, text, ha="center", va="center", fontsize=7)
            start += share
    totals = [sum(float(row["seconds"]) for row in rows if row["work"] == work) for work in works]
    labels = [
        f"{work.replace(', ', chr(10))}: {1000 * total:,.0f} ms" for work, total in zip(works, totals, strict=True)
    ]
    axis.set_yticks(range(len(works)), labels)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.xaxis.set_visible(False)
    axis.spines[:].set_visible(False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Write results/bench/profile.csv and docs/figures/profile.svg."""
    torch.set_num_threads(1)
    rows = [row for work in WORK for row in rows_of(work)]
    where = machine("python -m benchmarks.profile")
    write_csv(TABLE, [{**row, **where} for row in rows], (*COLUMNS, *where))
    draw(read_rows(TABLE), FIGURE)
    for row in rows:
        typer.echo(f"{row['work']}: {row['part']} {row['share']:.1%}")


if __name__ == "__main__":
    typer.run(main)
