"""What went wrong, as an exit code and one line: a mistake of the user, or trouble with disk, memory or device."""

from __future__ import annotations

import errno

MISTAKE = 2
"""Exit code after a user's mistake."""
TROUBLE = 3
"""Exit code after trouble with disk, memory or device: nothing is wrong with what was asked for."""
GO_ON = "the same command goes on where it was"
_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "it must be possible to write there",
    errno.EACCES: "it must be possible to write there",
    errno.EPERM: "it must be possible to write there",
    errno.EIO: "see whether the disk is well",
}


def is_trouble(error: Exception) -> bool:
    """Whether an error is about disk, memory or device, and so says nothing about the network that was run."""
    return trouble(error) is not None


def trouble(error: Exception) -> str | None:
    """Say in one line what is wrong with disk, memory or device; None if it is something else."""
    text = (str(error).splitlines() or [""])[0][:300]
    # By name: torch, whose errors these are, takes seconds to load.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename or 'a file'}: {error.strerror}: {_DISK[error.errno]}; {GO_ON}"
    if "OutOfMemoryError" in kinds or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"out of memory{f' ({text})' if text else ''}: lower batch_size, or run fewer jobs at once; {GO_ON}"
    if "AcceleratorError" in kinds or (
        isinstance(error, RuntimeError) and text.startswith(("CUDA ", "cuDNN ", "NCCL "))
    ):
        return f"the device failed ({text}): see whether it is well; {GO_ON}"
    return None
