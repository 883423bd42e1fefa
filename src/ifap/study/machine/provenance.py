"""How a result came to be: commit, versions, hardware, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SOURCES = ("src", "stages", "rules", "Snakefile", "params.yaml")
PACKAGES = ("ifap", "numpy", "safetensors", "scikit-learn", "torch", "torch-pruning", "torchmetrics", "torchvision")


def provenance() -> dict[str, Any]:
    """Return how a result came to be: commit, local changes, versions and hardware.

    ``commit`` and ``dirty`` are None outside a git checkout; ``dirty`` looks at the sources only, because results and
    reports change while the workflow runs.
    """
    changes = _git("status", "--porcelain", "--", *SOURCES)
    return {
        # An image holds no git; whoever built it said which commit it is.
        "commit": _git("rev-parse", "HEAD") or os.environ.get("IFAP_COMMIT") or None,
        "dirty": None if changes is None else bool(changes),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "hardware": _hardware(),
    }


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the memory of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(peak / unit, 1)


def forget_peak_memory() -> None:
    """Have the largest memory of this process begin again from the present one, where the system can."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
