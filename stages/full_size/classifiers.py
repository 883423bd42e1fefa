"""Count the classifiers of Table II, unpruned and pruned to the printed reduction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

import ifap
from ifap.errors import TargetError
from ifap.study.machine.determinism import configure
from ifap.study.models import MODELS
from ifap.study.report import FULL_SIZE_VERSIONS
from ifap.study.report.full_size import CLOSE, Classifier, ClassifierCount

SEED = 0
STEPS = 3
BATCH = 2  # images of the one batch that is scored
CHANNELS = 3  # grey images are given to the paper's networks as three equal channels


def measure(networks: Iterable[Classifier]) -> Iterator[ClassifierCount]:
    """Count networks before and after pruning; a reduction that cannot be reached is a note."""
    yield from map(count, networks)


def count(network: Classifier) -> ClassifierCount:
    """Count one network before and after pruning."""
    configure(SEED)
    size = network.image_size
    model = MODELS.get(network.model)(num_classes=network.classes, in_channels=CHANNELS, image_size=size).eval()
    batch = torch.randn(BATCH, CHANNELS, size, size)
    base = ifap.cost(model, batch[:1])
    target = ifap.Target(macs=network.reduction_published)
    counts: dict[str, int | float | None] = dict.fromkeys(("macs_pruned", "params_pruned", "reduction"))
    note = ""
    try:
        after = ifap.prune(model, batch[:1], [batch], target=target, steps=STEPS, seed=SEED, method="ifap").after
    except TargetError as error:
        note = " ".join(str(error).split())
    else:
        reduction = round(after.reduction(base, "macs"), 9)
        counts = {"macs_pruned": after.macs, "params_pruned": after.params, "reduction": reduction}
        if abs(reduction - network.reduction_published) > CLOSE:
            note = f"reached {reduction:.4f}, more than {CLOSE:g} from the published {network.reduction_published:g}"
    return ClassifierCount(
        **network.model_dump(),
        macs_base=base.macs,
        params_base=base.params,
        **counts,
        note=note,
        version=FULL_SIZE_VERSIONS[network.KIND],
    )
