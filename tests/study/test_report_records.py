import csv
import dataclasses
import json

import pytest
from claims_made_up import (
    made_up_grid,
    raw_params,
    receipt_rows,
    write_cell,
    write_cost,
    write_grid,
    write_receipts,
    write_recorded_files,
)

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paths import Cell
from ifap.study.report import csv_files, records
from ifap.study.report.configs import check_configs, first_difference, load_configs
from ifap.study.report.record import EPOCH_FIELDS
from ifap.study.rounding import rounded
from ifap.study.training.history import EpochRow

PRUNED = Cell("classification", "digits", "net_a", "ifap", 0)


@pytest.fixture
def grid(tmp_path):
    grid = made_up_grid()
    write_grid(tmp_path, grid)
    return grid


def edit_metrics(tmp_path, cell, change):
    path = tmp_path / paths.metrics_file("quick", cell)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_one_row_a_run_with_deltas_against_the_baseline(tmp_path, grid):
    table = records.records_table(records.collect(grid, root=tmp_path))
    (tmp_path / paths.records_csv("quick")).write_text(table)
    runs = records.load_records("quick", root=tmp_path)
    assert list(runs["record"]) == [f"results/quick/records.csv#L{line + 2}" for line in range(len(runs))]
    assert len(runs) == len(grid.cells())
    row = runs[(runs["model"] == "net_a") & (runs["method"] == "ifap")].iloc[0]
    assert row["macs_reduction"] == pytest.approx(100 * (1808086 / 5210624 - 1))
    assert row["metric_delta"] == pytest.approx(-0.8)
    assert (row["target_kind"], row["target"]) == ("macs", 0.65)
    assert runs[runs["method"] == "baseline"]["metric_delta"].isna().all()


def test_trace_has_every_iteration_of_every_pruned_cell(tmp_path, grid):
    table = records.trace_table(records.collect(grid, root=tmp_path))
    (tmp_path / paths.trace_csv("quick")).write_text(table)
    trace = records.load_trace("quick", root=tmp_path)
    assert trace.groupby(["model", "method"])["iteration"].apply(list).map(tuple).unique().tolist() == [(0, 1, 2, 3)]
    assert trace["score_low"].dropna().unique().tolist() == [1e-7]


def recorded(root, grid):
    write_recorded_files(root, grid)
    return {path.name: path.read_bytes() for path in (root / paths.scale_dir("quick")).iterdir() if path.is_file()}


def test_what_a_run_cost_changes_no_recorded_file(tmp_path, grid):
    first = recorded(tmp_path, grid)
    for cell in grid.cells():
        write_cost(tmp_path, "quick", cell, wall_seconds=9.0, commit="1" * 40, hardware={"cpu": "another"})
    assert recorded(tmp_path, grid) == first
    assert set(first) == {
        "records.csv", "trace.csv", "history.csv", "widths.csv", "configs.json", "measured.csv",
    }  # fmt: skip


def test_numbers_that_differ_behind_the_kept_digits_give_the_same_bytes(tmp_path, grid):
    first = recorded(tmp_path, grid)
    off = rounded({"value": 97.5 * (1 + 1e-15)})["value"]
    assert off == rounded(97.5) == 97.5
    assert rounded([0.1 + 0.2, (1, "a", None, True)]) == [0.3, [1, "a", None, True]]
    edit_metrics(tmp_path, PRUNED, lambda content: content["metrics"]["loss"].update(value=0.125 + 1e-13))
    assert recorded(tmp_path, grid) == first


def test_a_line_end_in_a_value_moves_the_lines_that_are_linked(tmp_path, grid):
    rows = receipt_rows(PRUNED)
    rows[1]["refused"] = '"conv1\nconv2"'
    write_receipts(tmp_path / paths.receipts_file("quick", PRUNED), rows)
    trace = write_recorded_files(tmp_path, grid).trace
    lines = (tmp_path / paths.trace_csv("quick")).read_text().splitlines()
    for place, iteration in zip(trace["record"], trace["iteration"], strict=True):
        assert lines[int(place.rpartition("#L")[2]) - 1].split(",")[6] == str(iteration)


def test_every_epoch_is_gathered_with_its_stage(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    lines = list(csv.DictReader((tmp_path / paths.history_csv("quick")).open()))
    assert [line["stage"] for line in lines] == ["baseline"] * 2 + ["finetune"] * 6
    assert {line["validation_metric"] for line in lines} == {"90"}
    assert tuple(field.name for field in dataclasses.fields(EpochRow)) == EPOCH_FIELDS


def test_a_validation_loss_that_is_no_number_is_left_empty(tmp_path, grid):
    write_recorded_files(tmp_path, grid)
    file = tmp_path / paths.history_file("quick", PRUNED)
    header, first, *rest = file.read_text().splitlines()
    epoch, lr, train, _, metric = first.split(",")
    file.write_text("\n".join([header, f"{epoch},{lr},{train},nan,{metric}", *rest]) + "\n")
    collected = records.collect(grid, root=tmp_path)
    assert f",{epoch},{lr},{train},,{metric}" in records.history_table(collected, root=tmp_path)


def test_a_configuration_is_kept_once_and_found_by_its_hash(tmp_path, grid):
    runs = write_recorded_files(tmp_path, grid).runs
    found = load_configs("quick", root=tmp_path)
    wanted = grid.config(PRUNED, "evaluate")
    own = runs[(runs["model"] == "net_a") & (runs["method"] == "ifap")].iloc[0]["config_hash"]
    assert found[own] == {step: block for step, block in wanted.items() if step != "cell"}
    stored = json.loads((tmp_path / paths.configs_json("quick")).read_text())
    assert (len(stored["configs"]), len(stored["steps"])) == (len(grid.cells()), 5 + len(grid.methods()))


def test_records_of_other_parameters_are_refused_by_what_reads_them(tmp_path, grid):
    runs = write_recorded_files(tmp_path, grid).runs
    configs = load_configs("quick", root=tmp_path)
    check_configs(runs, configs, grid)
    raw = raw_params()
    raw["scales"]["quick"]["prune"]["default"]["steps"] = 12
    with pytest.raises(ResultsError, match=r"^stale record of \S+/ifap/seed0: prune\.steps=10 \(params\.yaml: 12\); "):
        check_configs(runs, configs, made_up_grid(raw))


def test_a_list_of_missing_cells_goes_once_none_is_missing(tmp_path, grid):
    gone = tmp_path / paths.metrics_file("quick", PRUNED)
    content = gone.read_text()
    gone.unlink()
    write_recorded_files(tmp_path, grid)
    assert records.load_missing("quick", root=tmp_path) == {PRUNED: records.NO_RECORD}
    gone.write_text(content)
    write_recorded_files(tmp_path, grid)
    assert not (tmp_path / paths.missing_csv("quick")).exists()
    assert records.load_missing("quick", root=tmp_path) == {}


def test_records_of_the_old_layout_are_named_with_the_command_that_moves_them(tmp_path, grid):
    edit_metrics(tmp_path, PRUNED, lambda content: content.update(schema_version=1, provenance={}))
    how = r"its records are of the old layout: run python -m stages\.migrate_records --scale quick"
    with pytest.raises(ResultsError, match=rf"^{paths.metrics_file('quick', PRUNED)}: {how}$"):
        records.collect(grid, root=tmp_path)
    (tmp_path / paths.scale_dir("quick") / "runs.csv").touch()
    with pytest.raises(ResultsError, match=rf"^results/quick/records\.csv not found: {how}$"):
        records.load_records("quick", root=tmp_path)


def test_names_missing_and_stale_cells(tmp_path, grid):
    (tmp_path / paths.metrics_file("quick", PRUNED)).unlink()
    raw = raw_params()
    raw["scales"]["quick"]["prune"]["default"]["steps"] = 12
    with pytest.raises(ResultsError) as error:
        records.collect(made_up_grid(raw), root=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert f"1 missing: {PRUNED}" in message
    stale = paths.metrics_file("quick", PRUNED._replace(method="random"))
    assert f"stale {stale}: prune.steps=10 (params.yaml: 12)" in message
    assert "baseline/seed0" not in message  # a baseline does not depend on pruning


def test_a_key_that_only_one_side_has_is_stale():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == "a.c=absent (params.yaml: 2)"
    assert first_difference({"a": (1, 2)}, {"a": [1, 2]}) is None


def test_many_missing_cells_are_counted(tmp_path):
    with pytest.raises(ResultsError, match=r"^32 missing: .* and 12 more$"):
        records.collect(made_up_grid(raw_params(seeds=range(4))), root=tmp_path)


def test_partial_grid_on_request(tmp_path, grid):
    (tmp_path / paths.metrics_file("quick", PRUNED)).unlink()
    (tmp_path / paths.metrics_file("quick", PRUNED._replace(model="net_b").baseline)).unlink()
    collected = records.collect(grid, root=tmp_path, allow_missing=True)
    assert collected.missing == dict.fromkeys([PRUNED._replace(model="net_b").baseline, PRUNED], records.NO_RECORD)
    table = records.records_table(collected)
    assert len(table.splitlines()) == 1 + len(grid.cells()) - 2
    (tmp_path / paths.records_csv("quick")).write_text(table)
    runs = records.load_records("quick", root=tmp_path)
    assert runs[runs["model"] == "net_b"]["metric_delta"].isna().all()


def test_cells_that_a_run_leaves_out_may_be_missing_or_old(tmp_path, grid):
    (tmp_path / paths.metrics_file("quick", PRUNED)).unlink()
    raw = raw_params()
    raw["scales"]["quick"]["prune"]["default"]["steps"] = 12
    collected = records.collect(made_up_grid(raw), root=tmp_path, cells="*/*/net_b/baseline")
    left_out = [cell for cell in grid.cells() if not cell.is_baseline]
    assert collected.missing == dict.fromkeys(left_out, records.NOT_CHOSEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("macs"), "macs: Field required"),
        (lambda c: c.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda c: c["metrics"]["top1"].update(value="97.2"), r"metrics.top1.value: .*\(got '97.2'\)"),
        (lambda c: c["metrics"]["top1"].update(value=float("nan")), "metrics.top1.value: .*finite"),
        (lambda c: c["metrics"]["top1"].update(value=120.0), "metrics.top1 is 120, not from 0 to 100"),
        (lambda c: c["metrics"]["top1"].update(split="validation"), "metrics.top1.split: .*'test'"),
        (lambda c: c["cell"].update(seed=7), r"belongs to another cell: seed=7 \(path: 0\)"),
        (lambda c: c.update(schema_version=3), "schema_version"),
    ],
)
def test_malformed_metrics_are_one_line(tmp_path, grid, change, message):
    edit_metrics(tmp_path, PRUNED, change)
    with pytest.raises(ResultsError, match=f"^malformed {paths.metrics_file('quick', PRUNED)}: .*{message}") as error:
        records.collect(grid, root=tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_metrics_are_one_line(tmp_path, grid):
    path = tmp_path / paths.metrics_file("quick", PRUNED)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResultsError, match=r"^malformed .*metrics.json: Invalid JSON") as error:
        records.collect(grid, root=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].update(macs="many"), r"line 4: macs: .*\(got 'many'\)"),
        (lambda rows: rows[2].update(top1="nan"), "line 4: top1"),
        (lambda rows: rows.pop(1), "the iterations must run 0, 1, 2"),
        (lambda rows: rows[1].pop("loss"), "line 3: 15 values for 16 columns"),
        (lambda rows: rows[3].update(macs=5), "no iteration has the MACs of metrics.json"),
        (lambda rows: rows.clear(), "the iterations must run"),
    ],
)
def test_malformed_receipts_are_one_line(tmp_path, grid, change, message):
    rows = receipt_rows(PRUNED)
    change(rows)
    shown = paths.receipts_file("quick", PRUNED)
    write_receipts(tmp_path / shown, rows)
    with pytest.raises(ResultsError, match=f"^malformed {shown}: {message}"):
        records.collect(grid, root=tmp_path)


def test_missing_receipts_and_wrong_header(tmp_path, grid):
    path = tmp_path / paths.receipts_file("quick", PRUNED)
    path.write_text("iteration,macs\n0,1\n")
    with pytest.raises(ResultsError, match="the first line must be iteration,accepted"):
        records.collect(grid, root=tmp_path)
    path.unlink()
    with pytest.raises(ResultsError, match="the cell has metrics but no receipts"):
        records.collect(grid, root=tmp_path)


def test_refusals_with_commas_and_line_ends_survive(tmp_path, grid):
    rows = receipt_rows(PRUNED)
    rows[2]["refused"] = '"conv1: 4 left, min_units\nconv2"'
    write_receipts(tmp_path / paths.receipts_file("quick", PRUNED), rows)
    collected = records.collect(grid, root=tmp_path)
    assert collected.receipts[PRUNED][2].refused == "conv1: 4 left, min_units\nconv2"


def test_writing_replaces_all_files_or_none(tmp_path):
    good, bad = tmp_path / "a" / "good.csv", tmp_path / "blocked" / "bad.csv"
    csv_files.write_files({good: "old\n"})
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(OSError):  # noqa: PT011 - the kind depends on the system
        csv_files.write_files({good: "new\n", bad: "x"})
    assert good.read_text() == "old\n"
    assert [path.name for path in good.parent.iterdir()] == ["good.csv"]


def test_csv_of_another_version_is_refused(tmp_path):
    path = tmp_path / paths.records_csv("quick")
    with pytest.raises(ResultsError, match=r"records.csv not found: run make reproduce SCALE=quick"):
        records.load_records("quick", root=tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("scale,task\nquick,classification\n")
    with pytest.raises(ResultsError, match="its columns are not those of"):
        records.load_records("quick", root=tmp_path)


def test_a_new_cell_is_read(tmp_path, grid):
    larger = made_up_grid(raw_params(seeds=(0, 1)))
    for cell in larger.cells():
        if cell.seed == 1:
            write_cell(tmp_path, larger, cell)
    assert len(records.collect(larger, root=tmp_path).records) == 2 * len(grid.cells())
