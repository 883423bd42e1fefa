"""Running a function as a program: logging, and errors of one line. Needs no torch, so that it starts fast."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from ifap.errors import IfapError

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


def run_stage(main: Callable[..., None]) -> NoReturn:
    """Run a typer function as a program; see `one_line_errors`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with one_line_errors():
        app()
    raise SystemExit(0)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Log as a program does, and end it as a program does.

    A user's mistake is one line and exit code 2, trouble with disk, memory or device one line and exit
    code 3, a bug exit code 1. SIGTERM ends it like an error, so that it tidies up.
    """
    configure_logging()
    try:
        with _ended_like_an_error():
            yield
    except IfapError as error:
        _say(str(error))
        raise SystemExit(MISTAKE) from None
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        _say(reason)
        raise SystemExit(TROUBLE) from None


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


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may be on the full disk
        sys.stderr.write(f"error: {' '.join(text.split())}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _ended_like_an_error() -> Iterator[None]:
    """Let SIGTERM raise inside the block, instead of ending the process at once."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def configure_logging() -> None:
    """Log this package's progress to stderr, prettily on a terminal and plainly otherwise."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Of several processes that train one network together, the first speaks.
    quiet = os.environ.get("RANK", "0") != "0"
    for name in ("ifap", "stages"):
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)
