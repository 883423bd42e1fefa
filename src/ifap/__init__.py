"""IFAP: iterative flow-aware pruning of PyTorch networks.

Names are loaded on first use, so that ``import ifap`` stays fast and leaves torch unloaded until
it is needed (a job must choose its GPU before that).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifap.costs import Cost, cost
    from ifap.errors import IfapError
    from ifap.export import export_onnx
    from ifap.pruning import prune
    from ifap.recovery.distillation import Distillation
    from ifap.report.page import write_report
    from ifap.results import Pruned, Receipt, Target
    from ifap.saving.builders import build
    from ifap.saving.pretrained import save_pretrained
    from ifap.saving.store import load, save
    from ifap.scores.flow import flow_scores
    from ifap.sweeping import Sweep, sweep
    from ifap.view import inspect

__version__ = "0.2.0"

_HOME = {
    "build": "saving.builders",
    "Cost": "costs",
    "cost": "costs",
    "IfapError": "errors",
    "export_onnx": "export",
    "inspect": "view",
    "flow_scores": "scores.flow",
    "load": "saving.store",
    "save": "saving.store",
    "save_pretrained": "saving.pretrained",
    "Pruned": "results",
    "Receipt": "results",
    "Target": "results",
    "prune": "pruning",
    "write_report": "report.page",
    "Sweep": "sweeping",
    "sweep": "sweeping",
    "Distillation": "recovery.distillation",
}

__all__ = [
    "Cost",
    "Distillation",
    "IfapError",
    "Pruned",
    "Receipt",
    "Sweep",
    "Target",
    "build",
    "cost",
    "export_onnx",
    "flow_scores",
    "inspect",
    "load",
    "prune",
    "save",
    "save_pretrained",
    "sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ifap' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ifap.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
