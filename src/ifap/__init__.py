"""IFAP: iterative flow-aware pruning of PyTorch networks.

Names are loaded on first use, so that ``import ifap`` stays fast and leaves torch unloaded until
it is needed (a job must choose its GPU before that).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifap.builders import build
    from ifap.costs import Cost, cost
    from ifap.errors import IfapError
    from ifap.export import export_onnx
    from ifap.flow import flow_scores
    from ifap.pretrained import save_pretrained
    from ifap.pruning import prune
    from ifap.recover import Distillation
    from ifap.report_page import write_report
    from ifap.results import Pruned, Receipt, Target
    from ifap.saving import load, save
    from ifap.sweeping import Sweep, sweep
    from ifap.view import inspect

__version__ = "0.1.0"

_HOME = {
    "build": "builders",
    "Cost": "costs",
    "cost": "costs",
    "IfapError": "errors",
    "export_onnx": "export",
    "inspect": "view",
    "flow_scores": "flow",
    "load": "saving",
    "save": "saving",
    "save_pretrained": "pretrained",
    "Pruned": "results",
    "Receipt": "results",
    "Target": "results",
    "prune": "pruning",
    "write_report": "report_page",
    "Sweep": "sweeping",
    "sweep": "sweeping",
    "Distillation": "recover",
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
