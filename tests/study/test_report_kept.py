"""Recorded rows of cells that are not here: what is kept, as which bytes, and what is not."""

import json
import shutil

import pytest
from claims_made_up import ROOT, made_up_grid, raw_params, write_cell, write_cost, write_recorded_files

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report import records
from ifap.study.report.collecting import frames_of, recorded_files
from ifap.study.report.figures.layers import flow_cell, load_widths
from ifap.study.report.provenance import gather, provenance_table
from ifap.study.report.tables.report import Report

PRUNED = Cell("classification", "digits", "net_a", "ifap", 0)
SCALES = sorted(path.parent.name for path in (ROOT / "results").glob("*/records.csv"))


def write_layers(root, grid, cell):
    """Write the widths of a cell's layers and, of the cell whose units are listed, their flow."""
    steps = [{"accepted": True, "widths": {"conv": 3}}, {"accepted": True, "widths": {"conv": 2}}]
    (root / paths.receipts_json(grid.scale, cell)).write_text(json.dumps(steps))
    if cell == flow_cell(grid):
        (root / paths.flow_json(grid.scale, cell)).write_text(json.dumps({"conv": [0.25, 0.5, 0.125]}))
        (root / paths.kept_json(grid.scale, cell)).write_text(json.dumps({"kept": {"conv": {"out": [0, 1]}}}))


def write_work(root, grid, *cells):
    for cell in cells:
        write_cell(root, grid, cell)
        if not cell.is_baseline:
            write_layers(root, grid, cell)


@pytest.fixture
def grid(tmp_path):
    grid = made_up_grid()
    write_work(tmp_path, grid, *grid.cells())
    return grid


def forget_cells(root):
    shutil.rmtree(root / paths.cells_dir("quick"))


def recorded(root):
    return {path.name: path.read_text() for path in (root / paths.scale_dir("quick")).iterdir() if path.is_file()}


def collect_kept(root, grid, **options):
    return records.collect(grid, root=root, keep_recorded=True, **options)


def steps_changed():
    raw = raw_params()
    raw["scales"]["quick"]["prune"]["default"]["steps"] = 12
    return made_up_grid(raw)


@pytest.mark.parametrize("scale", SCALES)
def test_a_clone_without_cells_gives_the_recorded_bytes(tmp_path, scale):
    shutil.copytree(
        ROOT / paths.scale_dir(scale), tmp_path / paths.scale_dir(scale), ignore=lambda *_: ["cells", "checkpoints"]
    )
    grid = Grid(load_params(ROOT / "params.yaml"), scale)
    collected = collect_kept(tmp_path, grid, allow_missing=True)
    report = Report(grid, *frames_of(collected), (), collected.missing)
    files = recorded_files(collected, report, root=tmp_path)
    del files[paths.measured_csv(scale)]  # which is judged, which takes seconds
    assert {path: (ROOT / path).read_text() for path in files} == files
    assert (paths.missing_csv(scale) in files) == (ROOT / paths.missing_csv(scale)).exists()


@pytest.mark.parametrize("late", [PRUNED, PRUNED.baseline, PRUNED._replace(model="net_b", method="random")], ids=str)
def test_records_that_grow_over_two_machines_are_those_of_one(tmp_path, grid, late):
    write_recorded_files(tmp_path, grid)
    whole = recorded(tmp_path)
    assert load_widths("quick", root=tmp_path)["flow"].notna().any()
    shutil.rmtree(tmp_path / paths.cell_dir("quick", late))
    if late.is_baseline:  # rows of pruned cells are made beside their baseline
        for cell in grid.pruned():
            if cell.baseline == late:
                shutil.rmtree(tmp_path / paths.cell_dir("quick", cell))
    write_recorded_files(tmp_path, grid)
    gaps = list(records.load_missing("quick", root=tmp_path))
    forget_cells(tmp_path)
    write_work(tmp_path, grid, *gaps)
    write_recorded_files(tmp_path, grid, keep_recorded=True)
    assert recorded(tmp_path) == whole
    write_recorded_files(tmp_path, grid, keep_recorded=True)
    assert recorded(tmp_path) == whole


def test_a_new_pruned_cell_is_compared_with_its_recorded_baseline(tmp_path, grid):
    raw = raw_params()
    raw["scales"]["quick"]["grid"]["classification"]["methods"].remove("magnitude")
    write_recorded_files(tmp_path, made_up_grid(raw))
    forget_cells(tmp_path)
    new = PRUNED._replace(method="magnitude")
    write_work(tmp_path, grid, new)
    runs = write_recorded_files(tmp_path, grid, keep_recorded=True).runs
    row = runs[(runs["model"] == "net_a") & (runs["method"] == "magnitude")].iloc[0]
    base = runs[(runs["model"] == "net_a") & (runs["method"] == "baseline")].iloc[0]
    assert (row["macs_base"], row["params_base"]) == (base["macs"], base["params"])
    assert row["metric_delta"] == pytest.approx(row["test_metric"] - base["test_metric"])
    assert records.load_missing("quick", root=tmp_path) == {new._replace(model="net_b"): records.NO_RECORD}


def test_another_unpruned_network_than_the_recorded_one_is_refused(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    forget_cells(tmp_path)
    write_work(tmp_path, grid, PRUNED.baseline)
    assert PRUNED in collect_kept(tmp_path, grid).kept.records
    file = tmp_path / paths.metrics_file("quick", PRUNED.baseline)
    record = json.loads(file.read_text())
    record["metrics"][record.get("primary", "top1")]["value"] += 0.5
    file.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match=rf"row of {PRUNED} compares with .* remove the work of {PRUNED.baseline}"):
        collect_kept(tmp_path, grid)


def test_rows_of_other_parameters_are_not_kept_and_say_so_for_good(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    forget_cells(tmp_path)
    changed = steps_changed()
    why = "recorded under other parameters: prune.steps=10 (params.yaml: 12)"
    with pytest.raises(ResultsError, match=r"^\d missing: \S+ \(recorded under other parameters: prune\.steps=10"):
        collect_kept(tmp_path, changed)
    write_recorded_files(tmp_path, changed, keep_recorded=True)
    first = recorded(tmp_path)
    assert records.load_missing("quick", root=tmp_path) == dict.fromkeys(changed.pruned(), why)
    assert len(records.load_records("quick", root=tmp_path)) == len(changed.baselines())
    write_recorded_files(tmp_path, changed, keep_recorded=True)
    assert recorded(tmp_path) == first


def test_without_the_option_cells_that_are_not_here_are_missing(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    forget_cells(tmp_path)
    write_work(tmp_path, grid, PRUNED)
    runs = write_recorded_files(tmp_path, grid).runs
    assert [Cell.of(row) for row in runs.to_dict("records")] == [PRUNED]
    assert runs["metric_delta"].isna().all()
    assert set(records.load_missing("quick", root=tmp_path).values()) == {records.NO_RECORD}


def test_an_old_cell_that_a_run_leaves_out_does_not_hide_its_recorded_row(tmp_path, grid):
    changed = steps_changed()
    write_work(tmp_path, changed, *changed.cells())
    write_recorded_files(tmp_path, changed)
    write_work(tmp_path, grid, PRUNED)  # as it was run before
    collected = collect_kept(tmp_path, changed, cells="*/*/net_b")
    assert list(collected.kept.records) == [PRUNED]
    assert collected.missing == {}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trace", lambda lines: [line for line in lines if ",net_a,ifap," not in line], rf"no row of {PRUNED}, which "),
        ("records", lambda lines: [*lines, lines[-1]], r"2 rows of \S+; take the files as they were recorded"),
        (
            "records",
            lambda lines: [line.replace("quick,", "slow,", 1) for line in lines],
            "row 2: 'slow' is not 'quick'",
        ),
        ("history", lambda lines: [line + "," for line in lines], "row 1: .*column  is unknown"),
    ],
)
def test_recorded_files_that_do_not_fit_are_one_line(tmp_path, grid, name, change, message):
    write_recorded_files(tmp_path, grid)
    forget_cells(tmp_path)
    file = paths.scale_dir("quick") / f"{name}.csv"
    lines = change((tmp_path / file).read_text().splitlines())
    (tmp_path / file).write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ResultsError, match=f"^malformed {file}: {message}") as error:
        collect_kept(tmp_path, grid)
    assert "\n" not in str(error.value)


def test_a_kept_record_keeps_how_it_came_to_be(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    hashes = records.collect(grid, root=tmp_path).hashes
    table = provenance_table("quick", gather(grid, hashes, root=tmp_path))
    (tmp_path / paths.provenance_csv("quick")).write_text(table)
    write_cost(tmp_path, "quick", PRUNED, commit="1" * 40)  # of another run of the cell
    found = gather(grid, hashes, kept=[PRUNED], root=tmp_path)
    assert found[PRUNED].commit == "0" * 40
    assert gather(grid, hashes, root=tmp_path)[PRUNED].commit == "1" * 40
