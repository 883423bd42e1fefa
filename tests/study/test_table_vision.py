"""Table III from made-up runs: its parts, what each measures, and which end of a metric is the good one."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from claims_made_up import made_up_grid, raw_params

from ifap.study.paper.vocabulary import best
from ifap.study.report.records import RECORD_COLUMNS
from ifap.study.report.tables.build import build_table, has_cells
from ifap.study.report.tables.render import render
from ifap.study.report.tables.report import Report

SIZES = {"classification": ("cifar100", "resnet50"), "detection": ("pascal_voc", "detr_vit_b_16"),
         "generation": ("coco2017", "stable_diffusion_half")}  # fmt: skip


def dense_grid(methods=("ifap", "random")):
    raw = raw_params()
    quick = raw["scales"]["quick"]
    quick["grid"] = {
        task: {"datasets": [dataset], "models": [model], "methods": list(methods)}
        for task, (dataset, model) in SIZES.items()
    }
    # A network of Table II alone.
    quick["grid"]["classification"]["models"].append("densenet121")
    quick["grid"]["detection"]["datasets"].append("coco2017")
    own = {"split_seed": 0, "synthetic": {"classes": 2, "per_class": 4, "seed": 0}}
    quick["datasets"] = {"cifar100": own, "pascal_voc": own, "coco2017": own}
    return made_up_grid(raw)


def run(task, method, metric, score, dataset=None, macs=4e6):
    cell = {"task": task, "dataset": dataset or SIZES[task][0], "model": SIZES[task][1], "method": method, "seed": 0}
    base = {"macs_base": 1e7, "params_base": 1e5, "macs": macs, "params": 4e4, "macs_reduction": -60.0}
    return cell | base | {
        "scale": "quick", "params_reduction": -60.0, "metric": metric, "baseline_metric": 30.0, "test_metric": score,
        "metric_delta": score - 30.0, "record": "results/quick/records.csv#L2",
    }  # fmt: skip


RUNS = [
    run("classification", "ifap", "top1", 25.0),
    run("detection", "ifap", "map50", 25.0),
    run("detection", "random", "map50", 20.0),
    run("detection", "ifap", "map", 15.0, dataset="coco2017"),
    run("generation", "ifap", "fid_random", 33.0),
    run("generation", "random", "fid_random", 31.0),
]


def table(runs=RUNS, grid=None):
    frame = pd.DataFrame(runs, columns=[*RECORD_COLUMNS, "record"])
    return build_table("table-3", Report(grid or dense_grid(), frame, pd.DataFrame(), []))


def rows(made):
    """Return the rows below each heading."""
    found, here = {}, []
    for row in made.rows:
        if len(row.items) == 1:
            here = found.setdefault(row.items[0].text, [])
        else:
            here.append(row.items)
    return found


def test_each_task_has_its_part_and_says_what_it_measures():
    found = rows(table())
    assert list(found) == [
        "Image classification: top-1 accuracy (%)",
        "Object detection: mAP at an overlap of 0.5 (%), "
        "on coco2017 (synthetic) mAP over overlaps from 0.5 to 0.95 (%)",
        "Image generation: Fr\u00e9chet distance of the features of a random network; less is better",
    ]
    # Of classification what Table III repeats of Table II, by the one method that it is about.
    assert [items[1].text for items in found["Image classification: top-1 accuracy (%)"]] == ["resnet50"]


def test_the_lower_distance_and_the_higher_precision_is_best():
    classes, boxes, images = rows(table()).values()
    assert [items[10].bold for items in boxes[:2]] == [True, False]
    assert [items[10].bold for items in images] == [False, True]
    assert [items[10].text for items in images] == ["33.00", "31.00"]
    assert classes[0][10].bold


def test_a_network_that_stands_for_another_is_named():
    text = render(table(), "md")
    assert "stable\\_diffusion\\_half stands for stable\\_diffusion\\_v1\\_5" in text


def test_what_did_not_run_says_so():
    found = rows(table([each for each in RUNS if each["task"] != "generation"]))
    assert [items[-1].text for items in found["Image generation"]] == ["not attempted: no record for seed 0"] * 2


def test_a_scale_without_such_networks_shows_the_published_table_alone():
    grid = made_up_grid()
    assert not has_cells("table-3", grid)
    assert has_cells("table-3", dense_grid())
    assert table([], grid).published is None


@pytest.mark.parametrize(
    ("metric", "values", "wanted"),
    [("top1", [1.0, 3.0, math.nan], 3.0), ("fid_random", [2.0, 1.0], 1.0), ("miou", [math.nan], None)],
)
def test_the_best_of_some_values(metric, values, wanted):
    found = best(metric, values)
    assert math.isnan(found) if wanted is None else found == wanted
