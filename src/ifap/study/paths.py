"""The only module that knows where files are; every path is relative to the project's root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SPLITS = ("train", "validation", "test")


class Cell(NamedTuple):
    """One experiment; its name is its path: ``task/dataset/model/method/seedN``."""

    task: str
    dataset: str
    model: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.dataset}/{self.model}/{self.method}/seed{self.seed}"

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Cell:
        """Return the cell that the columns of a row name."""
        return cls(row["task"], row["dataset"], row["model"], row["method"], int(row["seed"]))

    @property
    def baseline(self) -> Cell:
        """The unpruned network that this cell starts from."""
        return self._replace(method="baseline")

    @property
    def is_baseline(self) -> bool:
        """Whether this cell is the unpruned network itself."""
        return self.method == "baseline"


def raw_dir(dataset: str) -> Path:
    """Where a data set is looked for as its makers publish it."""
    return Path("data") / "raw" / dataset


def data_dir(scale: str) -> Path:
    """The data sets as a scale prepares them."""
    return Path("data") / scale


def dataset_dir(scale: str, dataset: str) -> Path:
    """Folder of one data set as a scale prepares it."""
    return data_dir(scale) / dataset


def synthetic_dir(scale: str, dataset: str) -> Path:
    """Where a scale writes the generated twin of a data set, in the format of the real one."""
    return dataset_dir(scale, dataset) / "synthetic"


def split_file(scale: str, dataset: str, split: str) -> Path:
    """One split of a prepared data set; each has its own file, so that a rule sees only what it may."""
    return dataset_dir(scale, dataset) / f"{split}.safetensors"


def manifest_file(scale: str, dataset: str) -> Path:
    """What a prepared data set is and where it comes from."""
    return dataset_dir(scale, dataset) / "manifest.json"


def scale_dir(scale: str) -> Path:
    """Everything measured at one scale."""
    return Path("results") / scale


def _of_scale(name: str, folder: Callable[[str], Path] = scale_dir) -> Callable[[str], Path]:
    """Return a function from a scale to its file of this name."""
    return lambda scale: folder(scale) / name


def cells_dir(scale: str) -> Path:
    """The work of all cells of a scale."""
    return scale_dir(scale) / "cells"


def cell_dir(scale: str, cell: Cell) -> Path:
    """The work of one cell, the same bytes on every run; kept in DVC."""
    return cells_dir(scale) / str(cell)


def _of_cell(name: str) -> Callable[[str, Cell], Path]:
    """Return a function from a scale and a cell to the file of this name in the cell's work."""
    return lambda scale, cell: cell_dir(scale, cell) / name


def checkpoints_dir(scale: str) -> Path:
    """The saved networks of a scale; kept in DVC."""
    return scale_dir(scale) / "checkpoints"


def checkpoint_dir(scale: str, cell: Cell, stage: str) -> Path:
    """A saved network of one cell; kept in DVC. `stage` is ``pruned`` or ``final``."""
    return checkpoints_dir(scale) / str(cell) / stage


def step_file(scale: str, cell: Cell, stage: str) -> Path:
    """What a finished stage of a cell was asked to do: its resolved parameters."""
    return cell_dir(scale, cell) / f"{stage}.json"


def cost_file(scale: str, cell: Cell, stage: str) -> Path:
    """What a stage of a cell cost here: time, memory, machine; never the same twice, so in neither git nor DVC."""
    return scale_dir(scale) / "provenance" / str(cell) / f"{stage}.json"


metrics_file = _of_cell("metrics.json")
"""What `evaluate` measured."""
history_file = _of_cell("history.csv")
"""One row an epoch of baseline training or fine-tuning."""
receipts_file = _of_cell("receipts.csv")
"""One row a pruning iteration."""
receipts_json = _of_cell("receipts.json")
"""The receipts in full: layer widths and refusals of every pruning iteration."""
flow_json = _of_cell("flow.json")
"""Flow score of every unit of the network before pruning, for the figures."""
kept_json = _of_cell("plan.json")
"""The plan of the pruned network: which units of which layer were kept."""
samples_file = _of_cell("samples.png")
"""Images that the generator of a cell made, as one picture."""


def state_dir(scale: str, cell: Cell, stage: str) -> Path:
    """Where a running job keeps what it needs to resume; no output, not in git."""
    return Path("state") / scale / str(cell) / stage


def tensorboard_dir(scale: str, cell: Cell, stage: str) -> Path:
    """Where a training writes what TensorBoard shows, if it is asked to."""
    return Path("logs") / "tensorboard" / scale / str(cell) / stage


records_csv = _of_scale("records.csv")
"""What was measured, one row a cell; in git, as are the other files of `scale_dir` below."""
trace_csv = _of_scale("trace.csv")
"""The pruning iterations of every pruned cell, one row each."""
history_csv = _of_scale("history.csv")
"""The epochs of every training, one row each."""
widths_csv = _of_scale("widths.csv")
"""Layers and their units before and after pruning, of the networks that figures show; one row a layer."""
configs_json = _of_scale("configs.json")
"""The resolved parameters of every step, each once, by their hash."""
measured_csv = _of_scale("measured.csv")
"""The published numbers that the scale measured, each with a verdict."""
missing_csv = _of_scale("missing.csv")
"""One row a cell that has no record, and why; there is no such file if every cell has one."""
provenance_csv = _of_scale("provenance.csv")
"""How each record came to be: commit, versions, hardware, time, memory; written by `make record` alone."""
pointer_file = _of_scale("recorded.dvc")
"""Checksums of the recorded data, cells and checkpoints; in git, and read by DVC where it is switched on."""
pointer_switch = _of_scale(".dvcignore")
"""What makes DVC read `pointer_file`, which `.dvcignore` hides from it; not in git."""


def full_size_csv() -> Path:
    """What the paper's networks cost at full size, unpruned and pruned; the same at every scale, in git."""
    return Path("results") / "full_size.csv"


def templates_dir() -> Path:
    """The Jinja templates of the report."""
    return Path("reports") / "templates"


def report_dir(scale: str) -> Path:
    """Rendered tables and figures of one scale."""
    return Path("reports") / scale


def table_file(scale: str, table: str, extension: str) -> Path:
    """One rendered table; `extension` is ``md``, ``html``, ``tex`` or ``csv``."""
    return report_dir(scale) / f"{table}.{extension}"


def figure_file(scale: str, figure: str, extension: str) -> Path:
    """One figure; `extension` is ``svg`` or ``png``."""
    return report_dir(scale) / "figures" / f"{figure}.{extension}"


comparison_csv = _of_scale("comparison.csv", report_dir)
"""One row a method, network, data set and target, with its difference to the reference."""
records_page = _of_scale("records.html", report_dir)
"""The page of all records: metrics, iterations, parameters and provenance of each cell; opens offline."""
report_page = _of_scale("index.html", report_dir)
"""The page that shows all tables and figures; opens offline."""


def schema_file() -> Path:
    """The JSON schema of ``params.yaml``."""
    return Path("schemas") / "params.schema.json"


def published_tables() -> Path:
    """The published tables as HTML, from which `published_claims` is transcribed."""
    return Path("data") / "paper" / "tables.html"


def published_claims() -> Path:
    """Every published number, one row each; in git."""
    return Path("data") / "paper" / "claims.csv"


def audit_file(extension: str) -> Path:
    """What the published numbers do not agree on among themselves; `extension` is ``md`` or ``csv``."""
    return Path("reports") / "paper" / f"audit.{extension}"
