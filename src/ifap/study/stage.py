"""Running a function as a program: logging, and errors of one line. Needs no torch, so that it starts fast."""

from __future__ import annotations

import contextlib
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
from ifap.trouble import MISTAKE, TROUBLE, trouble


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
