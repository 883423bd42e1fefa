"""A made-up grid of records for the tests of the report; no number here was measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import yaml
from places import ROOT

from ifap.study import paths
from ifap.study.config.params import Params
from ifap.study.grid import Grid
from ifap.study.paper import published
from ifap.study.paper.audit.findings import Finding
from ifap.study.paths import Cell
from ifap.study.report import judge as verdicts
from ifap.study.report.collecting import frames_of, recorded_files, write_recorded
from ifap.study.report.full_size import ClassifierCount
from ifap.study.report.record import EPOCH_FIELDS, TRACE_COLUMNS, Receipt
from ifap.study.report.records import RECORD_COLUMNS, collect
from ifap.study.report.tables.report import Report

MODELS = {"net_a": (5_210_624, 98_410, 97.5), "net_b": (1_204_300, 31_250, 94.1666667)}
# Left of the MACs and of the parameters, and the fall in points; random ties with magnitude on net_a.
METHODS = {"ifap": (0.347, 0.41, 0.8), "magnitude": (0.351, 0.44, 1.9), "random": (0.349, 0.46, 1.9)}
STEPS = 3


def raw_params(seeds=(0,), models=tuple(MODELS), *, every_table=False):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick = raw["scales"]["quick"]
    quick["seeds"] = list(seeds)
    quick["grid"] = {"classification": {"datasets": ["digits"], "models": list(models), "methods": list(METHODS)}}
    quick["models"] = {"default": {"image_size": 32}}
    quick["datasets"] = {"digits": {"validation": 0.2, "test": 0.2, "split_seed": 0}}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {key: value for key, value in quick[step].items() if key in ("default", "recovery")}
    raw["scales"] = {"quick": quick}
    raw["scale"] = raw["published"] = "quick"
    raw["tables"] = {
        "table-2": {"title": "Table II. Made-up results", "task": "classification"},
        **{
            f"table-{number}": {"title": f"Table {numeral}. Made-up"}
            for number, numeral in ((1, "I"), (3, "III"), (5, "V"))
        },
        "table-4": {
            "title": "Table IV. A made-up network over its pruning iterations",
            "task": "classification",
            "dataset": "digits",
            "model": "net_a",
            "method": "ifap",
            "seed": 0,
        },
    }
    if every_table:
        titles = {"table-1": "Table I. Made-up", "table-3": "Table III. Made-up", "table-5": "Table V. Made-up"}
        raw["tables"] |= {name: {"title": title} for name, title in titles.items()}
    return raw


def made_up_grid(raw=None):
    # Validated as types only: the names are not in the registries.
    return Grid(Params.model_validate(copy.deepcopy(raw or raw_params())), "quick")


def final_numbers(cell: Cell):
    macs, params, top1 = MODELS[cell.model]
    if cell.is_baseline:
        return macs, params, top1
    left_macs, left_params, drop = METHODS[cell.method if cell.method in METHODS else cell.method.rpartition("_")[0]]
    return int(macs * left_macs), int(params * left_params), top1 - drop + 0.3 * cell.seed


def metrics(grid: Grid, cell: Cell):
    macs, params, top1 = final_numbers(cell)
    return {
        "schema_version": 2,
        "cell": {"scale": grid.scale, **cell._asdict()},
        "config": grid.config(cell, "evaluate"),
        "metrics": {
            "top1": {"value": top1, "unit": "%", "split": "test"},
            "top5": {"value": 99.5, "unit": "%", "split": "test"},
            "loss": {"value": 0.125, "unit": "nats", "split": "test"},
            "ece": {"value": 1.5, "unit": "%", "split": "test"},
        },
        "validation": {"top1": top1 - 0.5, "top5": 99.25, "loss": 0.15},
        "split_sizes": {"train": 1077, "validation": 360, "test": 360},
        "data_checksum": "sha256:made-up",
        "synthetic": False,
        "macs": macs,
        "macs_nonzero": macs,
        "params": params,
        "params_nonzero": params,
    }


def cost(**changes):
    """Return what the evaluation of a cell leaves about time, memory and machine."""
    return {
        "commit": "0" * 40,
        "dirty": False,
        "versions": {"torch": "2.9"},
        "hardware": {"cpu": "made-up", "gpu": None},
        "latency": {"median_ms": 1.25, "device": "cpu", "runs": 30},
        "wall_seconds": 1.5,
        "peak_memory_mb": 512.0,
        "resume_count": 0,
        **changes,
    }


def write_cost(root: Path, scale: str, cell: Cell, **changes):
    path = root / paths.cost_file(scale, cell, "evaluate")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cost(**changes)))


def receipt_rows(cell: Cell):
    start_macs, start_params, start_top1 = final_numbers(cell.baseline)
    macs, params, top1 = final_numbers(cell)
    rows = []
    for step in range(STEPS + 1):
        part = step / STEPS
        row = dict.fromkeys(Receipt.model_fields, "")
        row |= {"iteration": step, "accepted": "true", "top5": 99.0 + 0.1 * step}
        row["macs"] = round(start_macs + part * (macs - start_macs))
        row["params"] = round(start_params + part * (params - start_params))
        row["top1"] = round(start_top1 - 0.5 + part * (top1 - start_top1), 4)
        if step:
            row |= {"rho": 0.1 * step, "metric_before": row["top1"] - 12.5, "metric_after": row["top1"]}
            row |= {"units_removed": 7, "score_low": 1e-7, "score_high": 0.25}
        rows.append(row)
    return rows


def write_receipts(path: Path, rows):
    lines = [",".join(Receipt.model_fields), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_cell(root: Path, grid: Grid, cell: Cell):
    path = root / paths.metrics_file(grid.scale, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics(grid, cell), indent=2))
    (root / paths.history_file(grid.scale, cell)).write_text(f"{','.join(EPOCH_FIELDS)}\n1,0.1,0.5,0.4,90\n")
    write_cost(root, grid.scale, cell)
    if not cell.is_baseline:
        write_receipts(root / paths.receipts_file(grid.scale, cell), receipt_rows(cell))


def write_grid(root: Path, grid: Grid):
    for cell in grid.cells():
        write_cell(root, grid, cell)


def write_report_files(root: Path, grid: Grid, missing=()):
    """Write a grid of cells without some of them and what `collect` makes of it; return it with no number judged."""
    write_grid(root, grid)
    for cell in missing:
        (root / paths.metrics_file(grid.scale, cell)).unlink()
    return write_recorded_files(root, grid)


def write_recorded_files(root: Path, grid: Grid, *, keep_recorded=False):
    """Write what `collect` makes of the cells that are there; return it with no number judged."""
    collected = collect(grid, root=root, allow_missing=True, keep_recorded=keep_recorded)
    # Judging every published number takes seconds, and made-up networks are none of the paper's.
    report = Report(grid, *frames_of(collected), (), collected.missing)
    write_recorded(grid.scale, recorded_files(collected, report, root=root), root=root)
    return report


def few_claims():
    """Return a part of the published claims: some of each table."""
    claims = published.load_claims(ROOT / paths.published_claims())
    models = ["DenseNet-121", "BERT", "ResNet-50", "GPT-2", "VGG19 (BN)", "DCGAN", "BERT Base"]
    first = claims["table"].isin([1, 4]) | claims["dataset"].isin(["CIFAR-10", "Fashion MNIST", "MRPC", "CoLA"])
    return claims[first & claims["model"].isin(models) & ~(claims["step"] > 4).fillna(value=False)]


def judge_all(grid, claims=None, measured=(), structure=None):
    """Return verdicts as if one value were inconsistent, `measured` had run and `structure` had been counted."""
    claims = few_claims() if claims is None else claims
    ids = ("T2/Fashion MNIST/ResNet-50/metric_delta",)
    finding = Finding("metric-delta", "major", "Made up", "1 + 1\n= 3", ids, "metric-delta-1")
    runs = pd.DataFrame(list(measured), columns=[*RECORD_COLUMNS, "record"])
    source = verdicts.Source(grid, runs, pd.DataFrame(columns=[*TRACE_COLUMNS, "record"]), {}, structure or {})
    return verdicts.judge(claims, source, [finding])


def made_up_structure(**values):
    """Return made-up counts of two networks on CIFAR-10: one pruned, one out of reach."""
    row = {"dataset": "cifar10", "classes": 10, "image_size": 224, "version": 1}
    reached = {"macs_pruned": 1_174_500_000, "params_pruned": 5_000_000, "reduction": 0.71, "note": ""}
    missed = {
        "macs_pruned": None,
        "params_pruned": None,
        "reduction": None,
        "note": "target macs=0.7 cannot be reached",
    }
    first = {"model": "resnet50", "macs_base": 4_050_000_000, "params_base": 23_500_000, "reduction_published": 0.71}
    second = {"model": "vgg19_bn", "macs_base": 21_000_000_000, "params_base": 140_000_000, "reduction_published": 0.7}
    rows = [ClassifierCount(**row, **first, **{**reached, **values}), ClassifierCount(**row, **second, **missed)]
    return {(each.dataset, each.model): (number, each) for number, each in enumerate(rows, start=2)}


def measured_runs():
    """Return made-up runs of one published cell, two seeds."""
    cell = {"task": "classification", "dataset": "cifar10", "model": "densenet121"}
    numbers = {"metric": "top1", "macs": 1.1e9, "macs_reduction": -61.0, "baseline_metric": 94.0}
    for seed, top1 in enumerate((93.9, 94.3)):
        own = {"test_metric": top1, "metric_delta": top1 - 94.0, "record": f"results/quick/records.csv#L{seed + 2}"}
        yield {**cell, "method": "ifap", "seed": seed, **numbers, **own}
