"""Running a function as a program: logging, and errors of one line. Needs no torch, so that it starts fast."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from ifap.errors import IfapError


def run_stage(main: Callable[..., None]) -> NoReturn:
    """Run a typer function as a program: a user's mistake is one line and exit code 2, a bug exit code 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with one_line_errors():
        app()
    raise SystemExit(0)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Log as a program does, and end it with one line and exit code 2 at a user's mistake."""
    configure_logging()
    try:
        yield
    except IfapError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


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
