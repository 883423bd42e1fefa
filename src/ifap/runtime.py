"""What every job of the workflow shares: seeds, logging, tables, locks and provenance."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import logging
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ifap.errors import IfapError
from ifap.files import atomic_write_text
from ifap.startup import plain_data_free_tensors, plain_meta_kernels, plain_optimizers

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
SOURCES = ("src", "stages", "rules", "Snakefile", "params.yaml")
PACKAGES = ("ifap", "numpy", "safetensors", "scikit-learn", "torch", "torch-pruning", "torchmetrics", "torchvision")


def configure(seed: int, threads: int | None = None) -> None:
    """Make this process deterministic.

    Parameters
    ----------
    seed : int
        Seed of torch's global generator.
    threads : int, optional
        Threads of one operation; ``OMP_NUM_THREADS``, else 1, so that results never depend on
        how many cores the machine happens to have.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads or _threads_from_environment())
    # The same switch as `torch.use_deterministic_algorithms`, which loads the compiler for seconds.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    plain_optimizers()
    plain_meta_kernels()
    plain_data_free_tensors()
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)


def derive_seed(*parts: object) -> int:
    """Return a seed that depends on all `parts` and on nothing else, for example (seed, epoch)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, where: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and put them back afterwards."""
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def rank() -> int:
    """Return the number of this process among those that train one network together, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def processes() -> int:
    """Return how many processes train one network together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE") or "1")


@functools.cache
def device() -> torch.device:
    """Return the GPU if there is one (of several processes each has its own), else the CPU; says so once in the log."""
    own = f":{os.environ.get('LOCAL_RANK', '0')}" if processes() > 1 else ""
    chosen = torch.device(f"cuda{own}" if torch.cuda.is_available() else "cpu")
    log.info("device: %s", torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu (no GPU found)")
    return chosen


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> None:
    """Write rows atomically as CSV with Unix line ends.

    Floats are written with the fewest digits that read back as the same number; a missing
    value or None is an empty field, and a key outside `fields` is an error.
    """
    names = list(fields)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    atomic_write_text(path, text.getvalue())


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Lock:
    """A lock on a job's state folder, freed by the kernel when the process ends.

    Parameters
    ----------
    folder : Path
        The state folder; the lock is the file ``lock`` in it.
    job : str
        What the folder belongs to, for the error message.

    Raises
    ------
    IfapError
        On entering, if another process holds the lock.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._path = folder / LOCK_FILE
        self._job = job
        self._descriptor: int | None = None

    def __enter__(self) -> Lock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise IfapError(f"{self._job} is already running (process {holder}; lock {self._path})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def provenance() -> dict[str, Any]:
    """Return how a result came to be: commit, local changes, versions and hardware.

    Returns
    -------
    dict
        ``commit`` and ``dirty`` are None outside a git checkout; ``dirty`` looks at the sources
        only, because results and reports change while the workflow runs.
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


def loader_workers() -> int:
    """Return how many processes decode images: ``IFAP_LOADER_WORKERS``, else none beside this one."""
    value = os.environ.get("IFAP_LOADER_WORKERS", "")
    return int(value) if value.isdigit() else 0


def _threads_from_environment() -> int:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else 1


def _cell(value: Any) -> Any:
    return repr(float(value)) if isinstance(value, float) else value


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
