"""Downloading archives: checked before they are unpacked, unpacked aside, put in place whole."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from ifap.errors import ResultsError

log = logging.getLogger(__name__)

CHUNK = 2**20
TIMEOUT = 60  # seconds without a byte
ROOM = 2  # an archive and its content lie side by side for a while


def download(archives: Sequence[Archive], folder: Path) -> None:
    """Fetch archives, check and unpack them, and put what they hold into a folder.

    Everything happens in a temporary folder beside `folder`, which goes in any case; nothing is
    ever half there. A download that breaks off starts anew.

    Raises
    ------
    ResultsError
        If an address cannot be read, a file has another checksum than stated, an archive is
        damaged or would write outside its folder, the disk is full, or something of the same name
        lies in the folder already. The message names the address, member or file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(archives, folder.parent)

    def fill(content: Path) -> None:
        content.mkdir()
        for archive in archives:
            file = content.parent / PurePosixPath(archive.url).name
            fetch(archive, file)
            if archive.unpack:
                unpack(file, content)
                file.unlink()
            else:
                file.rename(content / file.name)

    put_in_place(fill, folder)


def put_in_place(fill: Callable[[Path], None], folder: Path) -> None:
    """Make a folder of files aside by `fill` and put what it holds into `folder`, which may hold other files.

    Raises
    ------
    ResultsError
        If something of the same name lies in the folder already; nothing is moved then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        content = Path(staging) / "content"
        fill(content)
        _put_in_place(content, folder)


def fetch(archive: Archive, file: Path) -> None:
    """Fetch one file and compare its checksum; a file with a wrong one is removed.

    Raises
    ------
    ResultsError
        If the address cannot be read or the checksum differs.
    """
    log.info("fetching %s (about %.1f MB)", archive.url, archive.size / 1e6)
    kind, _, wanted = archive.checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "ifap"})
    done = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as stream, file.open("wb") as out:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
    except (OSError, HTTPException, ValueError) as error:
        file.unlink(missing_ok=True)
        raise ResultsError(f"{archive.url} cannot be fetched ({error}): try again later") from None
    if digest.hexdigest() != wanted:
        file.unlink()
        raise ResultsError(
            f"{archive.url} is not the published file: {kind} {digest.hexdigest()} of {done} bytes, expected {wanted}"
        )


def unpack(file: Path, folder: Path) -> None:
    """Unpack a tar or zip archive; only plain files and folders inside `folder` are written.

    Raises
    ------
    ResultsError
        If the archive is damaged, or a member is a link, a device or would leave the folder.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    _refuse_outside(name)
                archive.extractall(folder)
        else:
            with tarfile.open(file) as tar:
                tar.extractall(folder, filter=_plain)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ResultsError(f"{file.name} cannot be unpacked ({error})") from None


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    _refuse_outside(member.name)
    if not (member.isfile() or member.isdir()):
        # None of the data sets has any, and a link is how an archive gets out of its folder.
        raise tarfile.TarError(f"member '{member.name}' is neither a file nor a folder")
    return tarfile.data_filter(member, folder)


def _refuse_outside(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError(f"member '{name}' would leave the folder")


def _check_room(archives: Sequence[Archive], folder: Path) -> None:
    needed = ROOM * sum(archive.size for archive in archives)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResultsError(f"{folder} has {free / 1e9:.1f} GB free, the download needs {needed / 1e9:.1f} GB")


def _put_in_place(content: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(content, folder)
        return
    for entry in sorted(content.iterdir()):
        if (folder / entry.name).exists():
            raise ResultsError(f"{folder / entry.name} is in the way and incomplete: remove it and run again")
    for entry in sorted(content.iterdir()):
        os.rename(entry, folder / entry.name)


@dataclass(frozen=True)
class Archive:
    """A file to be had from the net."""

    url: str  # The last part is the file's name.
    checksum: str  # As ``md5:...`` or ``sha256:...``; the file is refused if it has another one.
    size: int  # About how many bytes; only to see beforehand whether the disk has room for them.
    unpack: bool = True  # Whether its content is wanted rather than the file.
