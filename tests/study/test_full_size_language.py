"""Full-size language models: the recorded counts, how they are made and read, and what a damaged file says."""

from __future__ import annotations

import csv
import importlib

import pytest
import torch
from claims_made_up import ROOT

from ifap.costs import count_params
from ifap.errors import ResultsError, TargetError
from ifap.study import paths
from ifap.study.models import MODELS
from ifap.study.paper.published import load_claims
from ifap.study.report import FULL_SIZE_VERSIONS, full_size

CLAIMS = load_claims(ROOT / paths.published_claims())
WANTED = full_size.language_models(CLAIMS)
RECORDED = [row for _, row in full_size.load_counts(root=ROOT).values() if row.KIND == "language"]
ROW = {
    "dataset": "sst2", "model": "bert_base", "head": "classification", "classes": 2, "macs_base": 10**9,
    "params_base": 109_483_778, "published": 35.0, "least": 29_000_000, "parts": "heads and units",
    "macs_pruned": 10**8, "params_pruned": 34_900_000, "distance": -0.286, "trains": "yes", "reloads": "yes",
    "note": "", "version": FULL_SIZE_VERSIONS["language"],
}  # fmt: skip
UNREACHED = {
    "dataset": "rte", "macs_pruned": None, "params_pruned": None, "distance": None, "trains": "", "reloads": "",
    "note": "target params=0.9 cannot be reached",
}  # fmt: skip


def made_up():
    return [full_size.LanguageCount(**ROW), full_size.LanguageCount(**{**ROW, **UNREACHED})]


def test_table_5_asks_for_thirty_networks():
    assert len(WANTED) == 30
    assert {each.model for each in WANTED} == {"bert_base", "gpt2_base", "t5_base"} <= set(MODELS.names())
    assert {each.published for each in WANTED if each.model == "gpt2_base"} >= {36.0, 48.0}
    assert {(each.dataset, each.head, each.classes) for each in WANTED if each.head == "span"} == {
        ("squad", "span", 2), ("record", "span", 2),
    }  # fmt: skip


def test_the_recorded_networks_are_those_of_table_5():
    assert [(row.dataset, row.model, row.published) for row in RECORDED] == [
        (each.dataset, each.model, each.published) for each in WANTED
    ]
    for row in RECORDED:
        assert row.version == FULL_SIZE_VERSIONS["language"]
        assert (row.trains, row.reloads) == ("yes", "yes")
        assert abs(row.distance) <= full_size.LanguageCount.CLOSE
        assert (row.parts == "width too") == (row.least > row.published * 1e6)
        assert ("more: width cut too" in row.note) == (row.parts == "width too")


@pytest.mark.parametrize("row", RECORDED[::5], ids=lambda row: f"{row.model}-{row.dataset}")
def test_the_recorded_networks_are_those_of_the_registry(row):
    stage = importlib.import_module("stages.full_size.language")
    with torch.device("meta"):
        network = MODELS.get(row.model)(row.head, row.classes, stage.VOCABULARY[row.model], stage.MAX_LENGTH)
    assert count_params(network) == row.params_base


@pytest.fixture
def stage(monkeypatch):
    """The stage, with small networks in place of the published ones."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    module = importlib.import_module("stages.full_size.language")
    monkeypatch.setattr(module, "VOCABULARY", {"bert_tiny": 100, "gpt2_tiny": 100})
    monkeypatch.setattr(module, "configure", torch.manual_seed)
    return module


def small(dataset, published, model="bert_tiny", head="classification"):
    return full_size.Language(dataset=dataset, model=model, head=head, classes=2, published=published)


def test_networks_are_pruned_run_and_loaded_in_a_new_process(stage):
    rows = list(stage.measure([small("a", 0.06), small("b", 0.02), small("c", 0.05, head="span")]))
    assert [(row.dataset, row.trains, row.reloads) for row in rows] == [
        ("a", "yes", "yes"), ("b", "yes", "yes"), ("c", "yes", "yes"),
    ]  # fmt: skip
    assert [row.parts for row in rows] == ["heads and units", "width too", "heads and units"]
    for row in rows:
        assert row.params_pruned <= row.published * 1e6 < row.params_base
        assert full_size.distance(row.params_pruned, row.published) == pytest.approx(row.distance, abs=1e-3)
        assert row.least < row.params_base
    assert "heads and feed-forward units leave at least 0.0 M" in rows[1].note


def test_what_cannot_be_pruned_is_a_note(stage, monkeypatch):
    def refuse(*args, **options):
        raise TargetError("made\nup")

    monkeypatch.setattr(stage.ifap, "prune", refuse)
    (row,) = stage.measure([small("a", 0.06)])
    assert (row.params_pruned, row.trains, row.reloads, row.note) == (None, "", "", "made up")


def test_what_a_row_says_about_the_claims():
    row, missed = made_up()
    claims = {q: {"table": 5, "quantity": q} for q in ("params_base", "params_pruned", "params_delta", "metric_base")}
    found = {q: row.measured(claim) for q, claim in claims.items()}
    assert found["params_base"] == pytest.approx(109.483778)
    assert found["params_pruned"] == pytest.approx(34.9)
    assert found["params_delta"] == pytest.approx(-68.123, abs=1e-3)
    assert found["metric_base"] is None
    assert missed.measured(claims["params_pruned"]) is None
    assert row.measured({"table": 2, "quantity": "params_pruned"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1].pop(), "row 2: 23 values for 24 columns"),
        (lambda lines: lines[1].__setitem__(9, "many"), "row 2, .*params_base"),
        (lambda lines: lines[1].__setitem__(17, "0.5"), "row 2, .*distance: is not what"),
        (lambda lines: lines[1].__setitem__(15, ""), "row 2, .*note: says why"),
        (lambda lines: lines.append(lines[1]), "row 4, column model: sst2/bert_base is doubled"),
        (lambda lines: [line.pop(4) for line in lines], "row 1: .*column classes is missing"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, message):
    path = tmp_path / paths.full_size_csv()
    path.parent.mkdir()
    path.write_text(full_size.counts_table(made_up()))
    assert [row for _, row in full_size.load_counts(root=tmp_path).values()] == made_up()
    lines = list(csv.reader(path.open(newline="")))
    change(lines)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    with pytest.raises(ResultsError, match=f"^malformed results/full_size.csv: {message}") as error:
        full_size.load_counts(root=tmp_path)
    assert "\n" not in str(error.value)
