"""Two of the paper's architectures, each on another data set, through the whole chain at scale smoke."""

from __future__ import annotations

import shutil

import pytest
from workflow_project import ROOT, make_project

from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.paper.reductions import published_reduction
from ifap.study.paths import Cell
from ifap.study.report.records import read_receipts, read_record

GRID = Grid(load_params(ROOT / "params.yaml"), "smoke")
AXES = GRID.options.grid["classification"]
CELLS = [
    Cell("classification", dataset, model, "ifap", 0)
    for dataset, model in zip(AXES.datasets, AXES.models[::5], strict=False)
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The committed parameters, two cells of ninety."""
    made = make_project(tmp_path_factory.mktemp("smoke") / "project")
    shutil.copy(ROOT / "params.yaml", made.root / "params.yaml")
    targets = [str(paths.metrics_file("smoke", cell)) for cell in CELLS]
    made.snakemake("--config", "scale=smoke", "--", *targets, timeout=1200)
    return made


def test_the_cells_differ_in_architecture_and_data_set():
    assert len({cell.model for cell in CELLS}) == len({cell.dataset for cell in CELLS}) == len(CELLS) == 2
    assert len([cell for cell in GRID.pruned() if (cell.task, cell.method) == ("classification", "ifap")]) == 90


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.model}-{cell.dataset}")
def test_the_cell_reached_the_published_reduction_in_three_iterations(project, cell):
    shown = paths.metrics_file("smoke", cell)
    record = read_record(project.root / shown, shown, "smoke", cell)
    receipts = read_receipts(project.root / paths.receipts_file("smoke", cell), shown)
    assert record.synthetic
    assert len(receipts) == 4
    wanted = published_reduction(cell, "macs")
    assert 0 <= (1 - record.macs / receipts[0].macs) - wanted < 0.01
    assert record.macs == receipts[-1].macs


def test_networks_are_not_kept(project):
    left = [path for path in (project.root / "results/smoke/checkpoints").rglob("*") if path.is_file()]
    # The unpruned networks were asked for by no other step, and are gone too.
    assert left == []
    assert not any(path.is_file() and path.name != "lock" for path in (project.root / "state").rglob("*"))
