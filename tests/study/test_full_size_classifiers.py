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
from ifap.study.report import FULL_SIZE_VERSIONS, full_size

PUBLISHED = ROOT / paths.published_claims()


@pytest.fixture(scope="module")
def recorded():
    return [row for _, row in full_size.load_counts(root=ROOT).values() if row.KIND == "classifier"]


def test_the_recorded_counts_are_those_of_table_2(recorded):
    networks = full_size.classifiers(load_claims(PUBLISHED))
    assert len(networks) == 90
    assert [(row.dataset, *row.subject) for row in recorded] == [(each.dataset, *each.subject) for each in networks]
    assert {row.version for row in recorded} == {FULL_SIZE_VERSIONS["classifier"]}


def test_the_recorded_reductions_are_the_published_ones(recorded):
    for row in recorded:
        assert row.note or 0 <= row.reduction - row.reduction_published <= full_size.CLOSE


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
    module = importlib.import_module("stages.full_size.__main__")
    few = [each for each in full_size.classifiers(load_claims(PUBLISHED)) if each.model in ("resnet50", "vgg19_bn")][:5]
    small = [each.model_copy(update={"model": "resnet_tiny", "image_size": 32}) for each in few if each.model != "vgg"]
    names = [f"set{number}" for number in range(len(small))]
    small = [each.model_copy(update={"dataset": name}) for each, name in zip(small, names, strict=True)]
    small[1] = small[0].model_copy(update={"dataset": "twin"})
    counting = importlib.import_module("stages.full_size.classifiers")
    monkeypatch.setattr(module, "KINDS", {"classifier": (lambda claims: small, counting.measure)})
    monkeypatch.setattr(counting, "configure", torch.manual_seed)
    counting.small, counting.main = small, module.main
    return counting


def rows():
    return [row for _, row in full_size.load_counts().values()]


def test_networks_are_counted_once_and_rows_are_kept(stage, monkeypatch):
    measured = []

    def count(network, really=stage.count):
        measured.append(network.subject)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return really(network)

    monkeypatch.setattr(stage, "count", count)
    with pytest.raises(KeyboardInterrupt):
        stage.main()
    assert [row.dataset for row in rows()] == ["set0", "twin", "set2"]
    stage.main()
    whole = paths.full_size_csv().read_bytes()
    assert [row.dataset for row in rows()] == ["set0", "twin", "set2", "set3", "set4"]
    assert len(measured) == 5  # three subjects more than two, and one of them twice
    assert all(abs(row.reduction - row.reduction_published) < full_size.CLOSE for row in rows())
    stage.main()
    assert paths.full_size_csv().read_bytes() == whole
    assert len(measured) == 5
    monkeypatch.setitem(FULL_SIZE_VERSIONS, "classifier", FULL_SIZE_VERSIONS["classifier"] + 1)
    stage.main()
    assert len(measured) == 9


def test_two_counts_are_the_same(stage):
    assert stage.count(stage.small[0]) == stage.count(stage.small[0])


def test_a_reduction_out_of_reach_is_a_note(stage, monkeypatch):
    row = stage.count(stage.small[0].model_copy(update={"reduction_published": 0.9999}))
    assert (row.macs_pruned, row.params_pruned, row.reduction) == (None, None, None)
    assert "target macs=0.9999 cannot be reached: at most" in row.note
    assert row.macs_base > 0

    def refuse(*args, **options):
        raise TargetError("made\nup")

    monkeypatch.setattr(stage.ifap, "prune", refuse)
    assert stage.count(stage.small[0]).note == "made up"


def test_no_file_is_no_count(tmp_path):
    assert full_size.load_counts(root=tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1].pop(), "row 2: 23 values for 24 columns"),
        (lambda lines: lines[1].__setitem__(8, "many"), "row 2, .*macs_base"),
        (lambda lines: lines[1].__setitem__(16, "0.72"), "row 2, .*reduction: is not what"),
        (lambda lines: lines[1].__setitem__(14, ""), "row 2, .*note: says why"),
        (lambda lines: lines[2].__setitem__(22, ""), "row 3, .*note: says why"),
        (lambda lines: lines.append(lines[1]), "row 4, column model: cifar10/resnet50 is doubled"),
        (lambda lines: lines[1].__setitem__(0, "clasifier"), "row 2, column kind: .*did you mean 'classifier'"),
        (lambda lines: lines[1].__setitem__(3, "span"), "row 2, head: Extra inputs"),
        (lambda lines: [line.pop(5) for line in lines], "row 1: .*column image_size is missing"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, message):
    path = tmp_path / paths.full_size_csv()
    path.parent.mkdir()
    path.write_text(full_size.counts_table(row for _, row in made_up_structure().values()))
    assert full_size.load_counts(root=tmp_path) == made_up_structure()
    lines = list(csv.reader(path.open(newline="")))
    change(lines)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    with pytest.raises(ResultsError, match=f"^malformed results/full_size.csv: {message}") as error:
        full_size.load_counts(root=tmp_path)
    assert "\n" not in str(error.value)
