"""The comparison of the methods from made-up records: three seeds, two targets, one masked method.

``IFAP_UPDATE_GOLDEN=1 pytest tests/study/test_table_methods.py`` rewrites the golden files; read the diff.
"""

import csv
import io
import json
import os
from dataclasses import replace

import claims_made_up
import pytest
from claims_made_up import ROOT, made_up_grid, raw_params, write_grid
from places import GOLDEN

from ifap.study import paths
from ifap.study.grid import TABLE_FORMATS
from ifap.study.report import records, statistics
from ifap.study.report.tables import methods as comparison
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.render import render
from ifap.study.report.tables.report import Report
from ifap.study.templates import MINUS, NO_VALUE

TEMPLATES = ROOT / paths.templates_dir()
METHODS = {**claims_made_up.METHODS, "rigl": (1.0, 1.0, 0.5)}
SHIFTS = {
    "ifap": (0.0, 0.2, -0.1),
    "magnitude": (-0.1, 0.3, -0.3),
    "random": (0.0, 0.5, -0.4),
    "rigl": (0.0, 0.2, -0.1),
}
MINUS = MINUS


def compared_params():
    raw = raw_params(seeds=(0, 1, 2))
    quick = raw["scales"]["quick"]
    quick["targets"] = {"macs": [0.3]}
    quick["grid"]["classification"] |= {"datasets": ["digits", "fashion_mnist"], "methods": list(METHODS)}
    quick["datasets"]["fashion_mnist"] = {"validation": 0.1, "split_seed": 0}
    return raw


def edit(root, grid):
    """Scatter the seeds, ease the mild target and zero what is masked."""
    for cell in grid.pruned():
        path = root / paths.metrics_file("quick", cell)
        content = json.loads(path.read_text())
        method, _, mild = cell.method.partition("_")
        top1 = content["metrics"]["top1"]
        top1["value"] += SHIFTS[method][cell.seed] - 0.3 * cell.seed + (0.25 if mild else 0.0)
        if method == "rigl":
            left = 0.7 if mild else 0.35
            content["macs_nonzero"] = int(content["macs"] * left)
            content["params_nonzero"] = int(content["params"] * left)
        path.write_text(json.dumps(content))


def load(root, grid):
    write_grid(root, grid)
    edit(root, grid)
    collected = records.collect(grid, root=root, allow_missing=True)
    (root / paths.records_csv("quick")).write_text(records.records_table(collected))
    return records.load_records("quick", root=root)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims_made_up, "METHODS", METHODS)
        grid = made_up_grid(compared_params())
        return grid, load(tmp_path_factory.mktemp("compared"), grid)


def build(made_up, runs=None, name="table-1"):
    grid, own = made_up
    runs = own if runs is None else runs
    return replace(build_table(name, Report(grid, runs, runs.iloc[:0], claims())), published=None)


def claims():
    return claims_made_up.judge_all(made_up_grid(raw_params()))


def compare(golden, text):
    if os.environ.get("IFAP_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("extension", TABLE_FORMATS)
def test_golden_comparison(made_up, extension):
    compare(GOLDEN / f"made-up-comparison.{extension}", render(build(made_up), extension, TEMPLATES))


def test_golden_comparison_csv(made_up):
    compare(GOLDEN / "made-up-comparison-rows.csv", comparison.comparison_table(*made_up))


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_one_row_a_method_and_target_with_its_difference_to_ifap(made_up):
    rows = rows_of(comparison.comparison_table(*made_up))
    assert tuple(rows[0]) == comparison.COLUMNS
    here = {row["method"]: row for row in rows if (row["dataset"], row["model"]) == ("digits", "net_a")}
    assert list(here) == ["baseline", *(f"{method}{end}" for method in METHODS for end in ("", "_m30"))]
    assert {row["line"] for row in here.values()} == {"baseline", *METHODS}
    magnitude = here["magnitude_m30"]
    wanted = statistics.paired(
        dict(enumerate(-1.9 + shift for shift in SHIFTS["magnitude"])),
        dict(enumerate(-0.8 + s for s in SHIFTS["ifap"])),
    )
    assert float(magnitude["difference"]) == pytest.approx(wanted.mean)
    assert float(magnitude["p"]) == pytest.approx(wanted.p, rel=1e-5)
    assert float(magnitude["p_holm"]) == pytest.approx(2 * wanted.p, rel=1e-5)  # of two tests: RigL has no spread
    assert (magnitude["pairs"], magnitude["seeds"], magnitude["n"], magnitude["target"]) == ("3", "0 1 2", "3", "0.3")
    assert here["ifap_m30"]["verdict"] == "reference"
    assert here["rigl"]["verdict"] == statistics.NO_SPREAD
    assert here["baseline"]["verdict"] == here["baseline"]["difference"] == ""


def test_masks_are_told_apart_from_cuts(made_up):
    rows = {row["method"]: row for row in rows_of(comparison.comparison_table(*made_up)) if row["model"] == "net_a"}
    assert (rows["rigl"]["structure"], rows["rigl"]["start"]) == ("weights", "init")
    assert float(rows["rigl"]["macs_reduction"]) == 0
    assert float(rows["rigl"]["macs_theoretical_reduction"]) == pytest.approx(-65, abs=0.01)
    assert float(rows["rigl"]["sparsity"]) == pytest.approx(65, abs=0.1)
    assert float(rows["ifap"]["sparsity"]) == 0
    assert (rows["rigl"]["training_macs"], rows["baseline"]["training_relative"]) == ("", "1")
    assert float(rows["ifap"]["training_relative"]) > 1


def test_masks_and_missed_targets_are_not_the_best_of_table_2(made_up):
    table = build(made_up, name="table-2")
    first = [row.items for row in table.rows[:8]]
    assert {items[2].text: items[2].mark for items in first if items[2].mark} == dict.fromkeys(
        ("RigL", "rigl_m30"), "\N{DAGGER}"
    )
    scores = {items[2].text: float(items[10].text.partition(" ")[0]) for items in first}
    assert max(scores, key=scores.get) == "rigl_m30"
    assert [items[2].text for items in first if items[10].bold] == ["ifap_m30"]
    assert [note.mark for note in table.notes].count("\N{DAGGER}") == 1
    missed = made_up[1].copy()
    missed.loc[(missed["method"] == "ifap_m30") & (missed["seed"] == 1), "target"] = 0.99
    assert "ifap_m30" not in [row.items[2].text for row in build(made_up, missed, "table-2").rows if row.items[10].bold]


def test_methods_are_grouped_by_target_and_the_best_of_each_is_bold(made_up):
    table = build(made_up)
    first = [[item.text for item in row.items[:3]] for row in table.rows[:9]]
    assert [row[1] for row in first] == [NO_VALUE, *[f"MACs {MINUS}30 %"] * 4, *[f"MACs {MINUS}65 %"] * 4]
    assert [row[2] for row in first] == ["Baseline", *["IFAP", "magnitude", "random", "RigL"] * 2]
    bold = [(row.items[1].text, row.items[2].text) for row in table.rows[:9] for item in row.items if item.bold]
    assert bold == [(f"MACs {MINUS}{target} %", "RigL") for target in (30, 30, 65, 65)]
    assert table.rows[0].items[0].rows == 9
    assert [row.items[1].rows for row in table.rows[:9]] == [1, *[4, 0, 0, 0] * 2]
    assert all(
        sum(item.columns for item in row.items) == len(part.columns) for part in table.parts for row in part.rows
    )


def test_ties_are_those_of_the_printed_values(made_up):
    runs = made_up[1].copy()
    ours = (runs["method"] == "ifap") & (runs["model"] == "net_a")
    best = runs[(runs["method"] == "rigl") & (runs["model"] == "net_a")]["test_metric"].to_numpy()
    runs.loc[ours, "test_metric"] = best + 0.0004
    table = build(made_up, runs)
    bold = [row.items[2].text for row in table.rows[5:9] if row.items[3].bold]
    assert bold == ["IFAP", "RigL"]


def test_what_did_not_run_says_so(made_up):
    runs = made_up[1]
    gone = (runs["method"] == "rigl") & (runs["dataset"] == "digits") & (runs["model"] == "net_a")
    few = runs[~gone & ~((runs["method"] == "ifap") & (runs["seed"] == 2))]
    table = build(made_up, few)
    assert table.rows[8].items[3].text == NO_VALUE
    assert table.rows[8].items[4].text != NO_VALUE
    row = next(row for row in table.detail.rows if len(row.items) < len(table.detail.columns))
    assert row.items[-1].text == "not attempted: no record for seeds 0, 1, 2"
    named = {row.items[3].text: row.items for row in table.detail.rows[:9]}
    assert named["IFAP"][15].text == "2 of 3"
    assert "1 of 36 entries have no run yet." in " ".join(note.text for note in table.notes)


def test_one_seed_makes_no_statement(made_up):
    grid, runs = made_up
    rows = rows_of(comparison.comparison_table(grid, runs[runs["seed"] == 0]))
    assert {row["verdict"] for row in rows} == {"", "reference", statistics.ONE_SEED}
    assert {row["low"] + row["p"] + row["metric_sd"] for row in rows} == {""}
