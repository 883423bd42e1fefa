"""The grid of the selected scale and small helpers; the only file of the workflow with Python in it."""

import hashlib
import json
import os
import shlex
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

from ifap.study import paths, report as claims
from ifap.study.config.reading import load_params, parse_params, select_scale
from ifap.errors import IfapError
from ifap.study.grid import FIGURE_FORMATS, TABLE_FORMATS, Grid

CELL = "{task}/{dataset}/{model}/{method}/seed{seed}"
BASELINE = "{task}/{dataset}/{model}/baseline/seed{seed}"
# What runs the jobs: the interpreter that runs Snakemake, in a container the image's own. No parameter of a rule, so that
# what one environment made is not made again by another.
IN_CONTAINER = (
    DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
)
PYTHON = "python" if IN_CONTAINER else shlex.quote(sys.executable)
# What a submitted job may use is what the scheduler gave it: `gres` asks for a GPU as well as `gpu` does.
if workflow.remote_exec:
    os.environ["IFAP_GPU_SUBMITTED"] = "1"


def selected_grid():
    """Return the grid that the command line and params.yaml select."""
    try:
        params = load_params("params.yaml")
        scale = select_scale(params, config.get("scale"))
        science = {key: value for key, value in config.items() if key != "cells"}
        if parse_params({**science, "scale": params.scale}) != params:
            raise IfapError(
                "only --config scale=... cells=... may differ from params.yaml: change params.yaml itself"
            )
        grid = Grid(params, scale)
        return grid, grid.chosen(config.get("cells"))
    except IfapError as error:
        raise WorkflowError(str(error)) from None


GRID, CHOSEN = selected_grid()
SCALE = GRID.scale
# What is not here and cannot be had is left out, with what was measured on it before left as it is.
ABSENT = GRID.absent()
for dataset, reason in ABSENT.items():
    logger.warning(f"{dataset} is left out: {reason}")
PRESENT = [cell for cell in CHOSEN if cell.dataset not in ABSENT]
REPORTED = [
    cell
    for cell in GRID.cells()
    if cell in PRESENT
    or (cell.dataset in ABSENT and paths.metrics_file(SCALE, cell).exists())
]


wildcard_constraints:
    task="|".join(sorted(GRID.options.grid)),
    dataset="|".join(sorted(set(GRID.datasets()) - set(ABSENT))) or "none",
    model="|".join(sorted({cell.model for cell in GRID.cells()})),
    method="|".join(sorted({cell.method for cell in GRID.cells()})),
    seed=r"\d+",
    table="|".join(sorted(GRID.params.tables)),


def cell_of(wildcards):
    """Return the cell that a rule's wildcards name; a rule without a method is a baseline's."""
    method = getattr(wildcards, "method", "baseline")
    return paths.Cell(
        wildcards.task, wildcards.dataset, wildcards.model, method, int(wildcards.seed)
    )


def saved(path):
    """Return an output for a saved network: temporary at scales that do not keep them."""
    return path if GRID.options.keep_checkpoints else temp(path)


def step_config(step):
    """Return a function from wildcards to everything that the step's result depends on, as stable text."""

    def resolved(wildcards):
        return json.dumps(GRID.config(cell_of(wildcards), step), sort_keys=True)

    return resolved


def fetch_config(wildcards):
    """Return everything that a prepared data set depends on, as stable text."""
    return json.dumps(GRID.fetch_config(wildcards.dataset), sort_keys=True)


def scale_config(wildcards):
    """Return everything that the tables depend on beside the results, as stable text."""
    block = GRID.params.model_dump(mode="json")
    return json.dumps(
        [
            block["scales"][SCALE],
            block["versions"],
            block["versions_of"],
            block["verdicts"],
            block["tables"],
        ],
        sort_keys=True,
    )


def chosen_option():
    """Return what tells `collect` that the run is limited to some cells."""
    cells = config.get("cells")
    return f"--cells {shlex.quote(str(cells))}" if cells else ""


def widths_of(wildcards):
    """Return the plan and record of the cell whose widths a cell takes; nothing if it finds its own."""
    other = GRID.like(cell_of(wildcards))
    if other is None:
        return []
    return [
        str(paths.kept_json(SCALE, other)),
        str(paths.step_file(SCALE, other, "prune")),
    ]


def final_records(wildcards):
    """Return what `evaluate` needs beside the network: the records of the stages before it."""
    cell = cell_of(wildcards)
    stages = ["baseline"] if wildcards.method == "baseline" else ["prune", "finetune"]
    return [str(paths.step_file(SCALE, cell, stage)) for stage in stages]


CLAIMS_CHECKSUM = hashlib.sha256(paths.published_claims().read_bytes()).hexdigest()
DATASETS = [
    str(paths.manifest_file(SCALE, dataset))
    for dataset in sorted({cell.dataset for cell in PRESENT})
]
CHECKPOINTS = [
    str(paths.checkpoint_dir(SCALE, cell, "final") / "weights.safetensors")
    for cell in PRESENT
    if GRID.options.keep_checkpoints
]
METRICS = [str(paths.metrics_file(SCALE, cell)) for cell in REPORTED]
HISTORIES = [str(paths.history_file(SCALE, cell)) for cell in REPORTED]
RECEIPTS = [
    str(paths.receipts_file(SCALE, cell)) for cell in REPORTED if not cell.is_baseline
]
RECORDED = [
    str(path(SCALE))
    for path in (
        paths.records_csv,
        paths.trace_csv,
        paths.history_csv,
        paths.widths_csv,
        paths.configs_json,
        paths.measured_csv,
    )
]
TABLES = [
    str(paths.table_file(SCALE, table, extension))
    for table in GRID.params.tables
    for extension in TABLE_FORMATS
]
FIGURES = [
    str(paths.figure_file(SCALE, figure, extension))
    for figure in claims.figure_names(
        GRID.options.grid, paper_data=GRID.options.paper_data
    )
    for extension in FIGURE_FORMATS
] + [
    str(path(SCALE))
    for path in (paths.report_page, paths.records_page, paths.comparison_csv)
]
