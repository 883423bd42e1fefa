"""NVIDIA Model Optimizer's FastNAS on the way that benchmarks.accuracy takes with every method.

It is not in the lock file. In an environment of its own, beside the packages of requirements.lock::

    pip install nvidia-modelopt==0.47.0 torchprofile==0.0.4
    python -m benchmarks.accuracy --method "modelopt: fastnas"

It chooses widths by what the validation split says of each alone. What it has cut it cannot cut again, so that each
stop is a search from the trained network, with as many epochs of distillation after it as the other methods have had by
then. Transformers are left out: its counter of operations, a trace, fails on `nn.MultiheadAttention`.
"""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ifap

if TYPE_CHECKING:
    from benchmarks.accuracy_setting import Recover, Setting

NAME = "modelopt: fastnas"
RATIOS = tuple(step / 16 for step in range(1, 17))
TRIES, CLOSER = 8, 0.97


class FastNas:
    """A search from the trained network for each stop."""

    def __init__(self, case: Setting, steps: int, recover: Recover) -> None:
        self.network, self._case, self._steps, self._recover = case.network, case, steps, recover
        self._epochs = 0

    def prune(self, macs: float) -> None:
        """Search for a network of at most `macs`, in steps of a sixteenth of a width."""
        bound = macs / ifap.cost(self._case.network, self._case.image).macs
        for _ in range(TRIES):
            self.network = self._search(bound)
            if ifap.cost(self.network, self._case.image).macs <= macs:
                break
            bound *= CLOSER  # its operations are not counted as ours
        else:
            raise RuntimeError(f"{NAME} does not reach {macs:.0f} MACs")
        self._epochs += self._steps
        for step in range(1, self._epochs + 1):
            if self._recover is not None:
                self._recover(self.network, self._case.network, step)

    def _search(self, share: float) -> Any:
        import modelopt.torch.prune as mtp  # type: ignore[import-not-found]

        from benchmarks.accuracy_setting import top1

        channels = {"*": {"channels_ratio": RATIOS, "channel_divisor": 2}}
        features = {"*": {"features_ratio": RATIOS, "feature_divisor": 2}}
        widths = {"nn.Conv2d": channels, "nn.BatchNorm2d": features, "nn.Linear": features}
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            network, _ = mtp.prune(
                copy.deepcopy(self._case.network),
                mode=[("fastnas", widths)],
                constraints={"flops": f"{100 * share}%"},
                dummy_input=self._case.image,
                config={
                    "data_loader": list(self._case.calibration.labelled),
                    "score_func": lambda network: top1(network, self._case.validation),
                    "checkpoint": str(Path(folder) / "search.pth"),
                    "verbose": False,
                },
            )
        return network.eval()
