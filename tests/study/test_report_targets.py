"""The reductions that the paper prints, as targets."""

from __future__ import annotations

import csv

import pytest
from workflow_project import ROOT

from ifap.errors import ConfigError
from ifap.study.paper.reductions import published_reduction
from ifap.study.paper.vocabulary import DATASETS, MODELS
from ifap.study.paths import Cell


def cell(dataset, model):
    return Cell("classification", dataset, model, "ifap", 0)


def test_every_reduction_of_table_2_is_the_target_of_its_cell():
    with open(ROOT / "data" / "paper" / "claims.csv", newline="") as stream:
        printed = [row for row in csv.DictReader(stream) if (row["table"], row["quantity"]) == ("2", "gmacs_delta")]
    assert len(printed) == 90
    for row in printed:
        wanted = -float(row["value"]) / 100
        assert published_reduction(cell(DATASETS[row["dataset"]].name, MODELS[row["model"]]), "macs") == wanted


def test_a_pair_that_is_not_printed_is_named():
    with pytest.raises(ConfigError, match="prints no reduction of macs for resnet_tiny on digits: set target"):
        published_reduction(cell("digits", "resnet_tiny"), "macs")
