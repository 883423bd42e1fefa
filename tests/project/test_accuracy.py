"""The benchmark of accuracies: every method goes the same way, and what is compared was planted."""

from __future__ import annotations

import csv
import dataclasses

import pandas as pd
import pytest
import torch

import ifap
from benchmarks import accuracy, accuracy_setting, accuracy_table
from ifap.data import Split
from ifap.errors import ResultsError
from ifap.study.models import MODELS

RIVALS = [name for names in accuracy_table.RIVALS.values() for name in names]
METHODS = [*accuracy.OURS, *accuracy.PEERS]


@pytest.fixture(scope="module")
def cases():
    """The networks without training, on random images; no weight is where it begins, at one or zero."""
    made = {}
    for name, size in accuracy.SIZES.items():
        torch.manual_seed(0)
        network = MODELS.get(name)(num_classes=10, in_channels=1, image_size=size).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        images, labels = (
            torch.randn(accuracy_setting.CALIBRATION, 1, size, size),
            torch.arange(accuracy_setting.CALIBRATION) % 10,
        )
        parts = (Split(role, images, labels) for role in ("train", "validation", "test"))
        made[name] = accuracy.Setting(name, 0, network, *parts)
    return made


def tried(method, name):
    """Whether a method is run on a network: of the field's pruners, which are slow, one is run on all of them."""
    is_quick = method not in accuracy.PEERS or name == "resnet_tiny"
    return accuracy.applies(method, name) and (is_quick or method == "tp: group magnitude")


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in METHODS for name in accuracy.SIZES if tried(method, name)]
)
def test_every_method_reaches_the_macs_and_no_more_than_a_little_below(cases, method, name):
    case = cases[name]
    full = ifap.cost(case.network, case.image).macs
    steps = []
    way = accuracy.way(case, method, lambda network, teacher, step: steps.append(ifap.cost(network, case.image).macs))
    # The second target goes on from the first; one network shows it.
    shares = (0.5, 0.7) if name == "resnet_tiny" else (0.5,)
    for share in shares:
        way.prune(full * (1 - share))
        left = ifap.cost(way.network, case.image).macs / full
        assert 1 - share - 0.06 < left <= 1 - share
    assert len(steps) == len(shares) * accuracy.STEPS
    assert steps == sorted(steps, reverse=True)
    assert ifap.cost(case.network, case.image).macs == full, "the trained network was changed"


@pytest.mark.parametrize(("method", "is_penalised"), [("tp: group norm", True), ("tp: group magnitude", False)])
def test_only_the_group_norm_changes_weights_that_no_loss_pulls_at(cases, method, is_penalised):
    case = cases["mobilenet_tiny"]
    changed = []

    def recover(network, teacher, step):
        before = [parameter.clone() for parameter in network.parameters()]
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.optim.SGD(network.parameters(), lr=1.0).step()
        changed.append(any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)))

    accuracy.Peer(case, method, recover).prune(0.5 * ifap.cost(case.network, case.image).macs)
    assert changed == [is_penalised] * accuracy.STEPS


@pytest.mark.filterwarnings("ignore:Pruning exceed")
def test_a_method_without_anything_to_rank_says_so(cases):
    normless = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 16), torch.nn.Linear(16, 10))
    case = dataclasses.replace(cases["resnet_tiny"], network=normless.eval())
    way = accuracy.Peer(case, "tp: bn scale", None)
    with pytest.raises(RuntimeError, match="tp: bn scale does not reach"):
        way.prune(0.5 * ifap.cost(way.network, case.image).macs)


def test_training_and_validation_images_do_not_overlap(monkeypatch):
    images = torch.arange(6000, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    raw = {
        "train": Split("train", images, torch.arange(6000) % 10),
        "test": Split("test", images[:10], torch.arange(10)),
    }
    monkeypatch.setattr(accuracy, "read", lambda folder: {k: _Raw(v.inputs, v.targets) for k, v in raw.items()})
    monkeypatch.setattr(accuracy, "TEST", 10)
    train, validation, test = accuracy.splits(32)
    assert [len(split) for split in (train, validation, test)] == [accuracy.TRAIN, accuracy.VALIDATION, 10]
    assert train.inputs.shape[-2:] == (32, 32)
    numbers = [set(split.inputs[:, 0, 16, 16].tolist()) for split in (train, validation)]
    assert not numbers[0] & numbers[1]


class _Raw:
    def __init__(self, images, targets):
        self.images, self.targets = images, targets


def planted(advantages, noise=(0.0, 0.1, -0.1)):
    """Rows in which ours is ahead of every control by so much in a setting; another method of ours wins on the test."""
    rows = []
    for (network, share), ahead in advantages.items():
        for seed, wobble in enumerate(noise):
            for number, method in enumerate(["ifap", "flow", *RIVALS]):
                test = {"ifap": 90.0, "flow": 80.0 + ahead + wobble}.get(method, 80.0 - number)
                rows.append({
                    "network": network, "seed": seed, "method": method, "share": share, "macs_left": 1 - share,
                    "before_recovery": 50.0, "validation": 40.0 if method == "ifap" else 60.0, "test": test,
                    "dense_test": 85.0, "seconds": 1.0, "peak_mb": 100,
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_one_method_stands_for_ours_on_all_networks():
    compared = accuracy_table.differences(planted({("a", 0.5): 1.0, ("b", 0.7): -3.0}))
    assert {row["ours"] for row in compared} == {"flow"}


def test_a_table_without_ours_says_which_command_makes_it(tmp_path):
    rows = planted({("a", 0.5): 1.0})
    rows[rows.method != "flow"].to_csv(tmp_path / "rows.csv")
    with pytest.raises(ResultsError, match="no rows of 'flow': python -m"):
        accuracy_table.main(tmp_path / "rows.csv")


def test_differences_and_ratios_are_those_of_the_seeds():
    rows = planted({("a", 0.5): 3.0, ("b", 0.7): -3.0})
    compared = accuracy_table.differences(rows)
    assert len(compared) == 2 * len(RIVALS)
    first = compared[0]
    assert (first["rival"], first["seeds"]) == ("magnitude", 3)
    assert first["difference"] == pytest.approx(first["ours_test"] - first["rival_test"]) == pytest.approx(5.0)
    assert first["low"] < 5.0 < first["high"]
    assert {row["rival"] for row in accuracy_table.strongest(compared, "control")} == {"magnitude"}
    assert {row["rival"] for row in accuracy_table.strongest(compared, "peer")} == {accuracy.PEERS[0]}
    better, worse, *_ = accuracy_table.ratios(rows)
    assert better.ratio == pytest.approx(17 / 22)
    assert better.is_met
    assert worse.ratio == pytest.approx(23 / 22)
    assert not worse.is_met
    assert better.low < better.ratio < better.high


def test_a_seed_that_one_side_lacks_is_left_out():
    rows = planted({("a", 0.5): 3.0})
    rows = rows[~((rows.method == "magnitude") & (rows.seed == 2))]
    assert accuracy_table.differences(rows)[0]["seeds"] == 2


def test_rows_are_added_to_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "FILE", tmp_path / "bench" / "accuracy.csv")
    row = dict.fromkeys(accuracy.COLUMNS, 0)
    accuracy.write([row])
    accuracy.write([row, row])
    with accuracy.FILE.open() as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == 3
    assert {"torch", "cpu", "command"} < set(read[0])
