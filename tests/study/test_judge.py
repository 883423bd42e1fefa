"""Verdicts on every published number, from made-up runs."""

import csv
import io
from collections import Counter
from functools import cache

import pandas as pd
import pytest
from claims_made_up import ROOT, made_up_grid, made_up_structure, raw_params

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.config.params import Params
from ifap.study.grid import Grid
from ifap.study.paper import published
from ifap.study.paper.audit.checks import run_audit
from ifap.study.paper.audit.findings import Finding
from ifap.study.report import judge as verdicts
from ifap.study.report import records
from ifap.study.report.full_size import load_counts
from ifap.study.report.record import TRACE_COLUMNS

PUBLISHED = ROOT / paths.published_claims()


@cache
def claims():
    return published.load_claims(PUBLISHED)


@cache
def findings():
    return tuple(run_audit(claims()))


def source(scale="quick", runs=(), trace=(), structure=()):
    raw = raw_params()
    raw["scales"][scale] = raw["scales"]["quick"]
    grid = Grid(Params.model_validate(raw), scale)
    return verdicts.Source(
        grid,
        pd.DataFrame(runs, columns=[*records.RECORD_COLUMNS, "record"]),
        pd.DataFrame(trace, columns=[*TRACE_COLUMNS, "record"]),
        {},
        dict(structure),
    )


def run(seed=0, **values):
    cell = {"task": "classification", "dataset": "cifar10", "model": "resnet50", "method": "ifap", "seed": seed}
    return {**cell, "record": f"m{seed}", **values}


def judge(source):
    return {row.id: row for row in verdicts.judge(claims(), source, findings())}


def test_every_claim_has_a_verdict_and_a_reason():
    rows = judge(source())
    assert len(rows) == 1206
    assert Counter(row.verdict for row in rows.values()) == {"not attempted": 1140, "inconsistent in the source": 66}
    assert rows["T2/CIFAR-10/ResNet-50/metric_pruned"].reason == (
        "scale quick does not run CIFAR-10 with ResNet-50; data not present: put CIFAR-10 (cifar-10-batches-py/) at "
        "data/raw/cifar10 and run scale paper, once params.yaml defines it"
    )
    assert rows["T5/SST-2/GPT-2 Base/params_pruned"].verdict == "inconsistent in the source"
    delta = rows["T2/ImageNet/ConvNeXt-Small/metric_delta"]
    assert delta.reason.startswith("metric-delta-2: ")
    assert "printed -1.82" in delta.reason


@pytest.mark.parametrize(
    ("scale", "top1", "verdict"),
    [
        ("paper", [97.2, 97.3], "reproduced"),
        ("paper", [97.0, 97.1], "not reproduced"),
        ("paper", [96.0, 98.0], "reproduced"),  # 0.63 off, within two standard deviations
        ("study", [97.63], "not comparable (scale)"),
    ],
)
def test_accuracies_are_compared_within_the_tolerance(scale, top1, verdict):
    runs = [
        run(seed, metric="top1", test_metric=value, metric_delta=-0.5, baseline_metric=98.0)
        for seed, value in enumerate(top1)
    ]
    row = judge(source(scale, runs))["T2/CIFAR-10/ResNet-50/metric_pruned"]
    assert (row.verdict, row.n, row.tolerance) == (verdict, len(top1), "max(0.5 points, 2 sd)")
    assert row.mean == pytest.approx(sum(top1) / len(top1))
    assert row.records.startswith("m0")


def test_a_change_relative_to_nothing_has_no_value_and_says_so():
    nothing = run(metric="top1", test_metric=4.0, metric_delta=4.0, baseline_metric=0.0)
    row = judge(source("study", [nothing]))["T2/CIFAR-10/ResNet-50/metric_delta"]
    assert (row.verdict, row.mean) == ("not attempted", None)
    assert row.reason == "the unpruned network scores 0, so that no relative change is defined"


def test_the_change_of_a_metric_is_that_of_the_metric_that_its_row_prints():
    # Printed in percent like an accuracy, of which there is none here.
    own = run(metric="miou", test_metric=68.9, metric_delta=-1.3, baseline_metric=70.2)
    own |= {"task": "segmentation", "dataset": "cityscapes", "model": "fcn_vgg19_bn"}
    name = "T3/Cityscapes/FCN (VGG19-BN)/metric_delta"
    assert judge(source("paper", [own]))[name].mean == pytest.approx(100 * -1.3 / 70.2)
    assert judge(source("paper", [own | {"metric": "pixel_accuracy"}]))[name].mean is None


def test_a_smaller_network_stands_for_a_published_one_and_says_so():
    half = run(macs=5e9, macs_reduction=-60.0) | {
        "task": "generation", "dataset": "coco2017", "model": "stable_diffusion_half",
    }  # fmt: skip
    name = "T3/COCO 2017/Stable Diffusion v1.5/gmacs_delta"
    assert judge(source("study", [half]))[name].reason == (
        "measured at scale study, which is not the paper's, on stable_diffusion_half, which stands for "
        "Stable Diffusion v1.5"
    )
    at_paper = judge(source("paper", [half]))[name]
    assert (at_paper.verdict, at_paper.mean) == ("not comparable (scale)", -60.0)
    whole = half | {"model": "stable_diffusion_v1_5", "macs_reduction": -60.2, "record": "m1"}
    assert (own := judge(source("paper", [half, whole]))[name]).verdict == "reproduced"
    assert own.records == "m1"


@pytest.mark.parametrize(("metric", "verdict"), [("fid_random", "not comparable (scale)"), ("fid_inception", None)])
def test_a_distance_by_other_features_is_shown_and_not_compared_with_an_fid(metric, verdict):
    name = "T3/CIFAR-10/DCGAN/metric_base"
    printed = claims().set_index("id").loc[name, "number"]
    own = run(metric=metric, test_metric=printed, metric_delta=0.0, baseline_metric=printed)
    row = judge(source("paper", [own | {"task": "generation", "model": "dcgan", "method": "baseline"}]))[name]
    assert row.mean == printed
    assert row.verdict == (verdict or "reproduced")
    assert ("no FID" in row.reason) == (verdict is not None)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "reproduced"), (1.1, "not reproduced")])
def test_costs_are_compared_within_one_percent_and_rounding(factor, verdict):
    printed = claims().set_index("id").loc["T2/CIFAR-10/ResNet-50/gmacs_pruned", "number"]
    rows = judge(source("paper", [run(macs=factor * printed * 1e9, macs_reduction=-68.0)]))
    row = rows["T2/CIFAR-10/ResNet-50/gmacs_pruned"]
    assert (row.verdict, row.tolerance.partition(" +")[0]) == (verdict, "1 % of ours")


def test_the_trace_begins_with_the_unpruned_network():
    trace = [run(iteration=0, params=23_530_000, macs=4.09e9, top1=98.1, top5=99.8)]
    for each in trace:
        each["record"] = f"t{each['iteration']}"
    rows = judge(source("paper", [run()], trace))
    assert rows["T4/Cifar-10/ResNet-50/1/params"].verdict == "reproduced"
    assert rows["T4/Cifar-10/ResNet-50/2/params"].verdict == "not attempted"


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_costs_counted_at_full_size_are_compared_at_every_scale(scale):
    rows = judge(source(scale, structure=made_up_structure()))
    base, pruned, delta = (rows[f"T2/CIFAR-10/ResNet-50/gmacs_{name}"] for name in ("base", "pruned", "delta"))
    assert (base.mean, pruned.mean, delta.mean) == (4.05, 1.1745, -71.0)
    # 0.05 off, 0.0405 + 0.05 allowed; the change is what the network was pruned to
    assert [row.verdict for row in (base, pruned, delta)] == ["reproduced", "reproduced", "reachable"]
    assert base.reason.startswith("full-size network at 224 px, no training needed; 0.05 from the printed value")
    assert "pruned to this very reduction, 1x1 convolutions included: it can be reached" in delta.reason
    assert {row.records for row in (base, pruned, delta)} == {"results/full_size.csv#L2"}
    assert all(map(verdicts.is_counted, (base, pruned, delta)))
    assert rows["T4/Cifar-10/ResNet-50/1/params"].mean == 23.5
    assert rows["T4/Cifar-10/ResNet-50/2/params"].verdict == "not attempted"
    assert rows["T2/CIFAR-10/ResNet-50/metric_pruned"].verdict == "not attempted"
    wrong = rows["T2/CIFAR-10/VGG19 (BN)/gmacs_base"]
    assert (wrong.verdict, wrong.mean) == ("not reproduced", 21.0)


@pytest.mark.parametrize(("target", "verdict"), [(0.71, "reachable"), (0.7, "reproduced")])
def test_a_run_that_was_pruned_to_the_printed_reduction_does_not_reproduce_it(target, verdict):
    own = run(macs=1.2e9, macs_reduction=-71.0, target_kind="macs", target=target)
    rows = judge(source("paper", [own]))
    assert rows["T2/CIFAR-10/ResNet-50/gmacs_delta"].verdict == verdict
    assert rows["T2/CIFAR-10/ResNet-50/gmacs_pruned"].verdict == "reproduced"
    missed = judge(source("paper", [own | {"macs_reduction": -60.0}]))
    assert missed["T2/CIFAR-10/ResNet-50/gmacs_delta"].verdict == "not reproduced"


def test_no_recorded_number_that_holds_by_construction_is_called_reproduced():
    rows = [row for row in judge(source(structure=load_counts(root=ROOT))).values() if row.records]
    assert {row.quantity for row in rows if row.verdict == "reachable"} == {
        "gmacs_delta", "params_delta", "params_pruned",
    }  # fmt: skip
    assert Counter(row.verdict for row in rows) == {"reachable": 167, "reproduced": 155, "not reproduced": 137}
    assert not [row.id for row in rows if row.verdict == "reproduced" and "pruned to this" in row.reason]


def test_a_reduction_that_was_not_reached_says_why():
    rows = judge(source(structure=made_up_structure()))
    row = rows["T2/CIFAR-10/VGG19 (BN)/gmacs_delta"]
    assert (row.verdict, row.mean, row.records) == ("not attempted", None, "")
    assert row.reason == (
        "the full-size network at 224 px could not be pruned to the printed reduction; "
        "target macs=0.7 cannot be reached"
    )


def test_a_trained_network_of_the_paper_s_size_is_better_than_a_count():
    runs = [run(macs=1.3e9, macs_reduction=-68.0)]
    name = "T2/CIFAR-10/ResNet-50/gmacs_pruned"
    assert judge(source("paper", runs, structure=made_up_structure()))[name].records == "m0"
    assert judge(source("quick", runs, structure=made_up_structure()))[name].records == "results/full_size.csv#L2"


def test_a_measured_claim_keeps_what_the_audit_found():
    name = "T2/CIFAR-10/ResNet-50/gmacs_pruned"
    finding = Finding("cost-delta", "minor", "Made up", "1 + 1\n= 3", (name,), "cost-delta-9")
    own = source(structure=made_up_structure())
    rows = {row.id: row for row in verdicts.judge(claims(), own, [finding])}
    assert rows[name].verdict == "reproduced"
    assert rows[name].reason.endswith("; inconsistent in the source: cost-delta-9: Made up: 1 + 1 | = 3")
    assert verdicts.finding_name(rows[name]) == "cost-delta-9"
    assert verdicts.finding_name(rows["T2/CIFAR-10/ResNet-50/gmacs_base"]) is None
    unmeasured = {row.id: row for row in verdicts.judge(claims(), source(), [finding])}[name]
    assert (unmeasured.verdict, verdicts.finding_name(unmeasured)) == ("inconsistent in the source", "cost-delta-9")


def test_table_3_takes_only_unpruned_networks():
    counts = {key: row for key, row in load_counts(root=ROOT).items() if row[1].KIND == "classifier"}
    rows = judge(source(structure=counts))
    taken = {(row.table, row.quantity) for row in rows.values() if row.records}
    assert taken == {
        *((2, f"gmacs_{name}") for name in ("base", "pruned", "delta")), (3, "gmacs_base"), (4, "gmacs"), (4, "params"),
    }  # fmt: skip
    bases = Counter(row.verdict for row in rows.values() if (row.table, row.quantity) == (2, "gmacs_base"))
    assert bases == {"reproduced": 63, "not reproduced": 27}  # as docs/study.md says
    assert all(row.n == 1 and row.sd is None for row in rows.values() if row.records)


def test_a_cell_of_the_grid_without_a_record_says_so():
    raw = raw_params(models=["resnet50"])
    task = raw["scales"]["quick"]["grid"]["classification"]
    task["datasets"] = ["cifar10"]
    raw["scales"]["quick"]["datasets"]["cifar10"] = raw["scales"]["quick"]["datasets"]["digits"]
    empty = source()
    rows = judge(verdicts.Source(made_up_grid(raw), empty.runs, empty.trace))
    assert rows["T2/CIFAR-10/ResNet-50/metric_pruned"].reason.startswith("no record of cifar10/resnet50/ifap")
    assert "put densenet121 and ifap into" in rows["T2/CIFAR-10/DenseNet-121/metric_pruned"].reason


def test_an_unknown_published_name_is_an_error():
    wrong = claims().copy()
    wrong.loc[3, "model"] = "ResNet-51"
    with pytest.raises(ResultsError, match=r"claims.csv: row 5, column model: 'ResNet-51' has no name here"):
        verdicts.judge(wrong, source(), ())


def test_only_what_the_scale_measured_is_gathered():
    runs = [run(metric="top1", test_metric=97.2, metric_delta=-0.5, baseline_metric=98.0)]
    judged = list(judge(source("paper", runs, structure=made_up_structure())).values())
    lines = list(csv.DictReader(io.StringIO(verdicts.measured_table(judged))))
    assert [line["id"] for line in lines] == [row.id for row in judged if row.records == "m0"]
    assert {line["records"] for line in lines} == {"m0"}
