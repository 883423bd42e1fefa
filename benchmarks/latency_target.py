"""What a target in measured time gives over one in multiply-accumulates: torchvision networks at batch 16.

Random weights have no accuracy, and training networks of this size takes days, so that "at equal accuracy" has to be
said by other means. Both targets round widths to what the processor takes at a time, run the same few iterations
without recovery, and are compared twice:

- *At equal MACs*: the target in time is moved until about as many products are left as the target in MACs leaves, and
  never fewer. Then their times are compared, and that of ours with the ideal, which falls as the MACs do.
- *In equal time*: the target in time is what the other network was measured to take. Then the flow that is lost is
  compared: what the removed units had in the unpruned network, as a share of all. Flow is what both rank by, so less
  of it lost says that the ranking had to give up less, and no more than that.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torchvision
import typer
from torch import Tensor, nn

import ifap
from benchmarks.ratio import Ratio, compare, report, timed
from ifap.errors import TargetError
from ifap.latency import fast_width, latency_ratio
from ifap.ranking import unit_scores
from ifap.results import Pruned
from ifap.view import trace

NETWORKS = ("mobilenet_v3_large", "resnet50", "vit_b_16")
BATCH, CALIBRATION = 16, 4
SHARE = 0.65
STEPS, RUNS = 3, 3
TRIES, CLOSE = 6, 0.02  # share of the MACs that is near enough
SHARE_OF_IDEAL = 0.85


def by_macs(network: nn.Module, images: Tensor) -> Pruned:
    """Remove the share of the MACs, with widths that suit the processor."""
    target, width = ifap.Target(macs=SHARE), fast_width(images.device)
    return ifap.prune(
        network, images[:1], [images[:CALIBRATION]], target=target, steps=STEPS, round_to=width, method="ifap"
    )


def by_time(network: nn.Module, images: Tensor, left: float) -> Pruned:
    """Prune to a share of the time that is left."""
    target = ifap.Target(latency=1 - left, batch=len(images))
    return ifap.prune(network, images[:1], [images[:CALIBRATION]], target=target, steps=STEPS, method="ifap")


def by_time_at_equal_macs(network: nn.Module, images: Tensor, asked: float, first: Pruned, goal: float) -> Pruned:
    """Bisect the share of the time, from what `first` was asked for, for the fewest MACs that are at least `goal`."""
    tried: Pruned | None = first
    found: list[Pruned] = []
    low, high = 0.0, 1.0
    for _ in range(TRIES):
        if tried is not None and macs_left(tried) >= goal:
            found.append(tried)
            high = asked
            if macs_left(tried) - goal <= CLOSE:
                break
        else:
            low = asked
        asked = (low + high) / 2 if low and high < 1.0 else asked * (0.85 if high < 1.0 else 1.15)
        try:
            tried = by_time(network, images, asked)
        except TargetError:  # less than the narrowest network takes
            tried = None
    return min(found, key=macs_left)


def macs_left(pruned: Pruned) -> float:
    """Return the share of the MACs that is left."""
    return pruned.after.macs / pruned.before.macs


def flow_lost(network: nn.Module, pruned: Pruned, images: Tensor) -> float:
    """Return the flow of the removed units in the unpruned network, as a share of that of all units."""
    graph = trace(network, images[:1])
    flow = unit_scores(graph, ifap.flow_scores(network, [images[:CALIBRATION]], graph=graph))
    gone = np.zeros(graph.num_units, dtype=bool)
    for slot, units in zip(graph.slots, graph.unit_of, strict=True):
        kept = pruned.plan.kept.get(slot.name, {}).get(slot.side)
        if kept is not None:
            gone[np.delete(units, kept)] = True
    return float(np.nansum(flow[gone]) / np.nansum(flow))


def measure(name: str) -> list[Ratio]:
    """Compare both targets on one network."""
    torch.manual_seed(0)
    network, images = getattr(torchvision.models, name)().eval(), torch.randn(BATCH, 3, 224, 224)
    theirs = by_macs(network, images)
    left = latency_ratio(theirs.model, network, images)
    same_time = by_time(network, images, left)
    same_macs = by_time_at_equal_macs(network, images, left, same_time, macs_left(theirs))
    for label, found in (("target in MACs", theirs), ("equal time", same_time), ("equal MACs", same_macs)):
        typer.echo(f"{name}, {label}: {_left(network, found, images)}")
    return [
        time_against(f"{name}, time at equal MACs", same_macs.model, theirs.model, images),
        time_against_ideal(f"{name}, time over the ideal", network, same_macs, images),
        loss_against(f"{name}, flow lost in equal time", *(flow_lost(network, p, images) for p in (same_time, theirs))),
    ]


def _left(network: nn.Module, found: Pruned, images: Tensor) -> str:
    shares = {
        "time": latency_ratio(found.model, network, images, rounds=3),
        "MACs": macs_left(found),
        "weights": found.after.params / found.before.params,
        "flow": 1 - flow_lost(network, found, images),
    }
    return ", ".join(f"{share:.1%} of the {key}" for key, share in shares.items())


def time_against(quantity: str, ours: nn.Module, theirs: nn.Module, images: Tensor, limit: float = 1.0) -> Ratio:
    """Time a forward of both in turn."""

    def seconds(model: nn.Module) -> float:
        with torch.inference_mode():
            return timed(lambda: model(images))

    models = ours.eval(), theirs.eval()
    return compare(quantity, *(partial(seconds, model) for model in models), limit=limit, runs=RUNS)


def time_against_ideal(quantity: str, network: nn.Module, found: Pruned, images: Tensor) -> Ratio:
    """Time a pruned network against the share of the whole network's time that its MACs are of the whole's."""
    whole, left = time_against(quantity, found.model, network, images, 1 / SHARE_OF_IDEAL), macs_left(found)
    scaled = {key: getattr(whole, key) / left for key in ("ratio", "low", "high")}
    return replace(whole, peer=whole.peer * left, **scaled)


def loss_against(quantity: str, ours: float, theirs: float) -> Ratio:
    """Compare two losses."""
    return Ratio.of_pairs(quantity, [(ours, theirs)], limit=1.0, unit="%")


def main() -> None:
    """Print and record the ratios."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[Ratio] = []
    for name in NETWORKS:  # the last takes most of the time: what there is already is kept
        rows += measure(name)
        report(
            "latency_target", "A target in time against one of 65 % of the MACs (one thread, batch 16)", "peer", rows
        )


if __name__ == "__main__":
    main()
