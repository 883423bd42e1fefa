"""One stage of one cell: its options, data, networks and files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ifap import plan
from ifap.data import Inputs, Role, Split
from ifap.errors import ConfigError, ResultsError, nearest
from ifap.files import atomic_write_text, sha256_file, write_csv
from ifap.recovery.train_step import processes
from ifap.saving import store
from ifap.study import paths
from ifap.study.config.data import ModelOptions, TextOptions
from ifap.study.data import DATASETS, Dataset
from ifap.study.data.base import read_manifest
from ifap.study.grid import Grid
from ifap.study.machine.determinism import configure, device, rank
from ifap.study.machine.lock import LOCK_FILE, locked
from ifap.study.machine.provenance import peak_memory_mb
from ifap.study.models import MODELS, builder_from_id, builder_id
from ifap.study.models.base import load_pretrained
from ifap.study.models.text import load_pretrained_text
from ifap.study.models.weights import obtain_weights
from ifap.study.report.record import EPOCH_FIELDS
from ifap.study.rounding import rounded
from ifap.study.tasks import TASKS, Task
from ifap.study.tasks.generation import by_imagenet_features
from ifap.study.training.controller import Controller
from ifap.study.training.fit import fit, read_progress
from ifap.study.training.progress import tensorboard
from stages.options import (
    PARAMS,
    DatasetOption,
    MethodOption,
    ModelOption,
    ParamsOption,
    ScaleOption,
    SeedOption,
    TaskOption,
    open_grid,
)

log = logging.getLogger(__name__)

STEP_VERSION = 2
"""Version 1 held what a stage cost beside its parameters: see `stages.migrate_records`."""
HEADS = {
    "text_classification": "classification",
    "text_regression": "classification",
    "question_answering": "span",
    "cloze": "span",
}
"""What a network for text ends in, by the task."""
SHARED_STAGES = ("baseline", "finetune")
"""Those that several processes can do together."""


@dataclass
class Timing:
    """What a stage cost; `extra_seconds` and `resume_count` come from interrupted sessions, `more` from the stage."""

    extra_seconds: float = 0.0
    resume_count: int = 0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One stage of one cell: its options, data and files.

    Parameters
    ----------
    grid : Grid
        The scale.
    cell : Cell
        The experiment.
    stage : {'baseline', 'prune', 'finetune', 'evaluate'}
        What is done to it.
    """

    grid: Grid
    cell: paths.Cell
    stage: str
    spec: Dataset = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", DATASETS.get(self.cell.dataset))

    @property
    def model_options(self) -> ModelOptions | TextOptions:
        """What the network is given and starts from."""
        return self.grid.model(self.cell)

    @property
    def task(self) -> Task:
        """Loss and metrics, of which the one that the data set is known by is watched."""
        if not self.spec.is_made_for(self.cell.task):
            raise ConfigError(f"data set '{self.cell.dataset}' is not made for task '{self.cell.task}'")
        options = self.model_options
        if isinstance(options, ModelOptions) and options.features:
            return by_imagenet_features(Path(options.features), download=options.download)
        return TASKS.get(self.cell.task).watching(self.spec.watched(self.cell.task))

    @property
    def config(self) -> dict[str, Any]:
        """Everything that this stage's result depends on."""
        return self.grid.config(self.cell, self.stage)

    @property
    def guard(self) -> str:
        """A hash of configuration and data: a resume state made under another one is discarded."""
        text = json.dumps([self.config, self.manifest()["checksum"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def state(self) -> Path:
        """Folder of the resume state."""
        return paths.state_dir(self.grid.scale, self.cell, self.stage)

    def checkpoint(self, name: str) -> Path:
        """Return the folder of a saved network of this cell: ``pruned`` or ``final``."""
        return paths.checkpoint_dir(self.grid.scale, self.cell, name)

    def check_stage(self, stage: str) -> None:
        """Refuse to build on an earlier stage that has not run, or ran under other parameters."""
        path = paths.step_file(self.grid.scale, self.cell, stage)
        try:
            config = json.loads(path.read_text()).get("config")
        except FileNotFoundError:
            raise ResultsError(f"{path} not found: run stage {stage} of {self.cell} first") from None
        except (ValueError, AttributeError):
            raise ResultsError(f"{path} is not valid JSON: run stage {stage} of {self.cell} again") from None
        if config != self.grid.config(self.cell, stage):
            raise ResultsError(f"stage {stage} of {self.cell} ran with other parameters: run it again")

    def manifest(self) -> dict[str, Any]:
        """Return the data set's manifest, after checking that it fits this scale's options."""
        manifest = read_manifest(paths.dataset_dir(self.grid.scale, self.cell.dataset))
        if manifest.get("config") != self.grid.fetch_config(self.cell.dataset):
            raise ResultsError(
                f"data set '{self.cell.dataset}' was prepared with other options: run the fetch stage again"
            )
        return manifest

    def split(self, role: Role) -> Split:
        """Load one split, after checking the file against the manifest."""
        path = paths.split_file(self.grid.scale, self.cell.dataset, role)
        wanted = self.manifest()["splits"][role]["sha256"]
        if path.exists() and sha256_file(path) != wanted:
            raise ResultsError(f"{path} differs from its manifest: run the fetch stage again")
        return self.spec.load_for(self.cell, self.model_options, path, role)

    def discard_state(self) -> None:
        """Remove the resume state of this stage; the lock stays, because it may be held."""
        for item in self.state.iterdir() if self.state.exists() else ():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != LOCK_FILE:
                item.unlink()

    def example_inputs(self, batch: int = 1) -> Inputs:
        """Return made-up inputs of the network's input shape: zeros, or the same word throughout."""
        size = self.builder()[1]
        if isinstance(self.model_options, TextOptions):
            reader = self.manifest()["readers"][self.cell.model]
            word = torch.ones(batch, reader["max_length"], dtype=torch.int64)
            return {name: torch.zeros_like(word) if name == "token_type_ids" else word for name in reader["inputs"]}
        return torch.zeros(batch, size["in_channels"], size["image_size"], size["image_size"])

    def build(self) -> nn.Module:
        """Build the cell's unpruned network from torch's global generator, or from pretrained weights."""
        network, options = MODELS.get(self.cell.model)(**self.builder()[1]), self.model_options
        if options.pretrained:
            if options.download:
                obtain_weights(self.cell.model, Path(options.pretrained))
            load = load_pretrained_text if isinstance(options, TextOptions) else load_pretrained
            load(network, Path(options.pretrained))
        return network

    def load(self, name: str) -> tuple[plan.Plan, nn.Module]:
        """Load a saved network of this cell, ``pruned`` or ``final``, with its plan."""
        folder = self.checkpoint(name)
        record = plan.read_plan(folder)
        return record, store.load(folder, lambda: builder_from_id(record.builder.id, record.builder.args))

    def builder(self) -> tuple[str, dict[str, Any]]:
        """Return the identifier and arguments under which a plan finds the unpruned network."""
        manifest, options = self.manifest(), self.model_options
        if isinstance(options, TextOptions):
            return builder_id(self.cell.model), {
                "head": HEADS[self.cell.task],
                "num_labels": manifest["classes"],
                "vocab_size": manifest["readers"][self.cell.model]["vocab_size"],
                "max_length": options.max_length,
                **({"layers": options.layers} if options.layers else {}),
            }
        classes = manifest["classes"]
        return builder_id(self.cell.model), {
            "num_classes": classes[self.cell.task] if isinstance(classes, dict) else classes,
            "in_channels": manifest["channels"],
            "image_size": options.image_size,
        }

    def train(self, network: nn.Module, timing: Timing, controller: Controller | None = None) -> nn.Module:
        """Train a network by the cell's recipe and write its history; returns it on the CPU, in evaluation mode."""
        where = device()
        with tensorboard(paths.tensorboard_dir(self.grid.scale, self.cell, self.stage)) as board:
            rows = fit(
                network.to(where),
                self.split("train"),
                self.split("validation"),
                self.grid.training(self.cell),
                self.task,
                seed=self.cell.seed,
                augment=True,
                state=self.state if self.grid.options.resume else None,
                guard=self.guard,
                controller=controller,
                on_epoch=board,
            )
        if rank():
            return network
        progress = read_progress(self.state)
        timing.resume_count, timing.extra_seconds = progress.resumes, progress.earlier_seconds
        epochs = (rounded(dataclasses.asdict(row)) for row in rows)
        write_csv(paths.history_file(self.grid.scale, self.cell), epochs, EPOCH_FIELDS)
        if rows:
            log.info("%s %s: validation %s %.2f", self.stage, self.cell, self.task.primary, rows[-1].validation_metric)
        return network.cpu().eval()

    @contextlib.contextmanager
    def run(self) -> Iterator[Timing]:
        """Seed the process, hold the cell's lock; note after success what the stage did and cost."""
        start, timing = time.monotonic(), Timing()
        if processes() > 1 and self.stage not in SHARED_STAGES:
            raise ConfigError(f"stage {self.stage} runs in one process: leave out `accelerate launch` or `torchrun`")
        configure(self.cell.seed)
        if rank():
            # The first process holds the lock and writes for all.
            yield timing
            return
        with locked(self.state, f"{self.stage} of {self.cell}"):
            yield timing
            seconds = time.monotonic() - start + timing.extra_seconds
            cost = {
                **timing.more,
                "wall_seconds": round(seconds, 3),
                "peak_memory_mb": peak_memory_mb(),
                "resume_count": timing.resume_count,
            }
            done = {"schema_version": STEP_VERSION, "config": self.config}
            for file, content in ((paths.cost_file, cost), (paths.step_file, done)):
                path = file(self.grid.scale, self.cell, self.stage)
                atomic_write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
            self.discard_state()


def cell_stage(stage: str) -> Callable[[Callable[[Job], None]], Callable[..., None]]:
    """Return a decorator that makes a function of a job the program of a stage, with the options of a cell."""

    def decorate(work: Callable[[Job], None]) -> Callable[..., None]:
        def main(
            task: TaskOption,
            dataset: DatasetOption,
            model: ModelOption,
            seed: SeedOption,
            method: MethodOption = "baseline",
            scale: ScaleOption = None,
            params: ParamsOption = PARAMS,
        ) -> None:
            work(open_job(params, scale, paths.Cell(task, dataset, model, method, seed), stage))

        main.__doc__ = work.__doc__
        return main

    return decorate


def open_job(params: Path, scale: str | None, cell: paths.Cell, stage: str) -> Job:
    """Return the job of one stage of one cell.

    Raises
    ------
    ConfigError
        If the scale has no such cell; the message names the part that is wrong.
    """
    grid = open_grid(params, scale)
    cells = grid.cells()
    if cell not in cells:
        raise ConfigError(f"scale '{grid.scale}' has no cell {cell}: {_wrong_part(cell, cells)}")
    if stage in {"prune", "finetune"} and cell.is_baseline:
        raise ConfigError(f"stage {stage} needs a pruning method, not 'baseline'")
    if stage == "baseline" and not cell.is_baseline:
        raise ConfigError(f"stage baseline makes the unpruned network: leave out --method, or give 'baseline' ({cell})")
    return Job(grid, cell, stage)


def _wrong_part(cell: paths.Cell, cells: list[paths.Cell]) -> str:
    for part in cell._fields:
        fitting = [other for other in cells if getattr(other, part) == getattr(cell, part)]
        if not fitting:
            valid = {str(getattr(other, part)) for other in cells}
            return f"{part} '{getattr(cell, part)}': {nearest(str(getattr(cell, part)), valid)}"
        cells = fitting
    return "no such combination"
