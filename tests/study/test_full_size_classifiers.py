"""Full-size networks: the recorded counts, how they are made and read, and what a damaged file says."""

from __future__ import annotations

import csv
import importlib
import shutil

import pytest
import torch
from claims_made_up import ROOT, made_up_structure

from ifap.costs import cost
from ifap.errors import ResultsError, TargetError
from ifap.study import paths
from ifap.study.models import MODELS
from ifap.study.paper.published import load_claims
from ifap.study.report import STRUCTURE_VERSION
from ifap.study.report.full_size import classifiers as structure

PUBLISHED = ROOT / paths.published_claims()


@pytest.fixture(scope="module")
def recorded():
    return [row for _, row in structure.load_structure(root=ROOT).values()]


def test_the_recorded_counts_are_those_of_table_2(recorded):
    networks = structure.wanted(load_claims(PUBLISHED))
    assert len(networks) == 90
    assert [(row.dataset, *row.subject) for row in recorded] == [(each.dataset, *each.subject) for each in networks]
    assert {row.version for row in recorded} == {STRUCTURE_VERSION}


def test_the_recorded_reductions_are_the_published_ones(recorded):
    for row in recorded:
        assert row.note or 0 <= row.reduction - row.reduction_published <= structure.CLOSE


@pytest.mark.parametrize("model", ["resnet50", "mobilenet_v3_large", "inception_v3"])
def test_the_recorded_networks_are_those_of_the_registry(recorded, model):
    row = next(row for row in recorded if row.model == model and row.dataset == "cifar100")
    with torch.device("meta"):
        network = MODELS.get(model)(num_classes=100, in_channels=3, image_size=row.image_size).eval()
        counted = cost(network, torch.zeros(1, 3, row.image_size, row.image_size))
    assert (counted.macs, counted.params) == (row.macs_base, row.params_base)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """The stage in a folder with the published claims, its networks replaced by small ones."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    paths.published_claims().parent.mkdir(parents=True)
    shutil.copy(PUBLISHED, paths.published_claims())
    module = importlib.import_module("stages.structure")
    few = [each for each in structure.wanted(load_claims(PUBLISHED)) if each.model in ("resnet50", "vgg19_bn")][:5]
    small = [each.model_copy(update={"model": "resnet_tiny", "image_size": 32}) for each in few if each.model != "vgg"]
    names = [f"set{number}" for number in range(len(small))]
    small = [each.model_copy(update={"dataset": name}) for each, name in zip(small, names, strict=True)]
    small[1] = small[0].model_copy(update={"dataset": "twin"})
    monkeypatch.setattr(module, "wanted", lambda claims: small)
    monkeypatch.setattr(module, "configure", torch.manual_seed)
    return module


def rows():
    return [row for _, row in structure.load_structure().values()]


def test_networks_are_counted_once_and_rows_are_kept(stage, monkeypatch):
    measured = []

    def measure(network, really=stage.measure):
        measured.append(network.subject)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return really(network)

    monkeypatch.setattr(stage, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        stage.main()
    assert [row.dataset for row in rows()] == ["set0", "twin", "set2"]
    stage.main()
    whole = paths.structure_csv().read_bytes()
    assert [row.dataset for row in rows()] == ["set0", "twin", "set2", "set3", "set4"]
    assert len(measured) == 5  # three subjects more than two, and one of them twice
    assert all(abs(row.reduction - row.reduction_published) < structure.CLOSE for row in rows())
    stage.main()
    assert paths.structure_csv().read_bytes() == whole
    assert len(measured) == 5
    monkeypatch.setattr(stage, "STRUCTURE_VERSION", STRUCTURE_VERSION + 1)
    stage.main()
    assert len(measured) == 9


def test_two_counts_are_the_same(stage):
    network = stage.wanted(None)[0]
    assert stage.measure(network) == stage.measure(network)


def test_a_reduction_out_of_reach_is_a_note(stage, monkeypatch):
    row = stage.measure(stage.wanted(None)[0].model_copy(update={"reduction": 0.9999}))
    assert (row.macs_pruned, row.params_pruned, row.reduction) == (None, None, None)
    assert "target macs=0.9999 cannot be reached: at most" in row.note
    assert row.macs_base > 0

    def refuse(*args, **options):
        raise TargetError("made\nup")

    monkeypatch.setattr(stage.ifap, "prune", refuse)
    assert stage.measure(stage.wanted(None)[0]).note == "made up"


def test_no_file_is_no_count(tmp_path):
    assert structure.load_structure(root=tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1].pop(), "row 2: 11 values for 12 columns"),
        (lambda lines: lines[1].__setitem__(4, "many"), "row 2, .*macs_base"),
        (lambda lines: lines[1].__setitem__(9, "0.72"), "row 2, .*reduction: is not what"),
        (lambda lines: lines[1].__setitem__(7, ""), "row 2, .*note: says why"),
        (lambda lines: lines[2].__setitem__(10, ""), "row 3, .*note: says why"),
        (lambda lines: lines.append(lines[1]), "row 4, column model: cifar10/resnet50 is doubled"),
        (lambda lines: [line.pop(3) for line in lines], "row 1: .*column image_size is missing"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, message):
    path = tmp_path / paths.structure_csv()
    path.parent.mkdir()
    path.write_text(structure.structure_table(row for _, row in made_up_structure().values()))
    assert structure.load_structure(root=tmp_path) == made_up_structure()
    lines = list(csv.reader(path.open(newline="")))
    change(lines)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    with pytest.raises(ResultsError, match=f"^malformed results/structure.csv: {message}") as error:
        structure.load_structure(root=tmp_path)
    assert "\n" not in str(error.value)
