"""Locks on files: one process at a time. The kernel frees a lock when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ifap.errors import IfapError

LOCK_FILE = "lock"


@contextlib.contextmanager
def locked(folder: Path, job: str) -> Iterator[None]:
    """Hold the lock of the state folder of a job; raises an IfapError if another process holds it."""
    path = folder / LOCK_FILE
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = lock(path)
    if descriptor is None:
        raise IfapError(f"{job} is already running (process {holder(path)}; lock {path})")
    try:
        yield
    finally:
        os.close(descriptor)


def lock(path: Path) -> int | None:
    """Take the lock of a file until the returned descriptor is closed; None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def holder(path: Path) -> str:
    """Return the process id that the holder of a lock wrote."""
    return path.read_text(errors="replace").strip() or "unknown"
