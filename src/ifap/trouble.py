"""Exit codes, and one-line messages for errors of disk, memory or device."""

from __future__ import annotations

import errno

MISTAKE = 2
"""Exit code after a user's mistake."""
TROUBLE = 3
"""Exit code after trouble with disk, memory or device: nothing is wrong with what was asked for."""
GO_ON = "the same command goes on where it was"
DISK_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "it must be possible to write there",
    errno.EACCES: "it must be possible to write there",
    errno.EPERM: "it must be possible to write there",
    errno.EIO: "see whether the disk is well",
}
"""What to do about each error of a disk."""


def is_resource_error(error: Exception) -> bool:
    """Whether an error is about disk, memory or device, and so says nothing about the network that was run."""
    return trouble(error) is not None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a device or outside of it."""
    is_memory = isinstance(error, MemoryError) or _is_a(error, "OutOfMemoryError")
    return is_memory or "DefaultCPUAllocator" in str(error)


def _is_a(error: Exception, name: str) -> bool:
    """Whether an error is of a class of this name: torch, which has the class, takes seconds to load."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def trouble(error: Exception) -> str | None:
    """Return one line on an error of disk, memory or device; None for any other error."""
    text = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error.filename or 'a file'}: {error.strerror}: {DISK_ERRORS[error.errno]}; {GO_ON}"
    if is_out_of_memory(error):
        return f"out of memory{f' ({text})' if text else ''}: lower batch_size, or run fewer jobs at once; {GO_ON}"
    is_of_driver = isinstance(error, RuntimeError) and text.startswith(("CUDA ", "cuDNN ", "NCCL "))
    if is_of_driver or _is_a(error, "AcceleratorError"):
        return f"the device failed ({text}): see whether it is well; {GO_ON}"
    return None
