"""A lock on the state of a job: one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from ifap.errors import IfapError

LOCK_FILE = "lock"


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
