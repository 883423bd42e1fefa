"""Write the results of the quick scale into README.md, so that its numbers are never typed by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study.report import records
from ifap.study.report.tables.wording import label
from ifap.study.stage import run_stage
from ifap.study.templates import MINUS, NO_VALUE
from stages.options import PARAMS, ParamsOption, ScaleOption, open_grid

README = Path("README.md")
SECTION = re.compile(r"(?<=<!-- results: written by `python -m stages.readme` from results/quick/records.csv -->\n).*?(?=<!-- end of results -->)", re.DOTALL)  # fmt: skip  # noqa: E501


def main(
    scale: ScaleOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the README shows the recorded results.")
    ] = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Put the table of accuracies before and after pruning into README.md."""
    grid = open_grid(params, scale)
    text = README.read_text()
    if not SECTION.search(text):
        raise ResultsError(f"{README} has no section for the results: see stages/readme.py")
    wanted = SECTION.sub(lambda _: results_table(records.load_records(grid.scale)), text)
    if not check:
        atomic_write_text(README, wanted)
    elif wanted != text:
        raise ResultsError(
            f"{README} shows other results than the records of {grid.scale}: run python -m stages.readme"
        )


def results_table(runs: pd.DataFrame) -> str:
    """Return the Markdown table: a row a network, a column a method, mean over seeds."""
    # Masks cut nothing out: what such methods reach is in Table I.
    pruned = runs[runs.structure == "channels"]
    methods = list(dict.fromkeys(pruned.method))
    lines = [
        f"| network | data | MACs | unpruned | {' | '.join(label(method) for method in methods)} |",
        f"|---|---|---:|---:|{'---:|' * len(methods)}",
    ]
    for (_, model), block in pruned.groupby(["dataset", "model"], sort=False):
        values = [_mean(block[block.method == method].test_metric) for method in methods]
        reduction = f"{block.macs_reduction.mean():.1f} %".replace("-", MINUS)
        before = f"{block.baseline_metric.mean():.2f}"
        lines.append(f"| {model} | {_named(block)} | {reduction} | {before} | {' | '.join(values)} |")
    sizes = runs.groupby("dataset", sort=False).test_size.first()
    samples = (
        " and ".join(f"{int(size)} of {name}" for name, size in sizes.items()) if len(sizes) > 1 else sizes.iloc[0]
    )
    # A network that one method alone prunes is no contest.
    contests = [block for _, block in pruned.groupby(["dataset", "model"]) if block.method.nunique() > 1]
    leads = [_leads(block) for block in contests]
    lines.append("")
    lines.append(
        f"Top-1 accuracy in percent on the test split ({samples} samples; {runs.seed.nunique()} seed). Each final "
        f"network reads this test split once. On {sum(leads)} of {len(leads)} networks none is more accurate than IFAP."
    )
    return "\n" + "\n".join(lines) + "\n\n"


def _mean(values: pd.Series[float]) -> str:
    return f"{values.mean():.2f}" if len(values) else NO_VALUE


def _named(block: pd.DataFrame) -> str:
    return f"{block.dataset.iloc[0]} (synthetic)" if block.synthetic.astype(bool).any() else str(block.dataset.iloc[0])


def _leads(block: pd.DataFrame) -> bool:
    means = block.groupby("method").test_metric.mean()
    return bool(means["ifap"] >= means.max())


if __name__ == "__main__":
    run_stage(main)
