"""Write ``results/full_size.csv``: what the networks of the paper cost at full size."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.paper.published import load_claims
from ifap.study.report import FULL_SIZE_VERSIONS, full_size
from ifap.study.stage import run_stage
from stages.full_size import classifiers, dense, language

log = logging.getLogger("stages.full_size")

KINDS: dict[str, tuple[Callable[[pd.DataFrame], Sequence[Any]], Callable[[Any], Iterable[full_size.Count]]]] = {
    "classifier": (full_size.classifiers, classifiers.measure),
    "language": (full_size.language_models, language.measure),
    "dense": (full_size.dense_networks, dense.measure),
}
"""Which networks there are of each kind, and how they are counted."""


def main(
    check: Annotated[Path | None, typer.Option(help="Load the language models of this folder and compare.")] = None,
) -> None:
    """Write results/full_size.csv; rows that are there already are kept."""
    if check is not None:
        typer.echo(json.dumps(language.reload_all(check)))
        return
    claims = load_claims(paths.published_claims())
    networks = {kind: wanted(claims) for kind, (wanted, _) in KINDS.items()}
    done = {
        row.subject: row for _, row in full_size.load_counts().values() if row.version == FULL_SIZE_VERSIONS[row.KIND]
    }
    kept = len(done)

    def write() -> list[full_size.Count]:
        # Data sets with as many classes share the counts of a classifier.
        rows = [
            done[network.subject].model_copy(update={"dataset": network.dataset})
            for network in chain.from_iterable(networks.values())
            if network.subject in done
        ]
        atomic_write_text(paths.full_size_csv(), full_size.counts_table(rows))
        return rows

    for kind, (_, measure) in KINDS.items():
        missing = {network.subject: network for network in networks[kind] if network.subject not in done}
        for row in measure(list(missing.values())):
            done[row.subject] = row
            log.info("%s on %s: %s parameters", row.model, row.dataset, row.params_pruned)
            write()
    rows = write()
    notes = sum(bool(row.note) for row in rows)
    typer.echo(f"wrote {paths.full_size_csv()}: {len(rows)} networks, {kept} counts kept, {notes} with a note")


if __name__ == "__main__":
    run_stage(main)
