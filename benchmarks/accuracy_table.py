"""Compare the accuracies that benchmarks.accuracy has recorded, seed by seed; nothing is trained here.

Ours is `flow`, the default, with one setting for all networks. It is compared with what this project has as controls
and with the field's pruners, in each setting by paired differences over seeds, as in the tables of the paper. The
ratios are those of the wrongly classified test images, ours to those of the control, and of the peer, with the best
mean on the test split: of them, unlike of ours, the best is taken with hindsight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import FILE, OURS, PEERS
from benchmarks.fastnas import NAME as FASTNAS
from benchmarks.ratio import RESULTS, Ratio, report
from ifap.errors import ResultsError
from ifap.files import write_csv
from ifap.study.report.statistics import moments, paired
from ifap.study.stage import run_stage

OWN = "flow"
RIVALS = {
    "control": (
        "magnitude",
        "random",
        "activation",
        "bn_scale",
        "taylor",
        "magnitude, compensated",
        "taylor, compensated",
    ),
    "peer": (*PEERS, FASTNAS),
}
SETTING = ["network", "share"]
COLUMNS = (
    *SETTING, "ours", "rival", "kind", "seeds", "ours_test", "ours_sd", "rival_test", "rival_sd", "difference", "low",
    "high", "ours_before_recovery", "rival_before_recovery",
)  # fmt: skip


def differences(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare ours with each rival in each setting, over the seeds that both have."""
    found = []
    for key, setting in rows.groupby(SETTING, sort=False):
        network, share = _pair(key)
        for kind, rivals in RIVALS.items():
            compared = (_compare(setting, rival) for rival in rivals)
            found += [{"network": network, "share": share, "kind": kind, **row} for row in compared if row]
    return found


def _compare(setting: pd.DataFrame, rival: str) -> dict[str, Any]:
    own, other = (_by_seed(setting, name) for name in (OWN, rival))
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return {}
    apart = paired(own, other)
    mine, theirs = (moments([side[seed] for seed in seeds]) for side in (own, other))
    before = [_by_seed(setting, name, "before_recovery") for name in (OWN, rival)]
    bare = [moments([side[seed] for seed in seeds]).mean for side in before]
    values = {
        "ours": OWN, "rival": rival, "seeds": len(seeds),
        "ours_test": mine.mean, "ours_sd": mine.sd, "rival_test": theirs.mean, "rival_sd": theirs.sd,
        "difference": apart.mean, "low": apart.low, "high": apart.high,
        "ours_before_recovery": bare[0], "rival_before_recovery": bare[1],
    }  # fmt: skip
    return {name: _rounded(value) for name, value in values.items()}


def _by_seed(setting: pd.DataFrame, method: str, column: str = "test") -> dict[int, float]:
    of_method = setting[setting.method == method]
    return {int(seed): float(value) for seed, value in zip(of_method.seed, of_method[column], strict=True)}


def _pair(key: Any) -> tuple[str, float]:
    network, share = key
    return network, share


def _rounded(value: Any) -> Any:
    return round(float(value), 3) if isinstance(value, float) else value


def strongest(compared: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return for each setting the comparison with the rival of a kind that has the best mean on the test split."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in compared:
        key = tuple(row[name] for name in SETTING)
        if row["kind"] == kind and (key not in best or row["rival_test"] > best[key]["rival_test"]):
            best[key] = row
    return list(best.values())


def ratios(rows: pd.DataFrame) -> list[Ratio]:
    """Return the share of wrongly classified images, ours to the strongest control's and peer's, over seeds."""
    compared = differences(rows)
    found = []
    for row in (each for kind in RIVALS for each in strongest(compared, kind)):
        setting = rows[(rows.network == row["network"]) & (rows.share == row["share"])]
        own, other = (_by_seed(setting, row[side]) for side in ("ours", "rival"))
        pairs = [(1 - own[seed] / 100, 1 - other[seed] / 100) for seed in sorted(own.keys() & other.keys())]
        quantity = f"{row['network']} -{row['share']:.0%} MACs, wrong, against {row['kind']} {row['rival']}"
        found.append(Ratio.of_pairs(quantity, pairs, limit=1.0, unit="%"))
    return found


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean test accuracy of each method in each setting, with processor time and memory of a whole way."""
    order = [name for name in (*OURS, *PEERS, FASTNAS) if name in set(rows.method)]
    table = rows.pivot_table(index="method", columns=SETTING, values="test", sort=False)
    table.columns = pd.Index(["{} {:.0%}".format(*_pair(key)) for key in table.columns])
    last = rows[rows.share == rows.share.max()]
    for name in ("seconds", "peak_mb"):
        table[name] = last.groupby("method")[name].mean()
    table["seeds"] = rows.groupby("method").seed.nunique()
    return table.loc[order].round(1)


def print_overview(rows: pd.DataFrame) -> None:
    """Print what every method reached."""
    found = overview(rows)
    table = Table("method", *found.columns, title="Top-1 in percent on the test split, means over seeds")
    for name, values in found.iterrows():
        table.add_row(str(name), *(f"{value:g}" for value in values))
    Console(width=200).print(table)


def main(file: Annotated[Path, typer.Option(help="What benchmarks.accuracy has written.")] = FILE) -> None:
    """Print and record the comparison."""
    rows = pd.read_csv(file)
    if OWN not in set(rows.method):
        raise ResultsError(f"{file}: no rows of '{OWN}': python -m benchmarks.accuracy --method {OWN} makes them")
    print_overview(rows)
    write_csv(RESULTS / "accuracy_differences.csv", differences(rows), COLUMNS)
    report("accuracy_table", "Wrongly classified test images, against the strongest rival", "rival", ratios(rows))


if __name__ == "__main__":
    run_stage(main)
