"""The three stages of the report from a folder of made-up records, as a user runs them."""

import csv
import importlib
import shutil

import claims_made_up
import pytest
import yaml
from claims_made_up import ROOT, raw_params, write_grid

from ifap.errors import ConfigError, ResultsError
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.paths import Cell
from ifap.study.report.tables.report import Report

MODEL = "resnet_tiny"


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """A project folder with records of one network; returns the main functions of the stages."""
    monkeypatch.setattr(claims_made_up, "MODELS", {MODEL: claims_made_up.MODELS["net_a"]})
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    raw = raw_params(models=[MODEL], every_table=True)
    raw["tables"]["table-4"]["model"] = MODEL
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    paths.templates_dir().parent.mkdir()
    paths.templates_dir().symlink_to(ROOT / paths.templates_dir())
    paths.published_claims().parent.mkdir(parents=True)
    shutil.copy(ROOT / paths.published_claims(), paths.published_claims())
    write_grid(tmp_path, Grid(load_params(), "quick"))
    return {name: importlib.import_module(f"stages.{name}").main for name in ("collect", "tables", "figures")}


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_records_to_report_twice_gives_the_same_bytes(stages, tmp_path, capsys):
    for main in stages.values():
        main()
    first = snapshot(tmp_path)
    report = paths.report_dir("quick")
    assert {path.relative_to(tmp_path) for path in first} >= {
        paths.records_csv("quick"),
        paths.trace_csv("quick"),
        paths.measured_csv("quick"),
        *(report / f"table-{number}.{extension}" for number in (1, 2, 3, 4, 5) for extension in TABLE_FORMATS),
        paths.figure_file("quick", "top1", "svg"),
        paths.report_page("quick"),
    }
    for main in stages.values():
        main()
    assert snapshot(tmp_path) == first
    assert "4 of 4 cells" in capsys.readouterr().out


def test_a_stale_cell_leaves_the_outputs_as_they_were(stages, tmp_path):
    stages["collect"]()
    before = snapshot(tmp_path / paths.scale_dir("quick"))
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("alpha: 1.5", "alpha: 2.5"))
    with pytest.raises(ResultsError, match=r"prune.alpha=1.5 \(params.yaml: 2.5\)"):
        stages["collect"]()
    assert snapshot(tmp_path / paths.scale_dir("quick")) == before


def test_costs_counted_at_full_size_are_in_claims_tables_and_page(stages, tmp_path):
    shutil.copy(ROOT / paths.full_size_csv(), paths.full_size_csv())
    for main in stages.values():
        main()
    claims = Report.load(Grid(load_params(), "quick")).claims
    counted = [claim for claim in claims if claim.records.startswith("results/full_size.csv#L")]
    assert {claim.verdict for claim in counted} == {"reproduced", "reachable", "not reproduced"}
    assert len(counted) == 459
    table = paths.table_file("quick", "table-2", "md").read_text()
    assert "| 4.2 [4.39]" in table
    assert "costs: 2 reproduced, 1 reachable" in table
    assert "costs: 3" not in table  # at least the change holds by construction
    assert "459 verdicts are about costs" in paths.report_page("quick").read_text()
    assert "167 of them are <em>reachable</em>" in paths.report_page("quick").read_text()


def test_check_writes_nothing(stages):
    stages["collect"](check=True)
    assert not paths.records_csv("quick").exists()


def test_allow_missing_names_the_gaps(stages, capsys):
    gone = Cell("classification", "digits", MODEL, "random", 0)
    paths.metrics_file("quick", gone).unlink()
    stages["collect"](allow_missing=True)
    assert capsys.readouterr().err == f"missing: {gone}: no record\n"
    stages["tables"](table="table-2")
    assert "not attempted: no record for seed 0" in paths.table_file("quick", "table-2", "md").read_text()


def test_recorded_rows_of_cells_that_are_not_here_are_kept_on_request(stages, tmp_path, capsys):
    stages["collect"]()
    before = snapshot(tmp_path / paths.scale_dir("quick"))
    gone = Cell("classification", "digits", MODEL, "baseline", 0)
    shutil.rmtree(paths.cell_dir("quick", gone))
    assert "cells: " not in capsys.readouterr().out
    stages["collect"](keep_recorded=True)
    assert capsys.readouterr().out.endswith("cells: 3 here, 1 kept as recorded, 0 missing\n")
    after = snapshot(tmp_path / paths.scale_dir("quick"))
    assert after == {path: content for path, content in before.items() if path in after}
    assert tmp_path / paths.missing_csv("quick") not in after
    with pytest.raises(ResultsError, match=rf"^1 missing: {gone}$"):
        stages["collect"]()


def test_wrong_names_are_refused_before_anything_is_read(stages):
    with pytest.raises(ConfigError, match="unknown table 'table-9'"):
        stages["tables"](table="table-9")
    with pytest.raises(ConfigError, match="unknown scale 'quik': did you mean 'quick'"):
        stages["figures"](scale="quik")
    with pytest.raises(ResultsError, match=r"records\.csv not found: run python -m stages\.collect --scale quick"):
        stages["tables"]()


@pytest.mark.parametrize(
    ("name", "column", "change", "message"),
    [
        ("records", "test_metric", "nan", "row 3, column test_metric: 'nan' is not finite"),
        ("records", "macs", "many", "row 3, column macs: 'many' is no number"),
        (
            "records",
            "model",
            "resnet_tini",
            f"row 3, column model: unknown model 'resnet_tini': did you mean '{MODEL}'",
        ),
        ("trace", "method", "baseline2", "row 3, column method: unknown method 'baseline2'"),
    ],
)
def test_a_wrong_value_is_one_line_and_leaves_the_tables_of_yesterday(stages, tmp_path, name, column, change, message):
    stages["collect"]()
    stages["tables"]()
    before = snapshot(tmp_path / "reports/quick")
    path = paths.scale_dir("quick") / f"{name}.csv"
    lines = list(csv.reader(path.open(newline="")))
    lines[2][lines[0].index(column)] = change
    write_csv(path, lines)
    with pytest.raises(ResultsError) as error:
        stages["tables"]()
    assert f"{path}: {message}" in str(error.value)
    assert "\n" not in str(error.value)
    assert snapshot(tmp_path / "reports/quick") == before


@pytest.mark.parametrize("name", ["records", "trace"])
def test_missing_and_doubled_columns_are_named(stages, name):
    stages["collect"]()
    path = paths.scale_dir("quick") / f"{name}.csv"
    whole = list(csv.reader(path.open(newline="")))
    write_csv(path, [line[:3] + line[4:] for line in whole])
    with pytest.raises(ResultsError, match=rf"{name}.csv: row 1: .*column {whole[0][3]} is missing"):
        stages["tables"]()
    write_csv(path, [[*line, line[3]] for line in whole])
    with pytest.raises(ResultsError, match=rf"{name}.csv: row 1: .*column {whole[0][3]} is doubled"):
        stages["tables"]()


def write_csv(path, lines):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
