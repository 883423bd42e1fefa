"""The only module that knows where files are; every path is relative to the project's root."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

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


def cell_dir(scale: str, cell: Cell) -> Path:
    """The records of one cell: text, kept in git."""
    return scale_dir(scale) / "cells" / str(cell)


def checkpoint_dir(scale: str, cell: Cell, stage: str) -> Path:
    """A saved network of one cell: binary, kept in DVC. `stage` is ``pruned`` or ``final``."""
    return scale_dir(scale) / "checkpoints" / str(cell) / stage


def metrics_file(scale: str, cell: Cell) -> Path:
    """What `evaluate` measured, and how it came to be."""
    return cell_dir(scale, cell) / "metrics.json"


def history_file(scale: str, cell: Cell) -> Path:
    """One row an epoch of baseline training or fine-tuning."""
    return cell_dir(scale, cell) / "history.csv"


def receipts_file(scale: str, cell: Cell) -> Path:
    """One row a pruning iteration."""
    return cell_dir(scale, cell) / "receipts.csv"


def receipts_json(scale: str, cell: Cell) -> Path:
    """The receipts in full: layer widths and refusals of every pruning iteration."""
    return cell_dir(scale, cell) / "receipts.json"


def flow_json(scale: str, cell: Cell) -> Path:
    """Flow score of every unit of the network before pruning, for the figures."""
    return cell_dir(scale, cell) / "flow.json"


def samples_file(scale: str, cell: Cell) -> Path:
    """Images that the generator of a cell made, as one picture."""
    return cell_dir(scale, cell) / "samples.png"


def state_dir(scale: str, cell: Cell, stage: str) -> Path:
    """Where a running job keeps what it needs to resume; no output, not in git."""
    return Path("state") / scale / str(cell) / stage


def tensorboard_dir(scale: str, cell: Cell, stage: str) -> Path:
    """Where a training writes what TensorBoard shows, if it is asked to."""
    return Path("logs") / "tensorboard" / scale / str(cell) / stage


def runs_csv(scale: str) -> Path:
    """One row a finished run."""
    return scale_dir(scale) / "runs.csv"


def trace_csv(scale: str) -> Path:
    """The pruning iterations of every pruned cell, one row each."""
    return scale_dir(scale) / "trace.csv"


def comparison_csv(scale: str) -> Path:
    """One row a method, network, data set and target, with its difference to the reference."""
    return scale_dir(scale) / "comparison.csv"


def missing_csv(scale: str) -> Path:
    """One row a cell that has no record, and why."""
    return scale_dir(scale) / "missing.csv"


def claims_csv(scale: str) -> Path:
    """Every published number with what was measured for it and a verdict."""
    return scale_dir(scale) / "claims.csv"


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


def report_page(scale: str) -> Path:
    """The page that shows all tables and figures; opens offline."""
    return report_dir(scale) / "index.html"


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
