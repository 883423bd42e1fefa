"""Where the bench keeps what packages carry: weights and data, a folder a carrier."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ifap.errors import ConfigError
from ifap.study.packages import CARRIERS, carrier, check, take

OF_THE_STUDY_ALONE = {"film_reviews", "aerial_trees"}
READ = {key: each for key, each in CARRIERS.items() if key not in OF_THE_STUDY_ALONE}
FOLDER = Path("data") / "pretrained"
COMMAND = "python -m benchmarks.pretrained fetch"


def path_of(key: str, name: str, folder: Path = FOLDER) -> Path:
    """Return a fetched file of a carrier, with its checksum compared.

    Raises
    ------
    ConfigError
        If the file is missing, or has another checksum; the message names it and says what to run.
    """
    found = folder / key / "files" / name
    if not found.is_file():
        names = ", ".join(f"{each.name}=={each.version}" for each in carrier(key).archives[:1])
        raise ConfigError(f"{found}: file not found; '{COMMAND}' takes it from {names}")
    wanted = carrier(key).checksums.get(name)
    if wanted is not None:
        check(found, wanted)
    return found


def fetch(keys: Iterable[str] = (), folder: Path = FOLDER, given: Path | None = None) -> list[str]:
    """Fetch, check and unpack what is missing.

    Parameters
    ----------
    keys : iterable of str
        Keys of `CARRIERS`; all that the bench reads by default.
    folder : Path
        Where it goes.
    given : Path, optional
        Folder of archives that were fetched before; what it lacks is fetched.

    Returns
    -------
    list of str
        The carriers that were not there before.
    """
    made = []
    for key in tuple(keys) or tuple(READ):
        each, place = carrier(key), folder / key / "files"
        if all((place / name).is_file() for name in each.members.values()):
            continue
        shutil.rmtree(place, ignore_errors=True)
        take(each, place, given)
        made.append(key)
    return made
