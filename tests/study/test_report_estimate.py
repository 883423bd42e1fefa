"""Where a study stands, and what it would take, from made-up records."""

import json
import shutil
from dataclasses import fields, replace

import pytest
from claims_made_up import (
    ROOT,
    made_up_grid,
    raw_params,
    write_cell,
    write_cost,
    write_grid,
    write_report_files,
)

from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.data.origins import PLACES
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report import estimate, speed
from ifap.study.report.estimate import Assumptions
from ifap.study.report.provenance import gather, provenance_table

CELL = Cell("classification", "digits", "net_a", "ifap", 0)


@pytest.fixture
def grid():
    return made_up_grid()


def change(root, cell, edit):
    path = root / paths.metrics_file("quick", cell)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_tables_know_their_cells(grid):
    cells = estimate.table_cells(grid)
    assert cells["table-2"] == grid.cells()
    assert cells["table-4"] == [CELL.baseline, CELL]


def test_a_table_that_this_scale_does_not_run_has_no_cells():
    raw = raw_params()
    raw["tables"]["table-4"]["model"] = "net_z"
    grid = made_up_grid(raw)
    assert estimate.table_cells(grid)["table-4"] == []
    assert estimate.estimate(grid)["table-4"].jobs == 0


def test_a_table_that_names_no_task_has_no_cells(grid):
    options = grid.params.tables["table-4"].model_copy(update=dict.fromkeys(Cell._fields))
    tables = {"table-1": options, **grid.params.tables}
    params = grid.params.model_copy(update={"tables": tables})
    cells = estimate.table_cells(Grid(params, grid.scale))
    assert cells["table-1"] == []
    assert estimate.status_lines(Grid(params, grid.scale))[0] == "table-1: no cells at this scale"


def state(grid, root):
    """Return how the status calls the state of a cell, and why."""
    shown = next(line for line in estimate.status_lines(grid, root=root) if line.startswith(f"  {CELL}: "))
    return shown.removeprefix(f"  {CELL}: ")


def test_states_of_cells(tmp_path, grid):
    assert state(grid, tmp_path) == "missing"
    write_cell(tmp_path, grid, CELL)
    assert state(grid, tmp_path) == "restored (commit 0000000)"
    weights = tmp_path / paths.checkpoint_dir("quick", CELL, "final") / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert state(grid, tmp_path).startswith("ran")
    change(tmp_path, CELL, lambda record: record["config"]["prune"].update(alpha=2.5))
    assert state(grid, tmp_path) == "stale (prune.alpha=2.5 (params.yaml: 1.5))"
    (tmp_path / paths.metrics_file("quick", CELL)).write_text("[]")
    assert state(grid, tmp_path).startswith("damaged")


def test_cells_whose_work_is_not_here_are_recorded_or_stale(tmp_path, grid):
    report = write_report_files(tmp_path, grid)
    hashes = {Cell.of(row): row["config_hash"] for row in report.runs.to_dict("records")}
    table = provenance_table("quick", gather(grid, hashes, root=tmp_path))
    (tmp_path / paths.provenance_csv("quick")).write_text(table)
    for folder in ("cells", "provenance"):
        shutil.rmtree(tmp_path / paths.scale_dir("quick") / folder)
    assert state(grid, tmp_path) == "recorded (commit 0000000)"
    assert estimate.estimate(grid, root=tmp_path)["all"].measured == len(grid.cells())
    raw = raw_params()
    raw["scales"]["quick"]["prune"]["default"]["alpha"] = 2.5
    assert state(made_up_grid(raw), tmp_path).startswith("stale")


def test_status_is_counted_by_table_and_every_cell_is_shown(tmp_path):
    raw = raw_params()
    del raw["tables"]["table-2"]
    grid = made_up_grid(raw)
    write_cell(tmp_path, grid, CELL)
    lines = estimate.status_lines(grid, root=tmp_path)
    assert {"table-4: 2 cells: 1 missing, 1 restored", "in no table: 6 cells: 6 missing"} <= set(lines)
    assert {line.split(":")[0].strip() for line in lines} >= {str(cell) for cell in grid.cells()}


def test_measured_cells_cost_what_they_took(tmp_path, grid):
    write_grid(tmp_path, grid)
    for cell in grid.cells():
        write_cost(tmp_path, "quick", cell, wall_seconds=90)
    cost = estimate.estimate(grid, root=tmp_path)["all"]
    assert (cost.cells, cost.measured, cost.jobs) == (8, 8, 1 + 2 * 2 + 6 * 3)
    assert (cost.gpu_hours, cost.cpu_hours) == (0, pytest.approx(8 * 90 / 3600))
    write_cost(tmp_path, "quick", CELL, wall_seconds=90, hardware={"gpu": "one"})
    cost = estimate.estimate(grid, root=tmp_path)["table-4"]
    assert (cost.gpu_hours, cost.cpu_hours) == (pytest.approx(90 / 3600), pytest.approx(90 / 3600))


def test_cells_without_a_record_take_the_median_of_other_methods(tmp_path, grid):
    for method, seconds in (("magnitude", 100), ("random", 300)):
        cell = CELL._replace(method=method)
        write_cell(tmp_path, grid, cell)
        write_cost(tmp_path, "quick", cell, wall_seconds=seconds)
    cost = estimate.estimate(grid, root=tmp_path)["table-4"]
    assert (cost.cells, cost.measured) == (2, 1)
    assert cost.cpu_hours == pytest.approx(200 / 3600)


def test_every_data_set_has_one_size_and_the_estimate_takes_it():
    params = load_params(ROOT / "params.yaml")
    assert set(params.scales["paper"].datasets) <= set(PLACES)
    assert [name for name, place in PLACES.items() if place.samples <= 0] == ["agreement"]  # always generated
    assert not any("samples" in field.name and field.name != "other_samples" for field in fields(Assumptions))
    grid = Grid(params, "paper")
    cells = [cell for cell in grid.baselines() if cell.dataset in {"coco2017", "inaturalist"}]
    none = Assumptions(iteration_seconds=0, job_seconds=0, other_samples=0)
    assert all(estimate.stated_seconds(grid, cell, none)["baseline"] > 0 for cell in cells)
    assert (PLACES["coco2017"].samples, PLACES["inaturalist"].samples) == (123_287, 600_000)


def test_stated_costs_follow_from_the_assumptions(tmp_path, grid, monkeypatch):
    monkeypatch.setitem(PLACES, "digits", replace(PLACES["digits"], samples=1000))
    assume = Assumptions(images_per_second=100, most_per_second=100, job_seconds=0)
    cost = estimate.estimate(grid, root=tmp_path, assume=assume)["table-4"]
    # The baseline: 12 epochs of 600 images and the test split. Pruned: 6 epochs, 10 iterations with recovery.
    base = 12 * 600 + 200 / 3
    pruned = 6 * 600 + 200 / 3 + 10 * (600 * 4 / 3 + (256 + 200) / 3)
    assert cost.gpu_hours == pytest.approx(((base + pruned) / 100 + 10 * assume.iteration_seconds) / 3600)
    assert cost.cpu_hours == cost.measured == 0
    assert cost.disk == pytest.approx(4 * assume.parameters * 3 + 1000 * 3 * 32**2)


def test_timed_costs_follow_from_the_speed_of_steps(tmp_path, grid, monkeypatch):
    monkeypatch.setitem(PLACES, "digits", replace(PLACES["digits"], samples=1000))
    assume = Assumptions(job_seconds=0, cut_seconds=7)
    timed = {("classification", "digits", "net_a"): estimate.Pace(training=0.03, forward=0.01, on_gpu=False)}
    cost = estimate.estimate(grid, root=tmp_path, assume=assume, timed=timed)["table-4"]
    base = 12 * (600 * 0.03 + 200 * 0.01) + 400 * 0.01
    # At 65 % fewer MACs an image costs 0.35 times as much at the end, and 0.675 times on the way.
    finetuned = 0.35 * (6 * (600 * 0.03 + 200 * 0.01) + 400 * 0.01)
    iteration = 600 * (0.03 * 0.675 + 0.01) + (256 + 2 * 200) * 0.675 * 0.01 + 7
    assert cost.cpu_hours == pytest.approx((base + finetuned + 10 * iteration) / 3600)
    assert cost.gpu_hours == 0
    lines = estimate.estimate_lines(grid, root=tmp_path, timed=timed)
    assert lines[-1].startswith("Classifiers without a record: by steps that were timed here")


def test_steps_of_the_classifiers_of_a_scale_are_timed_here():
    params = load_params(ROOT / "params.yaml")
    quick = params.scales["quick"]
    task = quick.grid["classification"].model_copy(update={"models": ["resnet_tiny"], "methods": ["ifap"]})
    small = quick.model_copy(update={"grid": {"classification": task}})
    grid = Grid(params.model_copy(update={"scales": {"quick": small}}), "quick")
    found = speed.paces(grid)
    assert set(found) == {("classification", "digits", "resnet_tiny")}
    pace = found["classification", "digits", "resnet_tiny"]
    assert pace.training > pace.forward > 0


def test_estimate_says_what_it_rests_on(tmp_path, grid):
    stated = estimate.estimate_lines(grid, root=tmp_path)
    assert stated[0].split() == ["cells", "measured", "jobs", "GPU", "hours", "CPU", "hours", "disk", "(GB)"]
    assert {"table-2", "table-4", "all"} <= {line.split()[0] for line in stated}
    assert stated[-1].startswith("The rest is stated, not measured: one GPU trains 800 images")
    write_grid(tmp_path, grid)
    assert not any("stated" in line for line in estimate.estimate_lines(grid, root=tmp_path))
    assert list(tmp_path.rglob("weights*")) == []


def test_each_recorded_cell_is_predicted_from_the_others(tmp_path, grid):
    assert estimate.check(grid, root=tmp_path) == []
    for method, seconds in (("magnitude", 100), ("random", 300)):
        cell = CELL._replace(method=method)
        write_cell(tmp_path, grid, cell)
        write_cost(tmp_path, "quick", cell, wall_seconds=seconds)
    found = {item.cell.method: item for item in estimate.check(grid, root=tmp_path)}
    assert {name: (item.predicted, item.measured) for name, item in found.items()} == {
        "magnitude": (300, 100),
        "random": (100, 300),
    }
    assert found["magnitude"].error == pytest.approx(2)
    assert estimate.estimate_lines(grid, root=tmp_path)[-1] == (
        "Each of 2 recorded cells predicted from the others: +0% in all, median error 133%, largest +200% "
        "(classification/digits/net_a/magnitude/seed0)."
    )
