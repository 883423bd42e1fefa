"""What every job of the workflow shares: seeds, logging, tables, locks and provenance."""

from __future__ import annotations

import functools
import logging
import os

import torch

from ifap.recovery.train_step import processes
from ifap.study.machine.fast_start import plain_data_free_tensors, plain_meta_kernels, plain_optimizers

log = logging.getLogger(__name__)


def configure(seed: int, threads: int | None = None) -> None:
    """Make this process deterministic.

    Seeds torch's global generator. An operation has `threads` threads, by default ``OMP_NUM_THREADS``, else 1, so that
    results never depend on how many cores the machine happens to have.
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


def rank() -> int:
    """Return the number of this process among those that train one network together, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


@functools.cache
def device() -> torch.device:
    """Return the GPU if there is one (of several processes each has its own), else the CPU; says so once in the log."""
    own = f":{os.environ.get('LOCAL_RANK', '0')}" if processes() > 1 else ""
    chosen = torch.device(f"cuda{own}" if torch.cuda.is_available() else "cpu")
    log.info("device: %s", torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu (no GPU found)")
    return chosen


def _threads_from_environment() -> int:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else 1
