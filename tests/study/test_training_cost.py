"""Training costs and the further columns of records.csv, against sums done by hand."""

import copy
import json
from types import SimpleNamespace

import pytest
from claims_made_up import made_up_grid, raw_params, write_grid

from ifap.errors import ResultsError
from ifap.registry import entry_names
from ifap.study import paths
from ifap.study.config.rivals import MethodOptions
from ifap.study.paper import vocabulary as names
from ifap.study.paths import Cell
from ifap.study.report import records
from ifap.study.report import training_cost as ledger

CONFIG = {
    "baseline": {"epochs": 5},
    "prune": {
        "method": "lth",
        "recovery": {"epochs": 2, "feature_weight": 0.5, "logit_weight": 0.0, "teacher": "original"},
    },
    "finetune": {"epochs": 7},
}
STEPS = [SimpleNamespace(macs=macs) for macs in (100, 60, 30)]
BASELINE, FINETUNING = 3 * 5 * 10 * 100, 3 * 7 * 10 * 30


def changed(**recovery):
    config = copy.deepcopy(CONFIG)
    config["prune"]["recovery"] |= recovery
    return config


@pytest.mark.parametrize(
    ("recovery", "teachers"),
    [
        ({}, (100, 100)),
        ({"teacher": "previous"}, (100, 60)),
        ({"feature_weight": 0.0, "logit_weight": 1.0}, (100, 100)),
        ({"feature_weight": 0.0}, (0, 0)),
    ],
)
def test_training_is_baseline_recovery_and_fine_tuning(recovery, teachers):
    wanted = 2 * 10 * (3 * 60 + teachers[0]) + 2 * 10 * (3 * 30 + teachers[1])
    found = ledger.training_macs(changed(**recovery), 10, 100, 30, STEPS, from_init=False)
    assert found == BASELINE + wanted + FINETUNING


def test_a_recovery_on_a_part_of_the_samples_costs_less():
    wanted = 2 * 4 * (3 * 60 + 100) + 2 * 4 * (3 * 30 + 100)
    assert (
        ledger.training_macs(changed(samples=4), 10, 100, 30, STEPS, from_init=False) == BASELINE + wanted + FINETUNING
    )
    assert ledger.training_macs(changed(samples=99), 10, 100, 30, STEPS, from_init=False) == ledger.training_macs(
        CONFIG, 10, 100, 30, STEPS, from_init=False
    )


def test_a_method_without_a_baseline_costs_its_own_training_or_nothing_is_said():
    assert ledger.training_macs(CONFIG, 10, 100, 30, STEPS, from_init=True) is None
    assert ledger.training_macs(CONFIG, 10, 100, 30, STEPS, from_init=True, own=7) == 7 + FINETUNING


def test_a_method_that_trains_on_from_the_baseline_has_no_recovery():
    assert ledger.training_macs(CONFIG, 10, 100, 30, STEPS, from_init=False, own=7) == BASELINE + 7 + FINETUNING


def test_every_registered_method_says_what_it_takes_away_and_starts_from():
    assert entry_names("ifap.study.rivals") == set(MethodOptions.model_fields)
    for method, field in MethodOptions.model_fields.items():
        options = field.annotation
        assert names.kind(method) == names.Kind(options.structure, options.start), method
    scoring = entry_names("ifap.methods")
    assert {names.kind(method) for method in scoring} == {names.Kind("channels", "baseline")}
    with pytest.raises(ResultsError, match=r"no method 'ifpa': did you mean 'ifap'\?"):
        names.kind("ifpa")


def runs_of(root, grid):
    write_grid(root, grid)
    return grid, reload(root, grid)


def reload(root, grid):
    (root / paths.records_csv("quick")).write_text(records.records_table(records.collect(grid, root=root)))
    return records.load_records("quick", root=root)


@pytest.fixture
def masked(tmp_path):
    """Runs of a grid in which IFAP runs at two targets, with one network half of whose weights are zero."""
    raw = raw_params()
    raw["scales"]["quick"]["targets"] = {"macs": [0.5]}
    grid, _ = runs_of(tmp_path, made_up_grid(raw))
    path = tmp_path / paths.metrics_file("quick", Cell("classification", "digits", "net_a", "ifap_m50", 0))
    content = json.loads(path.read_text())
    content |= {"params_nonzero": content["params"] // 4, "macs_nonzero": content["macs"] // 2}
    path.write_text(json.dumps(content))
    return grid, reload(tmp_path, grid)


def test_what_a_mask_leaves_is_counted_beside_what_is_there(masked):
    _, runs = masked
    runs = runs[runs["model"] == "net_a"].set_index("method")
    row, base = runs.loc["ifap_m50"], runs.loc["baseline"]
    assert row["sparsity"] == pytest.approx(100 * (1 - row["params_nonzero"] / row["params"]))
    assert row["macs_theoretical_reduction"] == pytest.approx(100 * (row["macs_nonzero"] / base["macs"] - 1))
    assert row["nonzero_params_reduction"] == pytest.approx(100 * (row["params_nonzero"] / base["params"] - 1))
    assert row["macs_theoretical_reduction"] < row["macs_reduction"] < 0
    assert runs.loc["ifap", "sparsity"] == 0
    assert runs.loc["ifap", "macs_theoretical_reduction"] == runs.loc["ifap", "macs_reduction"]


def test_a_variant_says_which_method_it_is(masked):
    grid, runs = masked
    assert runs["method"].unique().tolist() == ["baseline", *grid.methods()]
    kinds = runs[["method", "base_method", "structure", "start", "target"]].drop_duplicates().astype(object)
    kinds = kinds.where(kinds.notna(), "").to_numpy().tolist()
    assert kinds[:3] == [
        ["baseline", "baseline", "", "", ""],
        ["ifap", "ifap", "channels", "baseline", 0.65],
        ["ifap_m50", "ifap", "channels", "baseline", 0.5],
    ]
    records.check_cells(runs, grid, paths.records_csv("quick"))
    runs.loc[runs["method"] == "ifap_m50", "base_method"] = "random"
    with pytest.raises(ResultsError, match=r"row 5, column base_method: 'random', but 'ifap_m50' is ifap in params"):
        records.check_cells(runs, grid, paths.records_csv("quick"))


def test_the_last_recovery_that_was_kept_is_shown_and_training_counted(tmp_path):
    grid, runs = runs_of(tmp_path, made_up_grid())
    row = runs[(runs["model"] == "net_a") & (runs["method"] == "ifap")].iloc[0]
    assert row["validation_after_recovery"] - row["validation_before_recovery"] == pytest.approx(12.5)
    base, last = 5_210_624, int(5_210_624 * 0.347)
    steps = [round(base + part / 3 * (last - base)) for part in (1, 2, 3)]
    quick = raw_params()["scales"]["quick"]
    epochs = {step: quick[step]["default"]["epochs"] for step in ("baseline", "finetune")}
    recovery = sum(3 * macs + base for macs in steps) * quick["prune"]["recovery"]["epochs"]
    assert row["training_macs"] == 1077 * (3 * epochs["baseline"] * base + recovery + 3 * epochs["finetune"] * last)
    assert runs.loc[0, "training_macs"] == 1077 * 3 * epochs["baseline"] * base
    assert grid.options.grid["classification"].methods == ["ifap", "magnitude", "random"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("structure", "channel", "unknown structure 'channel': did you mean 'channels'"),
        ("start", "scratch", "unknown start 'scratch': "),
        ("base_method", "", "is empty"),
        ("sparsity", "", "is empty"),
        ("training_macs", "much", "'much' is no number"),
    ],
)
def test_wrong_values_of_the_further_columns_are_one_line(tmp_path, column, value, message):
    runs_of(tmp_path, made_up_grid())
    path = tmp_path / paths.records_csv("quick")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[3][lines[0].index(column)] = value
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    with pytest.raises(ResultsError, match=f"row 4, column {column}: {message}"):
        records.load_records("quick", root=tmp_path)
