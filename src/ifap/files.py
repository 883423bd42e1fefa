"""Write files atomically, and read untrusted files with bounds."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ifap.trouble import DISK_ERRORS

_SUFFIX = ".part"


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in its folder, then put it in place at once."""
    with beside(path) as temporary:
        temporary.write_bytes(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode())


@contextlib.contextmanager
def beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Make a temporary file or folder beside `path`, for its next content; gone after the block, renamed or not.

    What a killed process left there for the same `path` goes first: it is told from that of a running
    one by a lock, which the kernel frees with the process.

    Folders above `path` are made. Raises an OSError that names `path` if the disk is full or not to be written to.
    """
    temporary, descriptor = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        prefix = f".{path.name}-"
        if folder:
            temporary = Path(tempfile.mkdtemp(_SUFFIX, prefix, path.parent))
            descriptor = os.open(temporary, os.O_RDONLY)
        else:
            descriptor, name = tempfile.mkstemp(_SUFFIX, prefix, path.parent)
            temporary = Path(name)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    except OSError as error:
        if error.errno in DISK_ERRORS:
            error.filename = str(path)
        raise
    finally:
        if temporary is not None:
            _remove(temporary)
        if descriptor >= 0:
            os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside `path`."""
    for name in glob.glob(f"{glob.escape(str(path.parent))}/.{glob.escape(path.name)}-*{_SUFFIX}"):
        try:
            descriptor = os.open(name, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(Path(name))
        except OSError:
            continue  # of a running process, or on a file system without locks
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file from an untrusted source, up to a maximal size.

    It has at most `most` bytes; a link to a file is followed. Raises an OSError if the file is not there, larger, or no
    plain file: a pipe would wait for ever, a device never ends.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"larger than {most / 2**20:g} MiB", str(path))
    return path.read_bytes()


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


def _cell(value: Any) -> Any:
    return repr(float(value)) if isinstance(value, float) else value
