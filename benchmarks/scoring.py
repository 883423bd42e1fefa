"""What flow scores cost over a bare forward of the same batches."""

from __future__ import annotations

import torch
import torchvision

import ifap
from benchmarks.ratio import Ratio, compare, report, timed

BATCH = 8
LIMIT = 1.25


def measure(name: str) -> Ratio:
    """Compare scoring one batch of a torchvision network with running it."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    batch = torch.randn(BATCH, 3, 224, 224)

    def forward() -> float:
        with torch.no_grad():
            return timed(lambda: model(batch))

    return compare(
        f"{name}, batch {BATCH}, 224 px", lambda: timed(lambda: ifap.flow_scores(model, [batch])), forward, limit=LIMIT
    )


def main() -> None:
    """Print and record the ratios."""
    torch.set_num_threads(1)
    rows = [measure(name) for name in ("resnet50", "vit_b_16")]
    report("scoring", "Flow scores against the bare forward (one thread)", "forward", rows)


if __name__ == "__main__":
    main()
