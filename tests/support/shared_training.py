"""One process of a training that several share; writes its network and history. See study/test_training_steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from safetensors.torch import save_file
from small_classifier import network, split

from ifap.study.config.recipes import TrainingOptions
from ifap.study.machine.determinism import rank
from ifap.study.tasks import TASKS
from ifap.study.training.fit import fit

RECIPE = {
    "epochs": 3, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01, "warmup_epochs": 1,
    "label_smoothing": 0.1, "augment": False, "ema_decay": 0.9, "grad_clip": 1.0,
}  # fmt: skip


def train(state=None, norm=False, extra_loss=None, **changes):
    model = network(norm)
    recipe = TrainingOptions(**RECIPE | changes)
    rows = fit(
        model, split("train", 40), split("validation", 20), recipe, TASKS.get("classification"), seed=3, state=state,
        extra_loss=extra_loss,
    )  # fmt: skip
    return model, rows


class KilledError(Exception):
    """Stands for the end of all processes in the middle of an epoch."""


def killer(calls):
    """Return an extra loss of zero that stops the training at one of its calls."""
    left = iter(range(calls - 1, -1, -1))

    def extra_loss(inputs, outputs):
        if not next(left, -1):
            raise KilledError
        return outputs.sum() * 0

    return extra_loss


if __name__ == "__main__":
    folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    model, _ = train(norm=True, **changes)
    save_file(model.state_dict(), folder / f"with-norm-{rank()}.safetensors")
    with contextlib.suppress(KilledError):
        train(state=folder / "state", norm=True, extra_loss=killer(8), **changes)
    model, _ = train(state=folder / "state", norm=True, **changes)
    save_file(model.state_dict(), folder / f"resumed-{rank()}.safetensors")
    model, rows = train(**changes)
    save_file(model.state_dict(), folder / f"{rank()}.safetensors")
    (folder / f"{rank()}.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
