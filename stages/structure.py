"""Count the networks of Table II at full size, unpruned and pruned to the printed reduction; no data, no training.

Random weights and random images: the numbers say what the printed reduction leaves of a network and
that it can be reached, and nothing about accuracy.
"""

from __future__ import annotations

import logging
import time

import torch
import typer

import ifap
from ifap.errors import TargetError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.machine.determinism import configure
from ifap.study.models import MODELS
from ifap.study.paper.published import load_claims
from ifap.study.report import STRUCTURE_VERSION
from ifap.study.report.full_size.classifiers import CLOSE, Structure, Wanted, load_structure, structure_table, wanted
from ifap.study.stage import run_stage

log = logging.getLogger("stages.structure")

SEED = 0
STEPS = 3
BATCH = 2  # images of the one batch that is scored
CHANNELS = 3  # grey images are given to the paper's networks as three equal channels


def main() -> None:
    """Write results/structure.csv; rows that are there already are kept."""
    networks = wanted(load_claims(paths.published_claims()))
    done = {row.subject: row for _, row in load_structure().values() if row.version == STRUCTURE_VERSION}
    kept = len(done)
    for number, network in enumerate(networks, start=1):
        if network.subject in done:
            continue
        start = time.perf_counter()
        done[network.subject] = measure(network)
        rows = [_as(done[each.subject], each) for each in networks if each.subject in done]
        atomic_write_text(paths.structure_csv(), structure_table(rows))
        seconds = time.perf_counter() - start
        log.info("%d of %d: %s on %s, %.1f s", number, len(networks), network.model, network.dataset, seconds)
    rows = [_as(done[each.subject], each) for each in networks]
    atomic_write_text(paths.structure_csv(), structure_table(rows))
    notes = sum(bool(row.note) for row in rows)
    typer.echo(f"wrote {paths.structure_csv()}: {len(rows)} networks, {kept} counts kept, {notes} with a note")


def measure(network: Wanted) -> Structure:
    """Count one network before and after pruning.

    Parameters
    ----------
    network : Wanted
        Model, classes, image size and reduction.

    Returns
    -------
    Structure
        The counts; a reduction that cannot be reached is a note.
    """
    configure(SEED)
    size = network.image_size
    model = MODELS.get(network.model)(num_classes=network.classes, in_channels=CHANNELS, image_size=size).eval()
    batch = torch.randn(BATCH, CHANNELS, size, size)
    base = ifap.cost(model, batch[:1])
    target = ifap.Target(macs=network.reduction)
    counts: dict[str, int | float | None] = dict.fromkeys(("macs_pruned", "params_pruned", "reduction"))
    note = ""
    try:
        after = ifap.prune(model, batch[:1], [batch], target=target, steps=STEPS, seed=SEED, method="ifap").after
    except TargetError as error:
        note = " ".join(str(error).split())
    else:
        reduction = round(after.reduction(base, "macs"), 9)
        counts = {"macs_pruned": after.macs, "params_pruned": after.params, "reduction": reduction}
        if abs(reduction - network.reduction) > CLOSE:
            note = f"reached {reduction:.4f}, more than {CLOSE:g} from the published {network.reduction:g}"
    return Structure(
        **network.model_dump(exclude={"reduction"}),
        macs_base=base.macs,
        params_base=base.params,
        reduction_published=network.reduction,
        **counts,
        note=note,
        version=STRUCTURE_VERSION,
    )


def _as(row: Structure, network: Wanted) -> Structure:
    """Return the counts under the name of another data set with as many classes."""
    return row.model_copy(update={"dataset": network.dataset})


if __name__ == "__main__":
    run_stage(main)
